"""Write the report of previous runs, from the run.json files below one or more folders.

    python jobs/report.py                                    report.html and report.md of results/bench
    python jobs/report.py results/baseline results/mpi --out results/comparison
    python jobs/report.py --compare results/mpi results/custom
    python jobs/report.py --index results                    results/index.html, over all runs

Runs that do different work (model, data, batch, epochs, ...) are compared in separate groups.
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("report")
