"""Trains by a custom loop under tf.distribute.MirroredStrategy, over a dataset that TensorFlow distributes.

    python jobs/custom_dataset.py
    python jobs/custom_dataset.py --devices 2

Leaves run.json, events.jsonl, epochs.csv and checkpoints in --out (default: results/custom_dataset).
"""

from mpi_train.cli import run_training
from mpi_train.runs.config import DevicesConfig

if __name__ == "__main__":
    run_training(
        "custom_dataset", DevicesConfig, description="Train by strategy.run over a distributed dataset."
    )
