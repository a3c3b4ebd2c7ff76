"""``tf.distribute.TPUStrategy`` where a TPU answers; else the GPUs of this machine, mirrored; else the CPU.

The same file then runs everywhere. What it ran on is said at the start, and stands in the record.
"""

from __future__ import annotations

import os
from pathlib import Path

import tensorflow as tf

from mpi_train.runs.config import TrainConfig
from mpi_train.runs.record import RunRecord
from mpi_train.runs.run import Run
from mpi_train.runtime import devices
from mpi_train.runtime.world import World
from mpi_train.strategies import tf_distribute


def train(config: TrainConfig, world: World, threads: int) -> RunRecord:
    """Trains on what there is and writes the record."""
    run = Run("tpu", config, world, threads)
    strategy, device = _strategy(run)
    sync = {"average": "gradients", "every": 1, "devices": strategy.num_replicas_in_sync, "device": device}
    return tf_distribute.train(run, strategy, sync)


def _strategy(run: Run) -> tuple[tf.distribute.Strategy, str]:
    """The strategy for the best device there is, and the kind of device."""
    # Before anything starts TensorFlow, after which it could not be set.
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    address = _tpu_address()
    if address is None:
        reason = "no TPU here: neither TPU_NAME nor /dev/accel*"
    else:
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(address)
            return tf.distribute.TPUStrategy(resolver), "TPU"
        except (ValueError, RuntimeError, tf.errors.OpError, OSError) as error:
            reason = f"the TPU {address} does not answer: {str(error).splitlines()[0]}"
    if gpus := tf.config.list_physical_devices("GPU"):
        names = [f"/GPU:{number}" for number in range(len(gpus))]
        run.progress.say(f"tpu: {reason}; training on {len(names)} GPUs instead")
        return tf.distribute.MirroredStrategy(names), "GPU"
    devices.start_tensorflow()
    run.progress.say(f"tpu: {reason}, no GPU either; training on the CPU instead")
    return tf.distribute.OneDeviceStrategy("/CPU:0"), "CPU"


def _tpu_address() -> str | None:
    """Where to look for a TPU. Asking further afield would wait for an answer from a cloud we are not in."""
    local = "local" if any(Path("/dev").glob("accel*")) else None
    return os.environ.get("TPU_NAME") or local
