"""Trains over ranks with PyTorch's DistributedDataParallel over gloo, on CPUs: a yardstick. Needs make peers.

    mpiexec -n 2 .venv-peers/bin/python jobs/ddp.py --epochs 5

Leaves run.json, events.jsonl, epochs.csv and checkpoints in --out (default: results/ddp).
"""

from mpi_train.cli import run_training
from mpi_train.runs.config import RanksConfig

if __name__ == "__main__":
    run_training("ddp", RanksConfig, description="Train with PyTorch's DistributedDataParallel.", mpi=True)
