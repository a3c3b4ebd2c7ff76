"""Trains in one process under tf.distribute.MirroredStrategy, over its GPUs or logical CPU devices.

    python jobs/mirrored.py
    python jobs/mirrored.py --devices 2
    sbatch slurm/mirrored.sh

Leaves run.json, events.jsonl and epochs.csv in --out (default: results/mirrored).
"""

from mpi_train.cli import run_training
from mpi_train.runs.config import DevicesConfig

if __name__ == "__main__":
    run_training("mirrored", DevicesConfig, description="Train under tf.distribute.MirroredStrategy.")
