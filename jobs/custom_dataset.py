"""Train by a custom loop under MirroredStrategy, over a dataset that TensorFlow distributes.

    python jobs/custom_dataset.py
    python jobs/custom_dataset.py --devices 2
    sbatch slurm/process.sh custom_dataset

Writes run.json, events.jsonl, epochs.csv and checkpoints to --out (default: results/custom_dataset).
"""

from mpi_train.cli import main

if __name__ == "__main__":
    main("custom_dataset")
