"""Compares the strategies on this machine: runs each of them, then writes the report.

    python jobs/bench.py                                     all strategies, 3 times, in turn
    python jobs/bench.py --strategies baseline,mpi --np 4    two of them, mpi on 4 ranks
    python jobs/bench.py --epochs 1 --repeats 1 --out results/quick

Exits with the code of the first run that failed, after all the others had their turn.
"""

from pathlib import Path

from mpi_train.benchmarks.strategies.runner import main
from mpi_train.runs.job import guarded

if __name__ == "__main__":
    guarded(lambda: main(Path(__file__).parent))
