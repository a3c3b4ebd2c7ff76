"""In which order, and in which steps, a rank visits its examples.

Every rank goes through its own part of the data once an epoch, in an order that follows from the
seed, the epoch and the rank. The steps are laid out so that each global batch has exactly the asked
size (the last one of an epoch what is left), whatever the number of ranks and the sizes of their
parts: what is left to do is always balanced over the ranks to within one example.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_train.data.shards import balanced_range


def epoch_order(seed: int, epoch: int, rank: int, num_examples: int) -> np.ndarray:
    """Permutation of a rank's ``num_examples`` examples for one epoch: int32 (num_examples,)."""
    return np.random.default_rng([seed, epoch, rank]).permutation(num_examples).astype(np.int32)


@dataclass(frozen=True)
class Steps:
    """The steps of an epoch as one rank sees them.

    Attributes:
        bounds: int32 (steps + 1,): step ``t`` takes positions ``bounds[t]`` to ``bounds[t + 1]`` of
            the rank's order.
        scales: float32 (steps,): what a sum over the rank's examples is multiplied by, so that the
            mean over the ranks is the mean over the global batch.
    """

    bounds: np.ndarray
    scales: np.ndarray

    def __len__(self) -> int:
        return len(self.scales)


def plan_steps(num_examples: int, batch_size: int, *, rank: int = 0, size: int = 1) -> Steps:
    """Lays ``num_examples`` (of all ranks) out in steps of ``batch_size`` (global) for one rank."""
    ends = np.append(np.arange(0, num_examples, batch_size), num_examples)
    left = num_examples - ends
    own_left = left // size + (rank < left % size)
    start, stop = balanced_range(num_examples, size, rank)
    return Steps(
        bounds=(stop - start - own_left).astype(np.int32),
        scales=(size / np.diff(ends)).astype(np.float32),
    )
