"""Data parallelism over MPI ranks, averaged by an all-reduce at every step."""
