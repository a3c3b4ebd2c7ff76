"""All-reduce that sends 16-bit numbers and adds them in 32 bits: half the bytes of a plain one.

A bfloat16 is a float32 without the lower half of its bits: the same range, so that no scaling is needed, and
8 bits of precision. Partial sums in bfloat16 would lose precision with every rank. So each rank sends its
blocks to ranks that add them in float32. A number is rounded twice: before it is sent, and as the mean.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import tensorflow as tf
from mpi4py import MPI

from mpi_train.collectives.base import AllReduce, all_reduce_bytes, two_buffers
from mpi_train.runtime.world import World

_BFLOAT16 = tf.bfloat16.as_numpy_dtype
_round = partial(np.copyto, casting="unsafe")


class BFloat16AllReduce(AllReduce):
    """All-to-all of the blocks, then an all-gather of their means."""

    def __init__(self, world: World, length: int) -> None:
        super().__init__(world)
        size = world.size
        edges = [length * block // size for block in range(size + 1)]
        lengths = [stop - start for start, stop in pairwise(edges)]
        mine = lengths[world.rank]
        self._sent, self._gathered = np.empty((2, length), _BFLOAT16)
        self._addends = np.empty((size, mine), _BFLOAT16)
        self._addend, self._sum = np.empty((2, mine), np.float32)
        self._mean = np.empty(mine, _BFLOAT16)
        self._means = two_buffers(length)
        # MPI has no bfloat16: it moves 16-bit integers, and adds nothing.
        blocks = (lengths, edges[:-1])
        self._scattering = (
            [self._sent.view(np.uint16), *blocks, MPI.UINT16_T],
            [self._addends.view(np.uint16), mine, MPI.UINT16_T],
        )
        self._gathering = (
            [self._mean.view(np.uint16), mine, MPI.UINT16_T],
            [self._gathered.view(np.uint16), *blocks, MPI.UINT16_T],
        )
        num_bytes = all_reduce_bytes(2 * length, size)
        half, part = num_bytes // 2, self.log.part
        self._pack = part("pack", _round)
        self._scatter = part("all-reduce", self._comm.Alltoallv, together=world, num_bytes=half)
        self._gather = part("all-reduce", self._comm.Allgatherv, together=world, num_bytes=num_bytes - half)
        self._unpack = part("unpack", np.copyto)

    def mean(self, vector: np.ndarray) -> np.ndarray:
        self._pack(self._sent, vector)
        self._scatter(*self._scattering)
        self._add_blocks()
        self._gather(*self._gathering)
        mean = next(self._means)
        self._unpack(mean, self._gathered)
        return mean

    def _add_blocks(self) -> None:
        """Compute this rank's block of the mean, in rank order."""
        self._sum.fill(0)
        for addend in self._addends:
            np.copyto(self._addend, addend)
            np.add(self._sum, self._addend, out=self._sum)
        np.multiply(self._sum, self._inverse_size, out=self._sum)
        _round(self._mean, self._sum)
