"""One MPI_Allreduce over all ranks; the MPI library chooses the algorithm."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from mpi4py import MPI

from mpi_train.collectives.base import MeanAllReduce
from mpi_train.monitor import timeline
from mpi_train.runtime.aligned import aligned_empty
from mpi_train.runtime.world import World


class PlainAllReduce(MeanAllReduce):
    """Sums with ``MPI_Allreduce`` into two buffers in turn.

    Args:
        world, length: As for all of them.
        chunk: Numbers that are summed at once; all of them where that is None.
    """

    def __init__(self, world: World, length: int, chunk: int | None = None) -> None:
        super().__init__(world, length, self._total)
        chunk = chunk or length
        self._chunks = [slice(start, start + chunk) for start in range(0, length, chunk)]
        self._inverse_size = np.float32(1 / world.size)
        self._sum = timeline.traced("all-reduce", self._sum_up, together=world, num_bytes=self.bytes_per_call)
        self._buffers = [aligned_empty((length,), np.float32) for _ in range(2)]

    def __call__(self, vector: tf.Tensor) -> tf.Tensor:
        total = super().__call__(vector)
        # In the graph, as the product is TensorFlow's own: of the weights it would else make a copy, before
        # the next update in place.
        with tf.device("/CPU:0"):
            return total * self._inverse_size

    def mean(self, vector: np.ndarray) -> np.ndarray:
        return self._total(vector) * self._inverse_size

    def _total(self, vector: np.ndarray) -> np.ndarray:
        self._buffers.reverse()
        self._sum(vector, self._buffers[0])
        return self._buffers[0]

    def _sum_up(self, vector: np.ndarray, total: np.ndarray) -> None:
        for chunk in self._chunks:
            self._comm.Allreduce(vector[chunk], total[chunk], op=MPI.SUM)
