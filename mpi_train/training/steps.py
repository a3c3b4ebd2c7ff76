"""Sampling order and step layout: the examples that a rank visits in each step of an epoch.

Every rank visits its own part of the data once an epoch, in an order that follows from the seed, the epoch
and the rank. Each global batch has exactly the requested size, except the last one of an epoch, for any
number of ranks and any sizes of their parts: the remaining work stays balanced over the ranks to one example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpi_train.data.shards import balanced_range


def epoch_order(seed: int, epoch: int, rank: int, num_examples: int, segment: int = 0) -> np.ndarray:
    """Return a permutation of a rank's examples for one segment of an epoch: int32 (num_examples,)."""
    key = [seed, epoch, rank, segment] if segment else [seed, epoch, rank]
    return np.random.default_rng(key).permutation(num_examples).astype(np.int32)


@dataclass(frozen=True)
class Segment:
    """Finished steps of an epoch that ran on one number of ranks, ``size``.

    If an epoch resumes on another number of ranks, its remaining examples are dealt to them anew, and a new
    segment begins.
    """

    size: int
    num_steps: int


def dealt(
    num_examples: int,
    batch_size: int,
    seed: int,
    epoch: int,
    segments: Sequence[Segment],
    rank: int,
    size: int,
) -> np.ndarray:
    """Deal the examples of an epoch, of all ranks, that remain after ``segments`` to ``size`` ranks.

    Returns:
        int64 (n,): ascending indices into the data set. The parts of all ranks differ by at most one example
        in size. Together they hold each example once that no segment has visited.
    """
    left = np.arange(num_examples)
    for number, segment in enumerate(segments):
        visited = []
        for other in range(segment.size):
            start, stop = balanced_range(len(left), segment.size, other)
            order = epoch_order(seed, epoch, other, stop - start, number)
            steps = plan_steps(len(left), batch_size, rank=other, size=segment.size)[: segment.num_steps]
            visited.append(start + order[: steps.num_examples])
        left = np.delete(left, np.concatenate(visited))
    return left[slice(*balanced_range(len(left), size, rank))]


@dataclass(frozen=True)
class Steps:
    """Steps of an epoch for one rank, laid out for the graph that runs them.

    One device of the rank computes one part of a step.

    Attributes:
        begins, sizes: int32 (steps, parts, 1). Part ``p`` of step ``t`` takes ``sizes[t, p]`` positions of
            the rank's order, from ``begins[t, p]`` on.
        scales: float32 (steps, parts). Factor of a sum over the examples of a part, so that the mean over
            the ranks is the mean over the global batch. 0 for a part without examples in the step. That part
            computes on one example that does not count, because BatchNorm makes NaN of an empty batch.
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
        """Number of examples that count."""
        return int(self.sizes[self.scales > 0].sum())

    @property
    def regular_parts(self) -> tuple[tuple[int, float], ...] | None:
        """Size and scale of each part, if all steps but the last agree in them; else None."""
        sizes, scales = self.sizes[..., 0], self.scales
        if (sizes[:-1] != sizes[0]).any() or (scales[:-1] != scales[0]).any():
            return None
        return tuple(zip(sizes[0].tolist(), scales[0].tolist(), strict=True))

    def regular_rows(self, order: np.ndarray) -> np.ndarray:
        """Return the examples of all steps but the last, given regular parts: int32 (steps - 1, n).

        A row holds the parts of its step one after another.
        """
        parts = enumerate(self.sizes[0, :, 0])
        return np.hstack([order[self.begins[:-1, part] + np.arange(size)] for part, size in parts])


def plan_steps(
    num_examples: int, batch_size: int, *, rank: int = 0, size: int = 1, num_parts: int = 1
) -> Steps:
    """Lay out ``num_examples`` (of all ranks) in steps of ``batch_size`` (global) for one rank."""
    # Examples that remain after each step, of all ranks and of this rank. A rank's share of the remaining
    # work decides its part of a step, so that the parts of a step differ by at most one example.
    ends = np.append(np.arange(0, num_examples, batch_size), num_examples)
    left = num_examples - ends
    own_left = left // size + (rank < left % size)
    start, stop = balanced_range(num_examples, size, rank)
    own_ends = stop - start - own_left
    num_own = np.diff(own_ends)[:, np.newaxis]
    # Positions in the rank's order at which the parts of each step begin and end: (steps, parts + 1).
    edges = own_ends[:-1, np.newaxis] + num_own * np.arange(num_parts + 1) // num_parts
    sizes = np.diff(edges, axis=1)
    scales = np.where(sizes > 0, size / np.diff(ends)[:, np.newaxis], 0)
    return Steps(
        begins=np.clip(edges[:, :-1], 0, max(0, stop - start - 1))[..., np.newaxis].astype(np.int32),
        sizes=np.maximum(sizes, 1)[..., np.newaxis].astype(np.int32),
        scales=scales.astype(np.float32),
    )
