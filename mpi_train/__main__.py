"""Entry of ``python -m mpi_train NAME ...``, where there is no clone with ``jobs/``."""

from mpi_train.cli import main

if __name__ == "__main__":
    main()
