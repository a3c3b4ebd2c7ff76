"""Show the runs of a folder while they train: epoch, images/s, and how long each rank waits for others.

    python jobs/watch.py                        all runs below results/
    python jobs/watch.py results/bench --once

A straggler is a rank that the others wait for. Ctrl-C ends the display; the runs continue.
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("watch")
