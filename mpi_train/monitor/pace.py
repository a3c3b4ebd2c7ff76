"""Pace of a training over the last seconds: its rate, its loss, and the ranks that the others wait for.

No clocks are compared. A chunk of steps ends for all ranks together, so a rank computes in the time that it
does not spend in exchanges, and the others wait for the rank that computes longest.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import reduce

import numpy as np

WINDOW_S = 5.0
"""Seconds of training over which figures are taken."""
WAITING = 0.10
"""Fraction of the time that the others must wait before a rank is called a straggler."""
MARGIN = 1 / 3
"""Fraction of the others' waiting time below which a straggler's own waiting time must be."""
SPELL_S, IN_A_ROW = 0.4, 2
"""Shortest duration of a spell in seconds, and the number of slow spells in a row that make a straggler."""


@dataclass(frozen=True)
class ByRank:
    """Chunks of steps as each rank saw them: float64 (ranks,), in rank order.

    Attributes:
        elapsed_s: Duration of the chunks.
        exchange_s: Time of that in exchanges with other ranks, waiting included; NaN if not known.
        count: Examples, each counted on one rank.
        loss: Sum of the loss over these examples.
    """

    elapsed_s: np.ndarray
    exchange_s: np.ndarray
    count: np.ndarray
    loss: np.ndarray

    def __add__(self, other: ByRank) -> ByRank:
        return ByRank(*map(np.add, vars(self).values(), vars(other).values()))

    @property
    def busy(self) -> np.ndarray:
        """Fraction of the time that each rank computed; NaN if not known."""
        return np.asarray((self.elapsed_s - self.exchange_s) / self.elapsed_s.max())

    @property
    def waiting(self) -> np.ndarray:
        """Fraction of the time that each rank waited for the one that computes longest; NaN if not known."""
        return np.asarray(self.busy.max() - self.busy)


class Pace:
    """Figures of the last seconds, taken from chunks of steps on the root; True if there were any examples.

    Chunks are joined into spells, as an epoch may begin with a short chunk, or be short itself.
    """

    def __init__(self) -> None:
        self._spells: deque[ByRank] = deque()
        self._streak = np.zeros(1, int)

    def add(self, chunk: ByRank) -> None:
        """Take a chunk of steps."""
        if self._spells and self._spells[-1].elapsed_s.max() < SPELL_S:
            self._spells[-1] += chunk
        else:
            self._spells.append(chunk)
        if self._spells[-1].elapsed_s.max() >= SPELL_S:
            self._streak = (self._streak + 1) * slowing(self._spells[-1].waiting)
            while len(self._spells) > 1 and self._total.elapsed_s.max() > WINDOW_S:
                self._spells.popleft()

    @property
    def _total(self) -> ByRank:
        return reduce(ByRank.__add__, self._spells)

    def __bool__(self) -> bool:
        return bool(self._spells) and bool(self._total.count.sum())

    @property
    def images_per_s(self) -> np.ndarray:
        """Rate of each rank: (ranks,)."""
        return np.asarray(self._total.count / self._total.elapsed_s.max())

    @property
    def loss(self) -> float:
        """Mean loss over the examples of all ranks."""
        return float(self._total.loss.sum() / self._total.count.sum())

    @property
    def communication(self) -> float | None:
        """Fraction of the time in exchanges, waiting included: mean over the ranks; None if not known."""
        fraction = float(1 - self._total.busy.mean())
        return None if np.isnan(fraction) else fraction

    @property
    def waiting(self) -> np.ndarray | None:
        """Fraction of the time that each rank waited: (ranks,); None if not known."""
        fraction = self._total.waiting
        return None if np.isnan(fraction).any() else fraction

    @property
    def stragglers(self) -> list[int]:
        """Ranks that the others have waited for during the last spells."""
        return [int(rank) for rank in np.flatnonzero(self._streak >= IN_A_ROW)]


def slowing(waiting: np.ndarray) -> np.ndarray:
    """Find the ranks that the others wait for.

    Args:
        waiting: Fraction of the time that each rank waited: float64 (ranks,).

    Returns:
        bool (ranks,): True where the median of the other ranks is above ``WAITING``, and the rank's own
        value is below ``MARGIN`` times that median.
    """
    slow = np.zeros(len(waiting), bool)
    if len(waiting) > 1 and waiting.max() > WAITING:
        for rank in np.flatnonzero(waiting < MARGIN * waiting.max()):
            others = np.median(np.delete(waiting, rank))
            slow[rank] = others > WAITING and waiting[rank] < MARGIN * others
    return slow
