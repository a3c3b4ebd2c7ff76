"""Trains in one process with the batch split by hand over its GPUs or logical CPU devices.

    python jobs/custom.py
    python jobs/custom.py --devices 2
    sbatch slurm/custom.sh

Leaves run.json, events.jsonl and epochs.csv in --out (default: results/custom).
"""

from mpi_train.cli import run_training
from mpi_train.runs.config import DevicesConfig

if __name__ == "__main__":
    run_training("custom", DevicesConfig, description="Train with custom data parallelism over devices.")
