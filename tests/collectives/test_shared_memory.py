"""Shared memory of a node: what is written before a barrier can be read after it."""

import time

import numpy as np
import pytest

from mpi_train.collectives.hierarchical import NodeMemory
from mpi_train.runtime.aligned import ALIGNMENT
from mpi_train.runtime.world import World


@pytest.mark.ranks(4)
@pytest.mark.mpi(min_size=2)
def test_what_was_written_before_a_barrier_is_read_after_it(world: World) -> None:
    length = 10_000
    memory = NodeMemory(world, 8 * world.size * length)
    rows = memory.array.view(np.int64).reshape(world.size, length)
    rng = np.random.default_rng(world.rank)
    seen = []
    for turn in range(300):
        if rng.random() < 0.1:
            time.sleep(0.002 * rng.random())  # some come late, in turn
        rows[world.rank] = turn * world.size + world.rank
        memory.barrier()
        seen.append((rows == turn * world.size + np.arange(world.size)[:, np.newaxis]).all())
        memory.barrier()
    assert all(seen)
    assert memory.array.ctypes.data % ALIGNMENT == 0
