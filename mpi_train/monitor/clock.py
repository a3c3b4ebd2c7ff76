"""The ranks' clocks against the root's, so that what happened on all of them can be laid on one axis.

Every machine counts its seconds from its own start. The root asks a rank what its clock says, and takes it
that the answer was given half way between question and receipt: it cannot be wrong by more than half the
round trip. Of many rounds the shortest counts (Cristian 1989, "Probabilistic clock synchronization").
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from mpi_train.runtime.world import World

ROUNDS = 50
CLOSE = 2.0
"""Readings count that are as good as the best, but for this factor: others were disturbed."""


@dataclass(frozen=True)
class Reading:
    """This rank's clock against the root's, once.

    Attributes:
        at_s: When, by this rank's ``time.perf_counter``.
        offset_s: What this rank's clock is ahead.
        uncertainty_s: By how much that may be wrong, either way.
    """

    at_s: float
    offset_s: float
    uncertainty_s: float


def read(world: World, rounds: int = ROUNDS) -> Reading:
    """Reads all clocks against the root's; on all ranks together."""
    readings = [Reading(time.perf_counter(), 0.0, 0.0)] * world.size
    mine = np.zeros(1)
    for rank in range(1, world.size):
        if world.is_root:
            readings[rank] = _ask(world, rank, rounds)
        elif world.rank == rank:
            for _ in range(rounds):
                world.receive(mine, source=0)
                mine[0] = time.perf_counter()
                world.send(mine, to=0)
    return world.gather_all(readings)[0][world.rank]


def _ask(world: World, rank: int, rounds: int) -> Reading:
    best = Reading(0.0, 0.0, np.inf)
    question = np.zeros(1)
    for _ in range(rounds):
        asked = time.perf_counter()
        world.send(question, to=rank)
        theirs = float(world.receive(question, source=rank)[0])
        told = time.perf_counter()
        if (told - asked) / 2 < best.uncertainty_s:
            best = Reading(theirs, theirs - (asked + told) / 2, (told - asked) / 2)
    return best


class Clock:
    """This rank's times as the root's clock would have told them.

    Clocks go apart by some millionths of the time; between two readings that is taken to be even.

    Args:
        world: The ranks.

    Attributes:
        readings: Oldest first.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.readings: list[Reading] = []
        self.read()

    def read(self) -> None:
        """Takes one more reading; on all ranks together."""
        self.readings.append(read(self._world))

    @property
    def good(self) -> list[Reading]:
        """Those that count."""
        limit = CLOSE * min(reading.uncertainty_s for reading in self.readings)
        return [reading for reading in self.readings if reading.uncertainty_s <= limit]

    def common(self, times_s: np.ndarray) -> np.ndarray:
        """``times_s``, of ``time.perf_counter`` here, on the root's clock."""
        good = self.good
        at = [reading.at_s for reading in good]
        return times_s - np.interp(times_s, at, [reading.offset_s for reading in good])
