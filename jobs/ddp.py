"""Train over ranks with PyTorch's DistributedDataParallel on CPUs, as a yardstick. Needs `make peers`.

    mpiexec -n 2 .venv-peers/bin/python jobs/ddp.py --epochs 5

Writes run.json, events.jsonl, epochs.csv and checkpoints to --out (default: results/ddp).
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("ddp")
