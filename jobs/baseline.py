"""Trains in one process with plain Keras fit on all cores: what the other jobs are measured against.

    python jobs/baseline.py
    python jobs/baseline.py --model mlp --epochs 10
    python jobs/baseline.py --tuned
    sbatch slurm/baseline.sh

Leaves run.json, events.jsonl and epochs.csv in --out (default: results/baseline, or results/tuned).
"""

from mpi_train.cli import run_training
from mpi_train.runs.config import BaselineConfig

if __name__ == "__main__":
    run_training("baseline", BaselineConfig, description="Train in one process with plain Keras fit.")
