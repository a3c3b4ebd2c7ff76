"""``tf.distribute.MirroredStrategy``: plain Keras ``fit``, the model on each device of one process."""

from __future__ import annotations

import tensorflow as tf

from mpi_train.runs.config import DevicesConfig
from mpi_train.runs.record import RunRecord
from mpi_train.runs.run import Run
from mpi_train.runtime import devices
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.world import World
from mpi_train.strategies import keras_fit


def train(config: DevicesConfig, world: World, threads: int) -> RunRecord:
    """Trains over the GPUs of this machine, or logical CPU devices, and writes the record."""
    names = devices.local_devices(config.devices)
    if config.batch_size % len(names):
        raise UsageError(
            f"--batch-size: expected a multiple of the {len(names)} devices, as MirroredStrategy splits "
            f"batches evenly. Got: {config.batch_size}",
            remedy=f"--batch-size {-(-config.batch_size // len(names)) * len(names)}, or other --devices",
        )
    strategy = tf.distribute.MirroredStrategy(names)
    return keras_fit.train(
        Run("mirrored", config, world, threads),
        scope=strategy.scope,
        sync={"average": "gradients", "every": 1, "devices": len(names)},
    )
