"""Choose the number of threads by measuring."""
