"""One MPI_Allreduce over all ranks; the MPI library chooses the algorithm."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from mpi_train import timeline
from mpi_train.collectives.base import MeanAllReduce
from mpi_train.memory import aligned_empty
from mpi_train.world import World


class PlainAllReduce(MeanAllReduce):
    """Sums with ``MPI_Allreduce`` into two buffers in turn."""

    def __init__(self, world: World, length: int) -> None:
        super().__init__(world, length)
        self._inverse_size = np.float32(1 / world.size)
        self._sum = timeline.traced(
            "all-reduce", self._comm.Allreduce, together=world, num_bytes=self.bytes_per_call
        )
        self._buffers = [aligned_empty((length,), np.float32) for _ in range(2)]

    def mean(self, vector: np.ndarray) -> np.ndarray:
        self._buffers.reverse()
        mean = self._buffers[0]
        self._sum(vector, mean, op=MPI.SUM)
        np.multiply(mean, self._inverse_size, out=mean)
        return mean
