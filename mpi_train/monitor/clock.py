"""Clocks of the ranks against the root's clock, so that events of all ranks lie on one time axis.

The root asks a rank for its time and assumes that the answer was given half way between question and receipt,
so the error is at most half the round trip. Of many rounds the shortest counts (Cristian 1989, "Probabilistic
clock synchronization").
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from mpi_train.runtime.world import World

ROUNDS = 50
CLOSE = 2.0
"""Largest uncertainty of a reading that counts, over the smallest one: others were disturbed."""


class Reading(NamedTuple):
    """One reading of this rank's clock against the root's, in seconds.

    Attributes:
        at_s: Time of the reading by this rank's ``time.perf_counter``.
        offset_s: Time by which this rank's clock is ahead.
        uncertainty_s: Largest possible error of the offset, in either direction.
    """

    at_s: float
    offset_s: float
    uncertainty_s: float


def read(world: World) -> Reading:
    """Read all clocks against the root's, on all ranks together."""
    readings = [Reading(time.perf_counter(), 0.0, 0.0)] * world.size
    message = np.zeros(1)
    for rank in range(1, world.size):
        rounds = []
        for _ in range(ROUNDS):
            if world.is_root:
                asked = time.perf_counter()
                world.send(message, to=rank)
                theirs = float(world.receive(message, source=rank)[0])
                answered = time.perf_counter()
                rounds.append(Reading(theirs, theirs - (asked + answered) / 2, (answered - asked) / 2))
            elif world.rank == rank:
                world.receive(message, source=0)
                message[0] = time.perf_counter()
                world.send(message, to=0)
        if rounds:
            readings[rank] = min(rounds, key=lambda reading: reading.uncertainty_s)
    return world.gather_all(readings)[0][world.rank]


class Clock:
    """Conversion of this rank's times to the root's clock.

    Clocks drift by some millionths of the time; between two ``readings`` the drift is assumed to be even.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.readings = [read(world)]

    def read(self) -> None:
        """Take one more reading, on all ranks together."""
        self.readings.append(read(self._world))

    @property
    def good(self) -> list[Reading]:
        """Readings that were not disturbed, oldest first."""
        limit = CLOSE * min(reading.uncertainty_s for reading in self.readings)
        return [reading for reading in self.readings if reading.uncertainty_s <= limit]

    def common(self, times_s: np.ndarray) -> np.ndarray:
        """Convert times of ``time.perf_counter`` on this rank to the root's clock."""
        at, offsets, _ = zip(*self.good, strict=True)
        return times_s - np.interp(times_s, at, offsets)
