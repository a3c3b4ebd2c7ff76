"""Agreement of the ranks between chunks of steps: length of the next chunk, saving, stopping, giving up.

A signal reaches ranks at different steps, and only one rank sees its disk or its clock. So each rank reports
what it knows, and its times, in one all-gather, and all ranks act at the same step.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np

from mpi_train.monitor.pace import ByRank
from mpi_train.runtime.world import World

if TYPE_CHECKING:
    from mpi_train.training.loop import Chunk

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""Signals that ask a run to save and stop. USR2, because some libraries use USR1."""

# Signals that arrived in this process and were not acted on. Signal handlers are process-wide by nature.
_asked: list[int] = []


def listen() -> None:
    """Record SIGUSR2 from now on, which would end a process during its start. The run acts on it later."""
    signal.signal(signal.SIGUSR2, lambda number, _: _asked.append(number))


def is_asked() -> bool:
    """Return True if this process was asked to stop. All ranks decide together what follows."""
    return bool(_asked)


@dataclass(frozen=True)
class Decision:
    """Decision of all ranks after a chunk of steps.

    Attributes:
        slowest_s: Seconds of the chunk on the slowest rank.
        diverged: True if a loss or a weight is not finite on some rank.
        stop, save: True if some rank was asked to stop, and if a checkpoint is due.
        by_rank: The chunk as each rank saw it.
    """

    slowest_s: float
    diverged: bool
    stop: bool
    save: bool
    by_rank: ByRank


class Coordinator:
    """Agreement of the ranks of a run.

    Args:
        world: The ranks.
        every_steps: Steps between two checkpoints within an epoch; 0 for checkpoints by time alone.
        every_s: Seconds between two checkpoints, by the clock of the root.
    """

    def __init__(self, world: World, *, every_steps: int = 0, every_s: float = math.inf) -> None:
        self._world = world
        self._every_steps, self._every_s = every_steps, every_s
        self._last_save = time.monotonic()
        self.stopping = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record the signals that ask to stop. A second Ctrl-C ends the process at once."""
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
        """Name of the signal that this rank got; empty without one."""
        return signal.Signals(_asked[0]).name if _asked else ""

    def limit(self, first: int, stop: int) -> int:
        """Return the end of a chunk from ``first``, at most ``stop``, that lets a checkpoint be on time."""
        every = self._every_steps
        return min(stop, (first // every + 1) * every) if every else stop

    def is_due(self, first: int, stop: int) -> bool:
        """Return True if the number of steps requires a checkpoint between two steps."""
        every = self._every_steps
        return every > 0 and first // every != stop // every

    def agree(self, chunk: Chunk) -> Decision:
        """Exchange what each rank knows after a chunk, and decide; on all ranks together.

        Args:
            chunk: The chunk as this rank saw it, its steps counted within the epoch.
        """
        late = time.monotonic() - self._last_save >= self._every_s
        due = self._world.is_root and (late or self.is_due(chunk.first, chunk.stop))
        flags = (not chunk.finite, is_asked(), due)
        figures = (chunk.elapsed_s, chunk.exchange_s, chunk.count, chunk.loss * chunk.count)
        columns = self._world.gather_rows(np.array([*flags, *figures], np.float64)).T
        diverged, self.stopping, save = (bool(column.any()) for column in columns[:3])
        by_rank = ByRank(*columns[3:])
        return Decision(float(by_rank.elapsed_s.max()), diverged, self.stopping, save, by_rank)

    def saved(self) -> None:
        """Restart the clock after a checkpoint was written."""
        self._last_save = time.monotonic()
