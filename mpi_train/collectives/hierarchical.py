"""All-reduce in two levels: shared memory within a node, all-reduces of blocks between nodes.

An all-reduce by messages copies every byte into shared memory and out again, several times. Here each rank
publishes its vector in memory that its node can read. The leaders of a node each add up one block of all its
vectors, in rank order. The leaders of one block on all nodes all-reduce that block; then all ranks read the
leaders' results: a reduce-scatter and an all-gather within the node, between which alone bytes leave it.
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from itertools import pairwise

import numpy as np
from mpi4py import MPI

from mpi_train.collectives.base import AllReduce, all_reduce_bytes
from mpi_train.collectives.plain import PlainAllReduce, sum_in_place
from mpi_train.runtime.aligned import ALIGNMENT
from mpi_train.runtime.errors import PlatformError
from mpi_train.runtime.world import World

_ALIGNED = ALIGNMENT // 4
"""Alignment in float32 numbers."""

_POLLS = 100
"""Polls of a flag between two calls of MPI, which may have to pass on a message that another rank awaits."""


class HierarchicalAllReduce(AllReduce):
    """All-reduce of two ranks or more, on one node or several.

    Each node has as many leaders as the smallest node has ranks. The mean lies in shared memory until this
    rank's next call. It is off the boundary on which TensorFlow could use it in place: so TensorFlow copies
    it at once, as it would have to before the next update in place.

    Raises:
        PlatformError: too little shared memory on some node; on all ranks.
    """

    def __init__(self, world: World, length: int) -> None:
        super().__init__(world)
        with world.together():
            if not has_room(world, length):
                raise PlatformError(
                    "--collective hierarchical: expected "
                    f"{1.1 * _num_bytes(length, world.local_size):,.0f} bytes of shared memory. "
                    f"Got: {shutil.disk_usage('/dev/shm').free:,} free in /dev/shm",
                    remedy="--collective plain; in a container, --shm-size=1g or more",
                )
        node = _node_of(world)
        num_leaders = min(world.gather_all(node.size))
        across = world.split(min(node.rank, num_leaders))
        edges = [length * block // num_leaders // _ALIGNED * _ALIGNED for block in range(num_leaders)]
        blocks = [slice(start, stop) for start, stop in pairwise([*edges, length])]
        self._mine = mine = blocks[node.rank] if node.rank < num_leaders else slice(0, 0)
        self._memory = NodeMemory(node, _num_bytes(length, node.size))
        *vectors, row = self._memory.array.view(np.float32).reshape(node.size + 1, -1)
        self._mean = row[1 : 1 + length]
        self._sum = self._mean[mine]
        self._rank = node.rank
        self._addends = [vector[mine] for vector in vectors]
        others = (slice(0, mine.start), slice(mine.stop, length))
        self._published = [(vectors[node.rank][each], each) for each in others if each.start < each.stop]

        within_bytes = all_reduce_bytes(4 * length, node.size)
        across_bytes = all_reduce_bytes(self._sum.nbytes, across.size)
        part = self.log.part
        self._pack = part("pack", self._publish)
        self._barrier = part("all-reduce", self._memory.barrier, together=node)
        self._reduce = part("all-reduce", self._add_vectors, num_bytes=within_bytes)
        self._exchange = None
        if node.size < world.size:
            # The ranks that lead nothing call this for no numbers.
            add_nodes = partial(sum_in_place, across, self._sum)
            self._exchange = part("all-reduce", add_nodes, together=across, num_bytes=across_bytes)

    def mean(self, vector: np.ndarray) -> np.ndarray:
        # Between the barriers ranks read what others wrote before the first, and write what others read after
        # the second. When a rank begins the next call, TensorFlow has copied the mean of this one.
        self._pack(vector)
        self._barrier()
        self._reduce(vector)
        if self._exchange is not None:
            self._exchange()
        self._barrier()
        return self._mean

    def _publish(self, vector: np.ndarray) -> None:
        """Copy the blocks that other ranks add up to shared memory."""
        for place, block in self._published:
            np.copyto(place, vector[block])

    def _add_vectors(self, vector: np.ndarray) -> None:
        """Compute this rank's block of the node's sum, divided by the world size."""
        total, addends = self._sum, self._addends.copy()
        addends[self._rank] = vector[self._mine]
        if len(addends) == 1:
            np.copyto(total, addends[0])
        else:
            np.add(addends[0], addends[1], out=total)
        for addend in addends[2:]:
            np.add(total, addend, out=total)
        np.multiply(total, self._inverse_size, out=total)


class NodeMemory:
    """Window of MPI-3 shared memory (Hoefler et al. 2013, "MPI + MPI"), made on all ranks of a node together.

    Attributes:
        array: uint8 (num_bytes,), uninitialised, aligned to ``ALIGNMENT``.
    """

    def __init__(self, node: World, num_bytes: int) -> None:
        assert node.comm is not None
        self._comm = node.comm
        # Each rank's flag has a cache line to itself.
        num_flags = node.size * ALIGNMENT
        own_bytes = ALIGNMENT + num_flags + num_bytes if node.is_root else 0
        self._window = MPI.Win.Allocate_shared(own_bytes, 1, MPI.INFO_NULL, self._comm)
        memory = np.asarray(self._window.Shared_query(0)[0])
        offset = self._comm.bcast(-memory.ctypes.data % ALIGNMENT)
        flags = [
            memory[start : start + 8].data.cast("q") for start in range(offset, offset + num_flags, ALIGNMENT)
        ]
        self.array = memory[offset + num_flags :][:num_bytes]
        # Each rank maps the window at a page boundary, so one offset aligns it on all of them.
        assert self.array.ctypes.data % ALIGNMENT == 0
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._count = 0
        self._own, self._others = flags[node.rank], flags[: node.rank] + flags[node.rank + 1 :]
        self._own[0] = 0
        self._window.Sync()
        node.barrier()

    def barrier(self) -> None:
        """Wait for the ranks of the node; what each wrote before, all can read afterwards.

        Each rank counts its calls in a flag of its own and polls those of the others. In a step of a large
        model this takes 7 µs; MPI's barrier takes 26, as its code has left the caches by then.
        """
        self._count = count = self._count + 1
        self._window.Sync()
        self._own[0] = count
        polls = 0
        for other in self._others:
            while other[0] < count:
                os.sched_yield()  # if ranks share a core, the awaited one needs it
                polls += 1
                if polls % _POLLS == 0:
                    self._comm.Iprobe()
        self._window.Sync()


def mean_all_reduce(world: World, length: int) -> AllReduce:
    """Make the usual all-reduce: through shared memory if all ranks are on one node, else MPI's own.

    There must be at least two ranks. ``length`` is in float32 numbers.
    """
    if world.local_size == world.size and all(world.gather_all(has_room(world, length))):
        return HierarchicalAllReduce(world, length)
    return PlainAllReduce(world, length)


def has_room(world: World, length: int) -> bool:
    """Return True if this rank's node has enough shared memory for vectors of ``length``."""
    # A container may have as little as 64 MB of shared memory, and one page too many is a SIGBUS.
    return shutil.disk_usage("/dev/shm").free > 1.1 * _num_bytes(length, world.local_size)


def _num_bytes(length: int, num_ranks: int) -> int:
    """Return the bytes of shared memory for the vectors of a node's ranks and their mean."""
    row_length = (length // _ALIGNED + 1) * _ALIGNED  # there is room for it one place off the boundary
    return (num_ranks + 1) * 4 * row_length


def _node_of(world: World) -> World:
    """Return the ranks that share this rank's memory."""
    assert world.comm is not None
    node = world.comm.Split_type(MPI.COMM_TYPE_SHARED)
    first = node.bcast(world.rank)
    node.Free()
    return world.split(first)
