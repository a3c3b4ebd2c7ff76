"""Compare the collectives of jobs/mpi.py on the local Slurm cluster, with slow links between its nodes.

    make slurm-up NODES=4                                               as root, like the other lines
    python jobs/bench_network.py                                        all collectives at three rates
    python jobs/bench_network.py --rates 100mbit --collectives plain,powersgd --epochs 3
    python jobs/bench_network.py --collectives plain+every=8,powersgd+powersgd-rank=2 --keep

All runs are made even if one fails; the exit code is that of the first run that failed.
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("bench_network")
