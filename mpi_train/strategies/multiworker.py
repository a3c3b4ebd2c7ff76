"""``tf.distribute.MultiWorkerMirroredStrategy``: one process a rank, TensorFlow's own all-reduce over gRPC.

MPI starts the ranks, tells them of each other, and watches them; the gradients go TensorFlow's way.
"""

from __future__ import annotations

import os
import re

import tensorflow as tf

from mpi_train import cluster, devices, watch
from mpi_train.config import RanksConfig
from mpi_train.records import RunRecord
from mpi_train.run import Run
from mpi_train.strategies import distributed
from mpi_train.world import World


def train(config: RanksConfig, world: World, threads: int) -> RunRecord:
    """Trains on all ranks of ``world`` and writes the record."""
    run = Run("multiworker", config, world, threads)
    with world.together():
        devices.own_device(world, start=False)  # the strategy must be made before TensorFlow starts
    os.environ["TF_CONFIG"] = cluster.tf_config(world)
    watch.note("start of TensorFlow's cluster, which waits for every rank", starting=True)
    with devices.quiet_start():
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    try:
        return distributed.train(run, strategy, sync={"average": "gradients", "every": 1})
    except tf.errors.OpError as error:
        lost = re.search(r"unhealthy.*?/task:(\d+)", str(error), re.DOTALL)
        if lost is None:
            raise
        # TensorFlow waits 10 s for a rank, whatever --stall-timeout says.
        watch.end_for(world, int(lost[1]), "is what TensorFlow calls unhealthy: it sends no heartbeats")
