"""All-reduces that run while the rank computes on.

A non-blocking all-reduce makes no progress by itself: MPI moves bytes when it is called. So a thread calls
it, on a communicator of its own, and sleeps in between, as a rank often has one core for everything: over
1 Gbit/s a thread that waited inside MPI instead took most of what the overlap had gained.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from mpi4py import MPI

from mpi_train.collectives.base import all_reduce_bytes
from mpi_train.collectives.traffic import Traffic, moving_s
from mpi_train.monitor import timeline
from mpi_train.runtime.errors import PlatformError
from mpi_train.runtime.world import World

NAP_S = 100e-6
"""Between two looks at an all-reduce that is under way: 12 kB at 1 Gbit/s."""


class Background:
    """Makes means over the ranks, one after another, each while the rank computes.

    Args:
        world: At least two ranks.
        buffers: The vectors, float32, and where their means are to be. Between ``start`` and ``wait`` the
            one must not be written, and the other not be touched.

    Raises:
        PlatformError: an MPI library that only one thread at a time may call; on all ranks.
    """

    def __init__(self, world: World, buffers: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        assert world.comm is not None
        with world.together():
            if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
                raise PlatformError(
                    "expected an MPI library that several threads may call at once (MPI_THREAD_MULTIPLE). "
                    f"Got: level {MPI.Query_thread()} from {MPI.get_vendor()[0]}",
                    remedy="--collective plain, or another build of the MPI library (the wheel's: make setup "
                    "MPI=wheel)",
                )
        self._comm = world.comm.Dup()
        self._inverse_size = np.float32(1 / world.size)
        self._bytes = [all_reduce_bytes(vector.nbytes, world.size) for vector, _ in buffers]
        self._buffers = [
            (vector, mean, timeline.beside(self._average, together=world, num_bytes=num_bytes))
            for (vector, mean), num_bytes in zip(buffers, self._bytes, strict=True)
        ]
        # At exit it is waited for, so that what is under way comes to its end before MPI does.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="exchange")
        self._under_way: list[Future[None]] = []
        self._durations: list[float] = []
        self._stood_s: list[float] = []

    def start(self, number: int = 0) -> None:
        """Begins with the buffers of this number; all ranks in the same order."""
        self._under_way.append(self._thread.submit(self._run, number))

    def wait(self) -> None:
        """Returns when all that was started is done; an error on the thread is raised here."""
        if not self._under_way:
            return
        begin = time.perf_counter()
        under_way, self._under_way = self._under_way, []
        for each in under_way:
            each.result()
        self._stood_s.append(time.perf_counter() - begin)

    def take_traffic(self, world: World, called_s: float) -> Traffic:
        """What there was since this was last called; on all ranks together.

        Args:
            world: The ranks.
            called_s: For how long the steps stood still, with what is done around the waiting.
        """
        stood, self._stood_s = np.array(self._stood_s), []
        count = len(stood) * len(self._buffers)
        durations, self._durations = self._durations[:count], self._durations[count:]
        moving = moving_s(np.reshape(durations, (len(stood), len(self._buffers))), world).sum(axis=1)
        waiting = float(np.maximum(stood - moving, 0).sum())
        return Traffic(
            moving_s=called_s - waiting,
            waiting_s=waiting,
            sent_bytes=len(stood) * sum(self._bytes),
            hidden_s=float(np.maximum(moving - stood, 0).sum()),
        )

    def _run(self, number: int) -> None:
        begin = time.perf_counter()
        vector, mean, average = self._buffers[number]
        average(vector, mean)
        self._durations.append(time.perf_counter() - begin)

    def _average(self, vector: np.ndarray, mean: np.ndarray) -> None:
        request = self._comm.Iallreduce(vector, mean)
        while not request.Test():
            time.sleep(NAP_S)
        np.multiply(mean, self._inverse_size, out=mean)
