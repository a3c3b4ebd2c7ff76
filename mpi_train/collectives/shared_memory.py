"""Memory that the ranks of a node share, and their barrier, which is in it."""

from __future__ import annotations

import os

import numpy as np
from mpi4py import MPI

from mpi_train.runtime.aligned import ALIGNMENT
from mpi_train.runtime.world import World

_POLLS = 100
"""Looks at a flag between two at what else MPI has to do, such as a message that another rank waits for."""


class NodeMemory:
    """A window of MPI-3 shared memory (Hoefler et al. 2013, "MPI + MPI").

    Made on all ranks of a node together.

    Args:
        node: The ranks that share it.
        num_bytes: Of it.

    Attributes:
        array: uint8 (num_bytes,), uninitialised, from a boundary of ``ALIGNMENT`` on.
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
        # All ranks map it at a boundary of pages.
        assert self.array.ctypes.data % ALIGNMENT == 0
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._met = 0
        self._own, self._others = flags[node.rank], flags[: node.rank] + flags[node.rank + 1 :]
        self._own[0] = self._met
        self._window.Sync()
        node.barrier()

    def meet(self) -> None:
        """Waits for the ranks of the node; what each wrote before, all can read after.

        Each counts its calls in a flag of its own and watches those of the others. In a step of a large model
        that is quicker than MPI's barrier, whose code is out of the caches by then: 7 µs instead of 26.
        """
        self._met = met = self._met + 1
        self._window.Sync()
        self._own[0] = met
        polls = 0
        for other in self._others:
            while other[0] < met:
                os.sched_yield()  # where ranks share a core, the one waited for needs it
                polls += 1
                if polls % _POLLS == 0:
                    self._comm.Iprobe()
        self._window.Sync()

    def free(self) -> None:
        """Gives the memory back; on all ranks of the node together."""
        del self.array, self._own, self._others
        self._window.Unlock_all()
        self._window.Free()
