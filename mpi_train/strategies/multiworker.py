"""``tf.distribute.MultiWorkerMirroredStrategy``: one process a rank, TensorFlow's own all-reduce over gRPC.

MPI starts the ranks, tells them of each other, and watches them; the gradients go TensorFlow's way.
"""

from __future__ import annotations

import os
import re

import tensorflow as tf

from mpi_train.runs.config import RanksConfig
from mpi_train.runs.record import RunRecord
from mpi_train.runs.run import Run
from mpi_train.runtime import addresses, devices, watchdog
from mpi_train.runtime.world import World
from mpi_train.strategies import tf_distribute


def train(config: RanksConfig, world: World, threads: int) -> RunRecord:
    """Trains on all ranks of ``world`` and writes the record."""
    run = Run("multiworker", config, world, threads)
    with world.together():
        devices.own_device(world, start=False)  # the strategy must be made before TensorFlow starts
    os.environ["TF_CONFIG"] = addresses.tf_config(world)
    watchdog.note("start of TensorFlow's cluster, which waits for every rank", starting=True)
    with devices.quiet_start():
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    try:
        return tf_distribute.train(run, strategy, sync={"average": "gradients", "every": 1})
    except tf.errors.OpError as error:
        lost = re.search(r"unhealthy.*?/task:(\d+)", str(error), re.DOTALL)
        if lost is None:
            raise
        # TensorFlow waits 10 s for a rank, whatever --stall-timeout says.
        watchdog.end_for(world, int(lost[1]), "is what TensorFlow calls unhealthy: it sends no heartbeats")
