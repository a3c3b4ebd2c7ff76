"""Which example goes to which shard: evenly, or skewed by label as in federated learning.

The result follows from labels, seed and number of shards alone, never from who will read them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mpi_train.runtime.errors import UsageError

Kind = Literal["iid", "dirichlet", "classes"]
KINDS: tuple[Kind, ...] = ("iid", "dirichlet", "classes")

# Keeps the stream apart from those that draw images or order the epochs from the same seed.
_STREAM = 0x5A4D
_MAX_DRAWS = 100


@dataclass(frozen=True)
class Partition:
    """How a training split is cut.

    Attributes:
        kind: ``iid``, shuffled into equal parts; ``dirichlet``, skewed by label; or ``classes``, two runs of
            equal length for each shard of the examples in the order of their labels: about two classes.
        alpha: For ``dirichlet`` alone: the smaller, the fewer shards share a class.

    Raises:
        UsageError: an unknown kind, or an alpha that does not go with it.
    """

    kind: str = "iid"
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"--partition: expected one of {', '.join(KINDS)}. Got: {self.kind}")
        if self.kind != "dirichlet" and self.alpha is not None:
            raise UsageError(
                f"--alpha: only --partition dirichlet has one. Got: --alpha {self.alpha} with {self.kind}",
                remedy="--partition dirichlet, or leave --alpha out",
            )
        if self.kind == "dirichlet" and (self.alpha is None or not 0 < self.alpha < math.inf):
            raise UsageError(f"--alpha: expected a number above 0. Got: {self.alpha}")


IID = Partition()


def partition(
    labels: np.ndarray, num_shards: int, seed: int, kind: str = "iid", alpha: float | None = None
) -> list[np.ndarray]:
    """Deals examples out to shards.

    Args:
        labels: Class numbers, integers (n,).
        num_shards: Number of parts.
        seed: The same seed gives the same parts.
        kind, alpha: See ``Partition``. For ``dirichlet`` each class is divided over the shards in
            proportions drawn from Dir(alpha), as in Yurochkin et al. 2019 (arXiv:1905.12022). ``classes``
            is that of McMahan et al. 2017 (arXiv:1602.05629), section 3.

    Returns:
        For each shard the indices of its examples, int64, shuffled. Each index occurs once, no shard
        is empty; with ``iid`` sizes differ by at most 1.

    Raises:
        UsageError: fewer examples than shards, or no draw without an empty shard.
    """
    asked = Partition(kind, alpha)
    if not 1 <= num_shards <= len(labels):
        raise UsageError(
            f"--shards: expected 1 to {len(labels)}, the number of examples. Got: {num_shards}",
            remedy=f"--shards {max(1, min(num_shards, len(labels)))}",
        )
    rng = np.random.default_rng([seed, _STREAM])
    order = rng.permutation(len(labels))
    if asked.kind == "classes":
        runs = np.array_split(order[np.argsort(labels[order], kind="stable")], 2 * num_shards)
        dealt = rng.permutation(2 * num_shards)
        shards = [np.concatenate([runs[i] for i in dealt[2 * s : 2 * s + 2]]) for s in range(num_shards)]
        if not all(len(shard) for shard in shards):
            raise UsageError(
                f"--shards: expected at most {len(labels) // 2} with --partition classes. Got: {num_shards}"
            )
        return [rng.permutation(shard) for shard in shards]
    if asked.alpha is None:
        return np.array_split(order, num_shards)
    for _ in range(_MAX_DRAWS):
        shard_of = _skewed(rng, labels[order], num_shards, asked.alpha)
        if np.all(np.bincount(shard_of, minlength=num_shards)):
            return [order[shard_of == shard] for shard in range(num_shards)]
    raise UsageError(
        f"--alpha: expected one that leaves no shard empty. Got: {asked.alpha} with {num_shards} "
        f"shards, where {_MAX_DRAWS} draws all left some empty",
        remedy="a larger --alpha, or fewer --shards",
    )


def _skewed(rng: np.random.Generator, labels: np.ndarray, num_shards: int, alpha: float) -> np.ndarray:
    """A shard for each example, (n,): of each class, a share drawn from Dir(alpha) for each shard."""
    shard_of = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ends = np.cumsum(rng.dirichlet(np.full(num_shards, alpha))) * len(members)
        # Position i of the class belongs to the shard whose share covers the middle of [i, i + 1).
        shard_of[members] = np.searchsorted(ends[:-1], np.arange(len(members)) + 0.5)
    return shard_of
