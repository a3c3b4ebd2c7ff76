"""What the last seconds of a training came to: its rate, its loss, and which rank the others wait for.

No clocks are compared. A chunk of steps ends for all ranks together, so that what a rank does not spend in
exchanges it computes; and the rank that computes longest is the one that the others wait for.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

WINDOW_S = 5.0
"""Seconds of training over which figures are taken: long enough to be read, short enough to be of now."""
WAITING = 0.10
"""Share of the time that the others must wait before a rank is called a straggler,"""
MARGIN = 1 / 3
"""which itself waits for less than this part of what they do,"""
SPELL_S, IN_A_ROW = 0.4, 2
"""in so many spells of at least this many seconds in a row."""


@dataclass(frozen=True)
class ByRank:
    """Chunks of steps as each rank saw them: float64 (ranks,), in rank order.

    Attributes:
        elapsed_s: What they took.
        exchange_s: Of that, in exchanges with other ranks, waiting included; NaN where that is not known.
        count: Examples, each counted on one rank.
        loss: Its sum over them.
    """

    elapsed_s: np.ndarray
    exchange_s: np.ndarray
    count: np.ndarray
    loss: np.ndarray

    def __add__(self, other: ByRank) -> ByRank:
        return ByRank(
            self.elapsed_s + other.elapsed_s,
            self.exchange_s + other.exchange_s,
            self.count + other.count,
            self.loss + other.loss,
        )

    @property
    def busy(self) -> np.ndarray:
        """Share of the time that each rank computed; NaN if not known."""
        return np.asarray((self.elapsed_s - self.exchange_s) / self.elapsed_s.max())

    @property
    def waiting(self) -> np.ndarray:
        """Share of the time that each rank waited for the one that computes longest; NaN if not known."""
        return np.asarray(self.busy.max() - self.busy)


class Pace:
    """Takes the chunks of a run as they come, on the root; ``bool`` of it is whether there were any.

    They are gathered into spells, as an epoch may begin with a chunk that is short, or be short itself.
    """

    def __init__(self) -> None:
        self._spells: deque[ByRank] = deque(maxlen=round(WINDOW_S / SPELL_S))
        self._spell: ByRank | None = None
        self._streak = np.zeros(0, int)

    def add(self, chunk: ByRank) -> None:
        spell = self._spell = chunk if self._spell is None else self._spell + chunk
        if spell.elapsed_s.max() >= SPELL_S:
            slow = slowing(spell.waiting)
            self._streak = (self._streak + 1) * slow if len(self._streak) else slow.astype(int)
            self._spells.append(spell)
            self._spell = None
            while len(self._spells) > 1 and self._total.elapsed_s.max() > WINDOW_S:
                self._spells.popleft()

    @property
    def _total(self) -> ByRank:
        first, *others = [*self._spells, *([self._spell] if self._spell else [])]
        return sum(others, first)

    def __bool__(self) -> bool:
        return bool(self._spells or self._spell) and bool(self._total.count.sum())

    @property
    def images_per_s(self) -> np.ndarray:
        """Of each rank: float64 (ranks,)."""
        return np.asarray(self._total.count / self._total.elapsed_s.max())

    @property
    def loss(self) -> float:
        """Mean over the examples of all ranks."""
        return float(self._total.loss.sum() / self._total.count.sum())

    @property
    def communication(self) -> float | None:
        """Share of the time in exchanges, waiting included: the mean over the ranks; None if not known."""
        share = float(1 - self._total.busy.mean())
        return None if np.isnan(share) else share

    @property
    def waiting(self) -> np.ndarray | None:
        """Share of the time that each rank waited for a slower one: float64 (ranks,); None if not known."""
        share = self._total.waiting
        return None if np.isnan(share).any() else share

    @property
    def stragglers(self) -> list[int]:
        """The ranks that the others wait for, and have for a while."""
        return [int(rank) for rank in np.flatnonzero(self._streak >= IN_A_ROW)]


def slowing(waiting: np.ndarray) -> np.ndarray:
    """Which ranks the others wait for.

    Args:
        waiting: float64 (ranks,): share of the time that each waited.

    Returns:
        bool (ranks,): where the median of the others is above ``WAITING``, and the rank's own below
        ``MARGIN`` times that.
    """
    if len(waiting) < 2 or not waiting.max() > WAITING:
        return np.zeros(len(waiting), bool)
    ranked = np.sort(waiting)
    place = np.argsort(np.argsort(waiting))
    last = len(waiting) - 2
    low, high = (np.where(place <= k, ranked[k + 1], ranked[k]) for k in (last // 2, (last + 1) // 2))
    others = (low + high) / 2
    return np.asarray((others > WAITING) & (waiting < MARGIN * others))
