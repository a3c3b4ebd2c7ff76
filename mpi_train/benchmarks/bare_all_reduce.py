"""The bare all-reduce, which no training step can be faster than: blocking, in place, from host memory."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from mpi_train.benchmarks.timing import Work, time_in_turn
from mpi_train.runtime.world import World

SIZES = tuple(4**power * 1024 for power in range(1, 9))
"""Bytes: 4 KiB to 64 MiB."""
_SAMPLE_S = 0.05


class BareAllReduce:
    """Sums a float32 buffer of ``num_bytes`` over the ranks, ``count`` times."""

    def __init__(self, world: World, num_bytes: int) -> None:
        assert world.comm is not None
        self._comm = world.comm
        self._buffer = np.zeros(num_bytes // 4, np.float32)

    def __call__(self, count: int) -> None:
        for _ in range(count):
            self._comm.Allreduce(MPI.IN_PLACE, self._buffer)


def sweep(world: World, repeats: int) -> dict[int, list[float]]:
    """Seconds of one all-reduce, for each of ``SIZES``, a value a sample."""
    works = [Work(str(size), BareAllReduce(world, size)) for size in SIZES]
    samples = time_in_turn(works, world, repeats=repeats, sample_s=_SAMPLE_S)
    return {int(name): values for name, values in samples.items()}


def bandwidths(num_bytes: int, seconds: float, num_ranks: int) -> tuple[float, float]:
    """Algorithm and bus bandwidth of an all-reduce, in GB/s (10^9 bytes).

    Bus bandwidth does not depend on the number of ranks, so that it can be held against what a link
    can do. Both as nccl-tests defines them: doc/PERFORMANCE.md of github.com/NVIDIA/nccl-tests.
    """
    algorithm = num_bytes / seconds / 1e9
    return algorithm, algorithm * 2 * (num_ranks - 1) / num_ranks
