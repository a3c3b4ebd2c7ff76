"""Sums over an epoch or a part of one: loss, correct predictions, examples, and the times of each rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RankTimes:
    """Training time of one rank in one epoch, in four parts, and the bytes that it sent.

    Attributes:
        compute_s: Time in the graph: batches, gradients, updates.
        moving_s: Time in exchanges while bytes moved. In an all-reduce: the time the last rank to arrive
            needed.
        waiting_s: Time in exchanges spent waiting for other ranks.
        host_s: Time between chunks of steps: progress, agreement on the next chunk.
        sent_bytes: Weights, gradients or activations sent to other ranks.
        hidden_s: Time of exchanges that overlapped with computation. It is in none of the four parts.
    """

    compute_s: float
    moving_s: float
    waiting_s: float
    host_s: float
    sent_bytes: int = 0
    hidden_s: float = 0.0

    @property
    def parts_s(self) -> tuple[float, float, float, float]:
        """The four parts, which add up to the training time."""
        return self.compute_s, self.moving_s, self.waiting_s, self.host_s


def sum_of(parts: Iterable[Sequence[RankTimes]]) -> list[RankTimes]:
    """Add up the times of each rank over parts of a run; empty if the number of ranks changed."""
    everyone = list(parts)
    if len({len(ranks) for ranks in everyone}) != 1:
        return []
    rows = ([dataclasses.astuple(part) for part in own] for own in zip(*everyone, strict=True))
    return [RankTimes(*map(sum, zip(*row, strict=True))) for row in rows]


@dataclass(frozen=True, kw_only=True)
class EpochTotals:
    """Totals of the training of an epoch, or of a part of one, over all ranks.

    Attributes:
        loss, correct: Sums over ``count`` examples, taken while training.
        train_s: Seconds of the slowest rank.
        by_rank: Times of each rank, in rank order; empty if the strategy cannot measure them.
    """

    loss: float = 0.0
    correct: float = 0.0
    count: int = 0
    train_s: float = 0.0
    by_rank: list[RankTimes] = field(default_factory=list)

    def __add__(self, other: EpochTotals) -> EpochTotals:
        """Add two parts. ``by_rank`` is empty if they ran on different numbers of ranks."""
        return EpochTotals(
            loss=self.loss + other.loss,
            correct=self.correct + other.correct,
            count=self.count + other.count,
            train_s=self.train_s + other.train_s,
            by_rank=sum_of(part.by_rank for part in (self, other) if part.count),
        )

    @property
    def mean_loss(self) -> float:
        """Mean loss of an example."""
        return self.loss / self.count

    @property
    def accuracy(self) -> float:
        """Fraction of correct predictions."""
        return self.correct / self.count

    @property
    def sync_s(self) -> float:
        """Time in exchanges with other ranks, of the rank with the most."""
        return max((rank.moving_s + rank.waiting_s for rank in self.by_rank), default=0.0)
