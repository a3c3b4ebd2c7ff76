"""Numbers travel in 16 bits and are added up in 32: half the bytes of a plain all-reduce.

A bfloat16 is a float32 without the lower half of its bits: the same range, so that nothing needs scaling,
and 8 bits of precision. Partial sums would lose more of them with every rank that adds to them on the
way. So each rank sends its parts to the ranks that add them up, which do it in float32, and a number is
rounded twice however many ranks there are: where it sets out, and as the mean.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import tensorflow as tf
from mpi4py import MPI

from mpi_train.collectives.base import MeanAllReduce, all_reduce_bytes
from mpi_train.monitor import timeline
from mpi_train.runtime.aligned import aligned_empty
from mpi_train.runtime.world import World

_BFLOAT16 = tf.bfloat16.as_numpy_dtype


class BFloat16AllReduce(MeanAllReduce):
    """An all-to-all of the parts, and an all-gather of their means."""

    def __init__(self, world: World, length: int) -> None:
        super().__init__(world, length)
        size = world.size
        edges = [length * part // size for part in range(size + 1)]
        lengths = [stop - start for start, stop in pairwise(edges)]
        mine = lengths[world.rank]
        self.bytes_per_call = all_reduce_bytes(2 * length, size)
        self._inverse_size = np.float32(1 / size)
        self._sent = np.empty(length, _BFLOAT16)
        self._addends = np.empty((size, mine), _BFLOAT16)
        self._addend, self._sum = (np.empty(mine, np.float32) for _ in range(2))
        self._mean = np.empty(mine, _BFLOAT16)
        self._gathered = np.empty(length, _BFLOAT16)
        self._means = [aligned_empty((length,), np.float32) for _ in range(2)]
        # MPI knows no bfloat16: it moves 16 bits, and does not add.
        parts = (lengths, edges[:-1])
        self._scattering = (
            [self._sent.view(np.uint16), *parts, MPI.UINT16_T],
            [self._addends.view(np.uint16), mine, MPI.UINT16_T],
        )
        self._gathering = (
            [self._mean.view(np.uint16), mine, MPI.UINT16_T],
            [self._gathered.view(np.uint16), *parts, MPI.UINT16_T],
        )
        half = self.bytes_per_call // 2
        self._pack = timeline.traced("pack", _round)
        self._scatter = timeline.traced("all-reduce", self._comm.Alltoallv, together=world, num_bytes=half)
        self._gather = timeline.traced(
            "all-reduce", self._comm.Allgatherv, together=world, num_bytes=self.bytes_per_call - half
        )
        self._unpack = timeline.traced("unpack", np.copyto)

    def mean(self, vector: np.ndarray) -> np.ndarray:
        self._pack(self._sent, vector)
        self._scatter(*self._scattering)
        self._add_up()
        self._gather(*self._gathering)
        self._means.reverse()
        self._unpack(self._means[0], self._gathered)
        return self._means[0]

    def _add_up(self) -> None:
        """This rank's part of the mean, in rank order."""
        self._sum.fill(0)
        for addend in self._addends:
            np.copyto(self._addend, addend)
            np.add(self._sum, self._addend, out=self._sum)
        np.multiply(self._sum, self._inverse_size, out=self._sum)
        _round(self._mean, self._sum)


def _round(to: np.ndarray, numbers: np.ndarray) -> None:
    np.copyto(to, numbers, casting="unsafe")
