"""In which order, and in which steps, a rank visits its examples.

Every rank goes through its own part of the data once an epoch, in an order that follows from the
seed, the epoch and the rank. The steps are laid out so that each global batch has exactly the asked
size (the last one of an epoch what is left), whatever the number of ranks and the sizes of their
parts: what is left to do is always balanced over the ranks to within one example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpi_train.data.shards import balanced_range


def epoch_order(seed: int, epoch: int, rank: int, num_examples: int, leg: int = 0) -> np.ndarray:
    """Permutation of a rank's ``num_examples`` examples for one leg of an epoch: int32 (num_examples,)."""
    key = [seed, epoch, rank, leg] if leg else [seed, epoch, rank]
    return np.random.default_rng(key).permutation(num_examples).astype(np.int32)


@dataclass(frozen=True)
class Leg:
    """Steps of an epoch that were taken on one number of ranks.

    An epoch that nobody interrupts has one leg. When it goes on after an interruption on another number
    of ranks, what is left of it is dealt to them anew, and a leg begins.
    """

    size: int
    num_steps: int


def dealt(
    num_examples: int, batch_size: int, seed: int, epoch: int, legs: Sequence[Leg], rank: int, size: int
) -> np.ndarray:
    """The examples that are left of an epoch after ``legs``, those of one rank of ``size``.

    Args:
        num_examples: Of all ranks together.
        batch_size: Global.
        seed, epoch: As for ``epoch_order``.
        legs: What was done.
        rank, size: Whose part of how many.

    Returns:
        int64 (n,): numbers of examples in the data set, ascending. The parts of all ranks are within one
        example of each other in size, and together they are each example that no leg has visited, once.
    """
    left = np.arange(num_examples)
    for number, leg in enumerate(legs):
        visited = []
        for other in range(leg.size):
            start, stop = balanced_range(len(left), leg.size, other)
            order = epoch_order(seed, epoch, other, stop - start, number)
            steps = plan_steps(len(left), batch_size, rank=other, size=leg.size)[: leg.num_steps]
            visited.append(start + order[: steps.num_examples])
        left = np.delete(left, np.concatenate(visited))
    return left[slice(*balanced_range(len(left), size, rank))]


@dataclass(frozen=True)
class Steps:
    """The steps of an epoch as one rank sees them, laid out for the graph that runs them.

    A part is what one of the rank's devices takes of a step.

    Attributes:
        begins, sizes: int32 (steps, parts, 1): step ``t`` takes, in part ``p``, ``sizes[t, p]`` positions
            of the rank's order from ``begins[t, p]`` on.
        scales: float32 (steps, parts): what a sum over the part's examples is multiplied by, so that
            the mean over the ranks is the mean over the global batch. 0 for a part that has no example
            in the step: it computes on one that does not count, as BatchNorm makes NaN of an empty batch.
    """

    begins: np.ndarray
    sizes: np.ndarray
    scales: np.ndarray

    def __len__(self) -> int:
        return len(self.scales)

    def __getitem__(self, steps: slice) -> Steps:
        return Steps(self.begins[steps], self.sizes[steps], self.scales[steps])

    @property
    def num_examples(self) -> int:
        """Those that count."""
        return int(self.sizes[self.scales > 0].sum())

    @property
    def regular_parts(self) -> tuple[tuple[int, float], ...] | None:
        """Size and scale of each part, where they are the same in all steps but the last; else None."""
        sizes, scales = self.sizes[..., 0], self.scales
        if (sizes[:-1] != sizes[0]).any() or (scales[:-1] != scales[0]).any():
            return None
        return tuple(zip(sizes[0].tolist(), scales[0].tolist(), strict=True))

    def regular_rows(self, order: np.ndarray) -> np.ndarray:
        """The examples of all steps but the last, where these are regular: int32 (steps - 1, n).

        Args:
            order: int32, as from ``epoch_order``; the parts of a step are one after another in its row.
        """
        sizes = self.sizes[0, :, 0]
        return np.concatenate(
            [order[self.begins[:-1, part] + np.arange(size)] for part, size in enumerate(sizes)], axis=1
        )


def plan_steps(
    num_examples: int, batch_size: int, *, rank: int = 0, size: int = 1, num_parts: int = 1
) -> Steps:
    """Lays ``num_examples`` (of all ranks) out in steps of ``batch_size`` (global) for one rank."""
    ends = np.append(np.arange(0, num_examples, batch_size), num_examples)
    left = num_examples - ends
    own_left = left // size + (rank < left % size)
    start, stop = balanced_range(num_examples, size, rank)
    own_ends = stop - start - own_left
    num_own = np.diff(own_ends)[:, np.newaxis]
    edges = own_ends[:-1, np.newaxis] + num_own * np.arange(num_parts + 1) // num_parts
    sizes = np.diff(edges, axis=1)
    scales = np.where(sizes > 0, size / np.diff(ends)[:, np.newaxis], 0)
    return Steps(
        begins=np.clip(edges[:, :-1], 0, max(0, stop - start - 1))[..., np.newaxis].astype(np.int32),
        sizes=np.maximum(sizes, 1)[..., np.newaxis].astype(np.int32),
        scales=scales.astype(np.float32),
    )
