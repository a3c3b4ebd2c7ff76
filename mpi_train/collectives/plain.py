"""One MPI_Allreduce over all ranks; the MPI library chooses the algorithm."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from mpi4py import MPI

from mpi_train.collectives.base import AllReduce, all_reduce_bytes, two_buffers
from mpi_train.runtime.world import World


def sum_in_place(world: World, buffer: np.ndarray) -> None:
    """Replace ``buffer`` on every rank by the sum over all ranks."""
    assert world.comm is not None
    world.comm.Allreduce(MPI.IN_PLACE, buffer)


class PlainAllReduce(AllReduce):
    """Sum by ``MPI_Allreduce``, into two buffers in turn."""

    def __init__(self, world: World, length: int) -> None:
        super().__init__(world, self._total)
        num_bytes = all_reduce_bytes(4 * length, world.size)
        self._sum = self.log.part("all-reduce", self._comm.Allreduce, together=world, num_bytes=num_bytes)
        self._buffers = two_buffers(length)

    def __call__(self, vector: tf.Tensor) -> tf.Tensor:
        total = super().__call__(vector)
        # The product belongs to TensorFlow, so that it can become the weights without another copy.
        with tf.device("/CPU:0"):
            return total * self._inverse_size

    def mean(self, vector: np.ndarray) -> np.ndarray:
        return self._total(vector) * self._inverse_size

    def _total(self, vector: np.ndarray) -> np.ndarray:
        total = next(self._buffers)
        self._sum(vector, total, MPI.SUM)
        return total
