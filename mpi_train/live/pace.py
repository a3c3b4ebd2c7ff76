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
IN_A_ROW = 2
"""in so many chunks of steps in a row."""


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
    """Takes the chunks of a run as they come, on the root; ``bool`` of it is whether there were any."""

    def __init__(self) -> None:
        self._chunks: deque[ByRank] = deque()
        self._streak = np.zeros(0, int)

    def add(self, chunk: ByRank) -> None:
        self._chunks.append(chunk)
        while len(self._chunks) > 1 and sum(c.elapsed_s.max() for c in self._chunks) > WINDOW_S:
            self._chunks.popleft()
        self._total = sum(list(self._chunks)[1:], self._chunks[0])
        slow = slowing(chunk.waiting)
        self._streak = (self._streak + 1) * slow if len(self._streak) == len(slow) else slow.astype(int)

    def __bool__(self) -> bool:
        return bool(self._chunks) and bool(self._total.count.sum())

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
        """The ranks that the others have waited for, in several chunks in a row."""
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
