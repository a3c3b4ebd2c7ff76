"""A loop of one's own under ``MirroredStrategy``, over a dataset that TensorFlow distributes.

What TensorFlow's guide to custom training teaches; ``mirrored`` is the same with Keras's ``fit``, and
``custom`` does by hand what both leave to TensorFlow.
"""

from __future__ import annotations

import tensorflow as tf

from mpi_train.runs.config import DevicesConfig
from mpi_train.runs.record import RunRecord
from mpi_train.runs.run import Run
from mpi_train.runtime import devices
from mpi_train.runtime.world import World
from mpi_train.strategies import tf_distribute


def train(config: DevicesConfig, world: World, threads: int) -> RunRecord:
    """Trains over the GPUs of this machine, or logical CPU devices, and writes the record."""
    names = devices.local_devices(config.devices)
    return tf_distribute.train(
        Run("custom_dataset", config, world, threads),
        tf.distribute.MirroredStrategy(names),
        sync={"average": "gradients", "every": 1, "devices": len(names)},
    )
