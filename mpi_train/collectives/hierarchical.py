"""In two levels: ranks of one node add up in shared memory what lies there, and the nodes exchange the sums.

An all-reduce by messages copies every byte into shared memory and out again, several times. Here each
rank lays what others add up into memory that its node can read. The leaders of a node add up a part each
of all its vectors, in rank order; each meets the leaders of the other nodes that have the same part, in an
all-reduce of that part alone; then all take what the leaders have: a reduce-scatter and an all-gather,
between which the only bytes leave the node.
"""

from __future__ import annotations

import shutil
from itertools import pairwise

import numpy as np
from mpi4py import MPI

from mpi_train.collectives.base import MeanAllReduce, all_reduce_bytes
from mpi_train.collectives.shared_memory import NodeMemory
from mpi_train.monitor import timeline
from mpi_train.runtime.aligned import ALIGNMENT
from mpi_train.runtime.errors import PlatformError
from mpi_train.runtime.world import World

_ALIGNED = ALIGNMENT // 4
"""In float32 numbers."""


class HierarchicalAllReduce(MeanAllReduce):
    """For two ranks or more, on one node or several.

    As many ranks of each node are leaders as the node with the fewest ranks has. The mean lies in the shared
    memory until this rank's next call, off the boundary on which TensorFlow could use it there: so TensorFlow
    copies it at once, into memory of its own, as it would have to before the next update in place.

    Raises:
        PlatformError: too little shared memory on some node; on all ranks.
    """

    def __init__(self, world: World, length: int) -> None:
        super().__init__(world, length)
        with world.together():
            if not has_room(world, length):
                raise PlatformError(
                    "--collective hierarchical: expected "
                    f"{1.1 * _num_bytes(length, world.local_size):,.0f} bytes of shared memory. "
                    f"Got: {shutil.disk_usage('/dev/shm').free:,} free in /dev/shm",
                    remedy="--collective plain; in a container, --shm-size=1g or more",
                )
        node = _of_one_node(world)
        num_leaders = min(world.gather_all(node.size))
        self._across = world.split(min(node.rank, num_leaders))
        self._leads = node.rank < num_leaders
        self._inverse_size = np.float32(1 / world.size)
        edges = [length * part // num_leaders // _ALIGNED * _ALIGNED for part in range(num_leaders)]
        parts = [slice(start, stop) for start, stop in pairwise([*edges, length])]
        self._mine = mine = parts[node.rank] if self._leads else slice(0, 0)
        self._memory = NodeMemory(node, _num_bytes(length, node.size))
        *vectors, row = self._memory.array.view(np.float32).reshape(node.size + 1, -1)
        self._mean = row[1 : 1 + length]
        self._sum = self._mean[mine]
        self._rank = node.rank
        self._addends = [vector[mine] for vector in vectors]
        lent = [part for part in (slice(0, mine.start), slice(mine.stop, length)) if part.start < part.stop]
        self._lent = [(vectors[node.rank][part], part) for part in lent]
        num_across = self._across.size if self._leads else 1
        part_bytes = all_reduce_bytes(self._sum.nbytes, num_across)
        self.bytes_per_call = all_reduce_bytes(4 * length, node.size) + part_bytes
        self._pack = timeline.traced("pack", self._lend)
        self._meet = timeline.traced("all-reduce", self._memory.meet, together=node)
        self._reduce = timeline.traced("all-reduce", self._add_up, num_bytes=self.bytes_per_call - part_bytes)
        self._exchange = (
            timeline.traced("all-reduce", self._add_nodes, together=self._across, num_bytes=part_bytes)
            if any(world.gather_all(num_across > 1))
            else None
        )

    def mean(self, vector: np.ndarray) -> np.ndarray:
        # Between two meetings ranks read what others wrote before the first, or write what others read after
        # the second. When a rank comes to the next call, TensorFlow has copied the mean of this one.
        self._pack(vector)
        self._meet()
        self._reduce(vector)
        if self._exchange is not None:
            self._exchange()
        self._meet()
        return self._mean

    def free(self) -> None:
        del self._mean, self._sum, self._lent, self._addends
        self._memory.free()

    def _lend(self, vector: np.ndarray) -> None:
        """Lays down what others add up."""
        for place, part in self._lent:
            np.copyto(place, vector[part])

    def _add_up(self, vector: np.ndarray) -> None:
        """This rank's part of the sum over the node; of the mean, where there is no other node."""
        total, addends = self._sum, self._addends.copy()
        addends[self._rank] = vector[self._mine]
        if len(addends) == 1:
            np.copyto(total, addends[0])
        else:
            np.add(addends[0], addends[1], out=total)
        for addend in addends[2:]:
            np.add(total, addend, out=total)
        np.multiply(total, self._inverse_size, out=total)

    def _add_nodes(self) -> None:
        """This rank's part of the mean, of the sums over the nodes."""
        if self._leads and self._across.comm is not None:
            self._across.comm.Allreduce(MPI.IN_PLACE, self._sum)


def has_room(world: World, length: int) -> bool:
    """Whether this rank's node has the shared memory for vectors of ``length``."""
    # A container may give as little as 64 MB of shared memory, and a page too many is a SIGBUS.
    return shutil.disk_usage("/dev/shm").free > 1.1 * _num_bytes(length, world.local_size)


def _num_bytes(length: int, num_ranks: int) -> int:
    """Of shared memory: the vectors of a node's ranks and their mean."""
    row_length = (length // _ALIGNED + 1) * _ALIGNED  # there is room for it one place off the boundary
    return (num_ranks + 1) * 4 * row_length


def _of_one_node(world: World) -> World:
    """The ranks that share this rank's memory."""
    assert world.comm is not None
    node = world.comm.Split_type(MPI.COMM_TYPE_SHARED)
    first = node.bcast(world.rank)
    node.Free()
    return world.split(first)
