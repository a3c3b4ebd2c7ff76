"""Trains over MPI: every rank on its shard, the weights averaged with Allreduce after every step.

    mpiexec -n 4 python jobs/mpi.py --epochs 5
    mpiexec -n 4 python jobs/mpi.py --average gradients
    sbatch slurm/mpi_4nodes.sh --epochs 10

Leaves run.json, events.jsonl, epochs.csv and checkpoints in --out (default: results/mpi). After an
interruption the same command goes on from the last checkpoint, on as many ranks or on others.
"""

from mpi_train.cli import run_training
from mpi_train.runs.config import MpiConfig

if __name__ == "__main__":
    run_training("mpi", MpiConfig, description="Train over MPI ranks, averaging with Allreduce.", mpi=True)
