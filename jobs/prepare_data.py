"""Divide a data set into HDF5 shards, on the login node or a laptop. The last line of stdout is their folder.

    python jobs/prepare_data.py                                      # Fashion-MNIST into data/fashion_mnist
    python jobs/prepare_data.py --source ~/fashion-mnist --shards 8  # from a folder of the official files
    python jobs/prepare_data.py --dataset synthetic                  # for machines without data
    python jobs/prepare_data.py --partition dirichlet --alpha 0.3    # skewed by label
    make data DATASET=fashion_mnist SHARDS=4

Shards that exist with the same settings, and are sound, are kept.
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("prepare_data")
