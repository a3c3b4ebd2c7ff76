"""Trains under tf.distribute.TPUStrategy where a TPU answers; else on the machine's GPUs; else on its CPU.

    python jobs/tpu.py
    TPU_NAME=local python jobs/tpu.py

Says what it runs on. Leaves run.json, events.jsonl, epochs.csv and checkpoints in --out (default:
results/tpu).
"""

from mpi_train.cli import run_training
from mpi_train.runs.config import TrainConfig

if __name__ == "__main__":
    run_training("tpu", TrainConfig, description="Train on a TPU, or on what there is instead.")
