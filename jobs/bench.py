"""Compare the strategies on this machine: run each of them, then write the report.

    python jobs/bench.py                                     all strategies, 3 times, in turn
    python jobs/bench.py --strategies baseline,mpi --np 4    two of them, mpi on 4 ranks
    python jobs/bench.py --epochs 1 --repeats 1 --out results/quick

All runs are made even if one fails; the exit code is that of the first run that failed.
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("bench")
