"""Global order of an epoch, and the examples that a rank visits in each of its steps.

A global batch of b examples takes one example from each of b contiguous ranges (strata) of the training set,
in an order that is shuffled anew within each range in every epoch. So batch k of an epoch is a function of
the seed, the epoch and k alone, whatever the number of ranks, and the rank that holds a range of the training
set holds a nearly equal part of every batch: b / size examples, exactly if size divides b.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpi_train.data.shards import balanced_range


def steps_of_epoch(num_examples: int, batch_size: int) -> int:
    """Return the number of global batches of an epoch; the last one may be smaller."""
    return -(-num_examples // batch_size)


def epoch_batches(
    key: Sequence[int], num_examples: int, batch_size: int, start: int = 0, stop: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of an epoch, as far as it concerns the examples from ``start`` to ``stop``.

    Args:
        key: Seed and epoch, and a further number that distinguishes independent orders (0: none).
        num_examples, batch_size: Examples of all ranks, and size of a global batch.
        start, stop: Range of examples (default: all).

    Returns:
        int32 (stop - start,), these examples in the order of their steps, as positions in the range; and
        int64 (steps,), the number of them in each step.
    """
    stop = num_examples if stop is None else stop
    num_strata = min(batch_size, num_examples)
    num_steps = steps_of_epoch(num_examples, num_strata)
    bounds = num_examples * np.arange(num_strata + 1) // num_strata
    mine = np.flatnonzero((bounds[:-1] < stop) & (bounds[1:] > start))
    # One row for each stratum, whose k-th example is in step k. Sizes of strata differ by one at most.
    table = np.full((len(mine), num_steps), -1, np.int32)
    for row, stratum in zip(table, mine.tolist(), strict=True):
        low, high = bounds[stratum : stratum + 2].tolist()
        rng = np.random.default_rng([*key[:2], stratum, *key[2:]])
        row[: high - low] = low + rng.permutation(high - low)
    visits = table.T
    in_range = (visits >= start) & (visits < stop)
    return visits[in_range] - np.int32(start), in_range.sum(axis=1)


@dataclass(frozen=True)
class Steps:
    """Steps of an epoch for one rank, laid out for the graph that runs them.

    One device of the rank computes one part of a step.

    Attributes:
        order: int32 (n,), examples of the rank in the order of their steps.
        begins, sizes: int32 (steps, parts, 1). Part ``p`` of step ``t`` takes ``sizes[t, p]`` positions of
            ``order``, from ``begins[t, p]`` on.
        shares: float32 (steps, parts): fraction of the global batch that a part holds. 0 for a part without
            examples in the step. That part computes on one example that does not count, because BatchNorm
            makes NaN of an empty batch.
        batches: float32 (steps,): examples of each global batch.
        num_ranks: Number of ranks that share the batches.
    """

    order: np.ndarray
    begins: np.ndarray
    sizes: np.ndarray
    shares: np.ndarray
    batches: np.ndarray
    num_ranks: int

    def __len__(self) -> int:
        return len(self.batches)

    def num_examples(self, first: int, stop: int) -> int:
        """Return the number of the rank's examples that count in the steps from ``first`` to ``stop``."""
        part = slice(first, stop)
        return int(self.sizes[part][self.shares[part] > 0].sum())

    @property
    def regular_parts(self) -> tuple[tuple[int, float], ...] | None:
        """Size and share of each part, if all steps but the last agree in them; else None."""
        sizes, shares = self.sizes[..., 0], self.shares
        if (sizes[:-1] != sizes[0]).any() or (shares[:-1] != shares[0]).any():
            return None
        return tuple(zip(sizes[0].tolist(), shares[0].tolist(), strict=True))

    def regular_rows(self) -> np.ndarray:
        """Return the examples of all steps but the last, given regular parts: int32 (steps - 1, n).

        A row holds the parts of its step one after another.
        """
        parts = enumerate(self.sizes[0, :, 0])
        return np.hstack([self.order[self.begins[:-1, part] + np.arange(size)] for part, size in parts])


def plan_steps(
    key: Sequence[int],
    num_examples: int,
    batch_size: int,
    *,
    rank: int = 0,
    size: int = 1,
    num_parts: int = 1,
) -> Steps:
    """Lay out an epoch of ``num_examples`` (of all ranks) in steps of ``batch_size`` (global) for one rank.

    Args:
        key: See ``epoch_batches``.
        num_examples, batch_size: Examples of all ranks, and size of a global batch.
        rank, size: The rank, and the number of ranks, among which the examples are divided.
        num_parts: Number of devices of the rank, among which its part of each batch is divided evenly.
    """
    start, stop = balanced_range(num_examples, size, rank)
    order, counts = epoch_batches(key, num_examples, batch_size, start, stop)
    batches = np.full(len(counts), min(batch_size, num_examples))
    batches[-1] = num_examples - (len(counts) - 1) * batches[0]
    # Positions in the order at which the parts of each step begin and end: (steps, parts + 1).
    edges = (np.cumsum(counts) - counts)[:, np.newaxis]
    edges = edges + counts[:, np.newaxis] * np.arange(num_parts + 1) // num_parts
    sizes = np.diff(edges, axis=1)
    return Steps(
        order=order,
        begins=np.clip(edges[:, :-1], 0, max(0, stop - start - 1))[..., np.newaxis].astype(np.int32),
        sizes=np.maximum(sizes, 1)[..., np.newaxis].astype(np.int32),
        shares=(sizes / batches[:, np.newaxis]).astype(np.float32),
        batches=batches.astype(np.float32),
        num_ranks=size,
    )
