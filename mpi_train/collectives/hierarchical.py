"""In two levels: ranks of one node add up in shared memory what lies there, and the nodes exchange the sums.

An all-reduce by messages copies every byte into shared memory and out again, several times. Here each
rank lays its vector into a window that its node can read (MPI-3 shared memory, Hoefler et al. 2013, "MPI +
MPI"). The leaders of a node add up a part each of all its vectors, in rank order; each meets the leaders
of the other nodes that have the same part, in an all-reduce of that part alone; then all copy what the
leaders have: a reduce-scatter and an all-gather, between which the only bytes leave the node.
"""

from __future__ import annotations

import shutil
from itertools import pairwise

import numpy as np
from mpi4py import MPI

from mpi_train import timeline
from mpi_train.collectives.base import MeanAllReduce, all_reduce_bytes
from mpi_train.errors import PlatformError
from mpi_train.memory import aligned_empty
from mpi_train.world import World


class HierarchicalAllReduce(MeanAllReduce):
    """For two ranks or more, on one node or several.

    As many ranks of each node are leaders as the node with the fewest ranks has.

    Raises:
        PlatformError: too little shared memory on some node; on all ranks.
    """

    def __init__(self, world: World, length: int) -> None:
        super().__init__(world, length)
        needed = self.num_bytes(length) * world.local_size
        with world.together():
            if not has_room(world, length):
                raise PlatformError(
                    f"--collective hierarchical: expected {1.1 * needed:,.0f} bytes of shared memory. "
                    f"Received: {shutil.disk_usage('/dev/shm').free:,} free in /dev/shm",
                    remedy="--collective plain; in a container, --shm-size=1g or more",
                )
        node = _of_one_node(world)
        assert node.comm is not None
        num_leaders = min(world.gather_all(node.size))
        self._across = world.split(min(node.rank, num_leaders))
        self._leads = node.rank < num_leaders
        self._inverse_size = np.float32(1 / world.size)
        self._means = [aligned_empty((length,), np.float32) for _ in range(2)]
        # Each rank's segment has its vectors of two calls in turn, and its parts of two means.
        self._window = MPI.Win.Allocate_shared(self.num_bytes(length), 1, MPI.INFO_NULL, node.comm)
        segments = [
            np.asarray(self._window.Shared_query(rank)[0]).view(np.float32).reshape(4, length)
            for rank in range(node.size)
        ]
        self._window.Lock_all(MPI.MODE_NOCHECK)
        edges = [length * part // num_leaders for part in range(num_leaders + 1)]
        parts = [slice(start, stop) for start, stop in pairwise(edges)]
        own, mine = segments[node.rank], parts[node.rank] if self._leads else slice(0)
        num_across = self._across.size if self._leads else 1
        part_bytes = all_reduce_bytes(4 * len(own[0][mine]), num_across)
        self.bytes_per_call = all_reduce_bytes(4 * length, node.size) + part_bytes
        self._vector = [own[turn] for turn in (0, 1)]
        self._addends = [[segment[turn][mine] for segment in segments] for turn in (0, 1)]
        self._sum = [own[2 + turn][mine] for turn in (0, 1)]
        leaders = segments[:num_leaders]
        self._sums = [
            [(part, segment[2 + turn][part]) for part, segment in zip(parts, leaders, strict=True)]
            for turn in (0, 1)
        ]
        self._turn = 0
        self._node = node
        self._pack = timeline.traced("pack", np.copyto)
        self._meet = timeline.traced("all-reduce", self._wait_for_node, together=node)
        self._reduce = timeline.traced("all-reduce", self._add_up, num_bytes=self.bytes_per_call - part_bytes)
        self._exchange = (
            timeline.traced("all-reduce", self._add_nodes, together=self._across, num_bytes=part_bytes)
            if any(world.gather_all(num_across > 1))
            else None
        )
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
        if self._exchange is not None:
            self._exchange(turn)
        self._meet()
        return self._unpack(turn)

    def free(self) -> None:
        self._window.Unlock_all()
        self._window.Free()

    def _add_up(self, turn: int) -> None:
        """This rank's part of the sum over the node; of the mean, where there is no other node."""
        first, *others = self._addends[turn]
        total = self._sum[turn]
        np.copyto(total, first) if not others else np.add(first, others[0], out=total)
        for other in others[1:]:
            np.add(total, other, out=total)
        np.multiply(total, self._inverse_size, out=total)

    def _add_nodes(self, turn: int) -> None:
        """This rank's part of the mean, of the sums over the nodes."""
        if self._leads and self._across.comm is not None:
            self._across.comm.Allreduce(MPI.IN_PLACE, self._sum[turn])

    def _put_together(self, turn: int) -> np.ndarray:
        """The whole mean, of all leaders' parts."""
        mean = self._means[turn]
        for part, part_sum in self._sums[turn]:
            np.copyto(mean[part], part_sum)
        return mean

    def _wait_for_node(self) -> None:
        """Waits for the ranks of the node; what each wrote before, all can read after."""
        assert self._node.comm is not None
        self._window.Sync()
        self._node.comm.Barrier()
        self._window.Sync()


def has_room(world: World, length: int) -> bool:
    """Whether this rank's node has the shared memory for vectors of ``length``."""
    # A container may give as little as 64 MB of shared memory, and a page too many is a SIGBUS.
    needed = HierarchicalAllReduce.num_bytes(length) * world.local_size
    return shutil.disk_usage("/dev/shm").free > 1.1 * needed


def _of_one_node(world: World) -> World:
    """The ranks that share this rank's memory."""
    assert world.comm is not None
    node = world.comm.Split_type(MPI.COMM_TYPE_SHARED)
    first = node.bcast(world.rank)
    node.Free()
    return world.split(first)
