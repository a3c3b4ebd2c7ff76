"""The mean of one flat buffer over all ranks, callable from inside a TensorFlow graph; one file a way."""

from __future__ import annotations

import shutil

from mpi_train.collectives.base import MeanAllReduce
from mpi_train.collectives.plain import PlainAllReduce
from mpi_train.collectives.shared import SharedAllReduce
from mpi_train.world import World

__all__ = ["MeanAllReduce", "PlainAllReduce", "SharedAllReduce", "mean_all_reduce"]


def mean_all_reduce(world: World, length: int) -> MeanAllReduce:
    """The fastest way for these ranks: through shared memory where all are on one node, else by MPI.

    Args:
        world: At least two ranks.
        length: Of the buffer, in float32 numbers.
    """
    # A container may give as little as 64 MB of shared memory, and a page too many is a SIGBUS.
    room = shutil.disk_usage("/dev/shm").free > 1.1 * SharedAllReduce.num_bytes(length) * world.size
    if world.local_size == world.size and all(world.gather_all(room)):
        return SharedAllReduce(world, length)
    return PlainAllReduce(world, length)
