"""What the ranks agree on between two chunks of steps: how long the next is, to save, to stop, or to give up.

A signal reaches ranks at different steps, and a disk or a clock is one rank's alone. So each rank says
what it knows, one all-gather makes it common, and all act at the same step. What each rank says of its time
goes the same way.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import numpy as np

from mpi_train.monitor.pace import ByRank
from mpi_train.runtime.world import World

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""Which ask a run to save and stop. USR2, as some libraries have a use of their own for USR1."""


_asked: list[int] = []
"""Signals that this process got and that have not been acted on."""


def listen() -> None:
    """Takes SIGUSR2 from now on, which would end a process that still starts; the run acts on it later."""
    signal.signal(signal.SIGUSR2, lambda number, _: _asked.append(number))


def is_asked() -> bool:
    """Whether this process alone was asked to stop; what becomes of it, all ranks agree on."""
    return bool(_asked)


@dataclass(frozen=True)
class Decision:
    """What all ranks do next.

    Attributes:
        slowest_s: Seconds that the chunk took on the slowest rank.
        diverged: A loss or a weight is not finite somewhere.
        stop: Somebody asked to stop.
        save: A checkpoint is due.
        by_rank: The chunk as each rank saw it.
    """

    slowest_s: float
    diverged: bool
    stop: bool
    save: bool
    by_rank: ByRank


class Control:
    """Args:
    world: The ranks.
    every_steps: Steps of an epoch between two checkpoints; 0 for none but those that time asks for.
    every_s: Seconds between two checkpoints; the root's clock counts.
    """

    def __init__(self, world: World, *, every_steps: int = 0, every_s: float = math.inf) -> None:
        self._world = world
        self._every_steps, self._every_s = every_steps, every_s
        self._last_save = time.monotonic()
        self.stopping = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals that ask to stop. A second Ctrl-C ends the process at once."""
        before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            _asked.clear()

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in _asked:
            raise KeyboardInterrupt
        _asked.append(number)

    @property
    def reason(self) -> str:
        """The signal that this rank got, for a message; empty when it got none."""
        return signal.Signals(_asked[0]).name if _asked else ""

    def limit(self, first: int, stop: int) -> int:
        """Where a chunk from step ``first`` that would end at ``stop`` must end for a checkpoint."""
        if not self._every_steps:
            return stop
        return min(stop, (first // self._every_steps + 1) * self._every_steps)

    def is_due(self, first: int, stop: int) -> bool:
        """Whether the number of steps asks for a checkpoint between two steps."""
        every = self._every_steps
        return every > 0 and first // every != stop // every

    def agree(
        self,
        *,
        first: int,
        stop: int,
        elapsed_s: float,
        finite: bool,
        loss: float = 0.0,
        count: int = 0,
        exchange_s: float = math.nan,
    ) -> Decision:
        """On all ranks together, after a chunk.

        Args:
            first, stop: Between which steps of the epoch the chunk was.
            elapsed_s: What the chunk took on this rank.
            finite: Whether its loss and this rank's weights are.
            loss, count, exchange_s: As ``Chunk`` has them.
        """
        due = self.is_due(first, stop)
        due |= time.monotonic() - self._last_save >= self._every_s
        due &= self._world.is_root
        mine = (not finite, bool(_asked), due, elapsed_s, exchange_s, count, loss * count)
        columns = self._world.gather_rows(np.array(mine, np.float64)).T
        diverged, stop, save = (bool(column.any()) for column in columns[:3])
        self.stopping = stop
        by_rank = ByRank(*columns[3:])
        return Decision(float(by_rank.elapsed_s.max()), diverged, stop, save, by_rank)

    def saved(self) -> None:
        """To be called after a checkpoint was written."""
        self._last_save = time.monotonic()
