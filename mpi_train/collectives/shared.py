"""Ranks of one node: they add up each other's buffers where they lie, in shared memory.

An all-reduce by messages copies every byte into shared memory and out again, several times. Here each
rank lays its vector into a window that all can read (MPI-3 shared memory, Hoefler et al. 2013, "MPI +
MPI"), adds up its part of all vectors, in rank order, and copies the parts that the others added up: a
reduce-scatter and an all-gather.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from mpi4py import MPI

from mpi_train import timeline
from mpi_train.collectives.base import MeanAllReduce
from mpi_train.memory import aligned_empty
from mpi_train.world import World


class SharedAllReduce(MeanAllReduce):
    """For two ranks or more, all on one node."""

    def __init__(self, world: World, length: int) -> None:
        super().__init__(world, length)
        self._inverse_size = np.float32(1 / world.size)
        self._means = [aligned_empty((length,), np.float32) for _ in range(2)]
        # Each rank's segment has its vectors of two calls in turn, and its parts of two means.
        self._window = MPI.Win.Allocate_shared(self.num_bytes(length), 1, MPI.INFO_NULL, self._comm)
        segments = [
            np.asarray(self._window.Shared_query(rank)[0]).view(np.float32).reshape(4, length)
            for rank in range(world.size)
        ]
        self._window.Lock_all(MPI.MODE_NOCHECK)
        edges = [length * rank // world.size for rank in range(world.size + 1)]
        parts = [slice(start, stop) for start, stop in pairwise(edges)]
        own, mine = segments[world.rank], parts[world.rank]
        self._vector = [own[turn] for turn in (0, 1)]
        self._addends = [[segment[turn][mine] for segment in segments] for turn in (0, 1)]
        self._sum = [own[2 + turn][mine] for turn in (0, 1)]
        self._sums = [
            [(part, segment[2 + turn][part]) for part, segment in zip(parts, segments, strict=True)]
            for turn in (0, 1)
        ]
        self._turn = 0
        self._pack = timeline.traced("pack", np.copyto)
        self._meet = timeline.traced("all-reduce", self._wait_for_all, together=world)
        self._reduce = timeline.traced("all-reduce", self._add_up, num_bytes=self.bytes_per_call)
        self._unpack = timeline.traced("unpack", self._put_together)

    @staticmethod
    def num_bytes(length: int) -> int:
        """Shared memory that one rank takes."""
        return 4 * 4 * length

    def mean(self, vector: np.ndarray) -> np.ndarray:
        # What a rank may still be reading was written in this turn; the next call writes elsewhere,
        # and when the turn comes again all have met.
        turn = self._turn = 1 - self._turn
        self._pack(self._vector[turn], vector)
        self._meet()
        self._reduce(turn)
        self._meet()
        return self._unpack(turn)

    def _add_up(self, turn: int) -> None:
        """This rank's part of the mean."""
        first, second, *others = self._addends[turn]
        total = self._sum[turn]
        np.add(first, second, out=total)
        for other in others:
            np.add(total, other, out=total)
        np.multiply(total, self._inverse_size, out=total)

    def _put_together(self, turn: int) -> np.ndarray:
        """The whole mean, of all ranks' parts."""
        mean = self._means[turn]
        for part, part_sum in self._sums[turn]:
            np.copyto(mean[part], part_sum)
        return mean

    def _wait_for_all(self) -> None:
        """Waits for all ranks; what each wrote before, all can read after."""
        self._window.Sync()
        self._comm.Barrier()
        self._window.Sync()
