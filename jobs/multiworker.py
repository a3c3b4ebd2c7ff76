"""Trains over MPI's ranks as the workers of tf.distribute.MultiWorkerMirroredStrategy.

    mpiexec -n 2 python jobs/multiworker.py
    sbatch slurm/multiworker_4nodes.sh

Leaves run.json, events.jsonl, epochs.csv and checkpoints in --out (default: results/multiworker).
"""

from mpi_train.cli import run_training
from mpi_train.runs.config import RanksConfig

if __name__ == "__main__":
    run_training("multiworker", RanksConfig, description="Train under MultiWorkerMirroredStrategy.", mpi=True)
