"""All-reduces on a second thread, while the rank computes.

A non-blocking all-reduce makes no progress by itself: MPI moves bytes when it is called. So a thread polls
it, on a communicator of its own, and sleeps in between. Ranks often have one core each: over 1 Gbit/s a
thread that waited inside MPI took most of what the overlap had gained.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from mpi4py import MPI

from mpi_train.collectives.base import all_reduce_bytes
from mpi_train.collectives.exchange_log import ExchangeLog, Traffic, shortest
from mpi_train.runtime.errors import PlatformError
from mpi_train.runtime.world import World

POLL_S = 100e-6
"""Seconds between two polls of an all-reduce: 12 kB at 1 Gbit/s."""


class Background(ExchangeLog):
    """Means over the ranks, one after another while the rank computes, and the log of these.

    Args:
        world: At least two ranks.
        buffers: Vectors, float32, each with the array that receives its mean. Between ``start`` and ``wait``
            the vectors must not be written, and the means not be touched.

    Raises:
        PlatformError: an MPI library that only one thread at a time may call; on all ranks.
    """

    def __init__(self, world: World, buffers: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        super().__init__()
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
        self._buffers = buffers
        self._averages = []
        for vector, _ in buffers:
            size = all_reduce_bytes(vector.nbytes, world.size)
            average = self.part("all-reduce", self._average, num_bytes=size, together=world, background=True)
            self._averages.append(average)
        # The interpreter joins this thread at exit, so running exchanges complete before MPI ends.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="exchange")
        self._running: list[Future[None]] = []
        self._moved_s: list[float] = []
        self._stood_s: list[float] = []

    def start(self, number: int = 0) -> None:
        """Start the all-reduce of the buffers with this number; all ranks in the same order."""
        self._running.append(self._thread.submit(self._run, number))

    def wait(self) -> None:
        """Wait for all that was started; an error of the thread is raised here."""
        if not self._running:
            return
        begin = time.perf_counter()
        while self._running:
            self._running.pop(0).result()
        self._stood_s.append(time.perf_counter() - begin)

    def take_traffic(self, world: World) -> Traffic:
        """Return the traffic since this was last called, on all ranks together."""
        called_s = float(self.take_durations().sum())
        stood, self._stood_s = np.array(self._stood_s), []
        # The all-reduces that steps have waited for; a later one may still run.
        count = len(stood) * len(self._buffers)
        moved, self._moved_s = self._moved_s[:count], self._moved_s[count:]
        moving = shortest(np.reshape(moved, (len(stood), len(self._buffers))), world).sum(axis=1)
        waiting = float(np.maximum(stood - moving, 0).sum())
        return Traffic(
            moving_s=called_s - waiting,
            waiting_s=waiting,
            sent_bytes=len(stood) * self.bytes_per_call,
            hidden_s=float(np.maximum(moving - stood, 0).sum()),
        )

    def _run(self, number: int) -> None:
        begin = time.perf_counter()
        self._averages[number](*self._buffers[number])
        self._moved_s.append(time.perf_counter() - begin)

    def _average(self, vector: np.ndarray, mean: np.ndarray) -> None:
        request = self._comm.Iallreduce(vector, mean)
        while not request.Test():
            time.sleep(POLL_S)
        np.multiply(mean, self._inverse_size, out=mean)
