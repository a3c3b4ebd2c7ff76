"""Compares the collectives of jobs/mpi.py on the local Slurm cluster, with its nodes' links made slow.

    make slurm-up NODES=4                                               as root; so is what follows
    python jobs/bench_network.py                                        all collectives at three rates
    python jobs/bench_network.py --rates 100mbit --collectives plain,powersgd --epochs 3
    python jobs/bench_network.py --collectives plain+every=8,powersgd+powersgd-rank=2 --keep

Exits with the code of the first run that failed, after all the others had their turn.
"""

from pathlib import Path

from mpi_train.benchmarks.network.runner import main
from mpi_train.runs.job import guarded

if __name__ == "__main__":
    guarded(lambda: main(Path(__file__).parent))
