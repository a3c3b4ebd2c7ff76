"""``tf.distribute.MultiWorkerMirroredStrategy``: one process a rank, TensorFlow's own all-reduce over gRPC.

MPI starts the ranks, tells them of each other, and watches them; the gradients go TensorFlow's way.
"""

from __future__ import annotations

import os

import tensorflow as tf

from mpi_train import cluster, devices
from mpi_train.config import RanksConfig
from mpi_train.records import RunRecord
from mpi_train.run import Run
from mpi_train.strategies import distributed
from mpi_train.watch_hub import STARTING_FACTOR
from mpi_train.world import World


def train(config: RanksConfig, world: World, threads: int) -> RunRecord:
    """Trains on all ranks of ``world`` and writes the record."""
    run = Run("multiworker", config, world, threads)
    with world.together():
        devices.own_device(world, start=False)  # the strategy must be made before TensorFlow starts
    os.environ["TF_CONFIG"] = cluster.tf_config(world)
    with (
        cluster.time_limit(
            world,
            config.stall_timeout * STARTING_FACTOR,
            "TensorFlow's cluster",
            "see that the nodes reach each other by name over TCP, ports 20000 to 29999",
        ),
        devices.quiet_start(),
    ):
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        world.barrier()
    return distributed.train(run, strategy, sync={"average": "gradients", "every": 1})
