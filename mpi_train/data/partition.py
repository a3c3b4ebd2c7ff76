"""Assignment of examples to shards: even, or skewed by label as in federated learning.

The result depends on labels, seed and number of shards only, not on the number of readers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mpi_train.runtime.errors import UsageError

KINDS = ("iid", "dirichlet", "classes")

_STREAM = 0x5A4D
"""Number that separates these random numbers from other ones drawn with the same seed."""

_MAX_DRAWS = 100


@dataclass(frozen=True)
class Partition:
    """Method that divides a training split.

    Attributes:
        kind: ``iid``, shuffled into equal parts; ``dirichlet``, skewed by label; or ``classes``, for each
            shard two runs of equal length of the examples sorted by label, which is about two classes.
        alpha: Parameter of ``dirichlet`` only: the smaller, the fewer shards share a class.

    Raises:
        UsageError: The kind is unknown, or does not fit the alpha.
    """

    kind: str = "iid"
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"--partition: expected one of {', '.join(KINDS)}. Got: {self.kind}")
        if self.kind != "dirichlet" and self.alpha is not None:
            raise UsageError(
                f"--alpha applies to --partition dirichlet only. Got: --alpha {self.alpha} with {self.kind}",
                remedy="--partition dirichlet, or leave --alpha out",
            )
        if self.kind == "dirichlet" and (self.alpha is None or not 0 < self.alpha < math.inf):
            raise UsageError(f"--alpha: expected a number above 0. Got: {self.alpha}")


IID = Partition()


def partition(labels: np.ndarray, num_shards: int, seed: int, method: Partition) -> list[np.ndarray]:
    """Divide examples with these labels, integers (n,), over shards; equal seeds give equal shards.

    For ``dirichlet`` each class is divided over the shards in proportions drawn from Dir(alpha), as in
    Yurochkin et al. 2019 (arXiv:1905.12022). ``classes`` is the method of McMahan et al. 2017
    (arXiv:1602.05629), section 3.

    Returns:
        Indices of the examples of each shard, int64, shuffled. Each index occurs once, and no shard is empty;
        with ``iid`` sizes differ by at most 1.

    Raises:
        UsageError: There are fewer examples than shards, or each draw left a shard empty.
    """
    most = len(labels) // 2 if method.kind == "classes" else len(labels)
    if not 1 <= num_shards <= most:
        raise UsageError(
            f"--shards: expected 1 to {most} for {len(labels)} examples with --partition {method.kind}. "
            f"Got: {num_shards}",
            remedy=f"--shards {max(1, min(num_shards, most))}",
        )
    rng = np.random.default_rng([seed, _STREAM])
    order = rng.permutation(len(labels))
    if method.kind == "classes":
        runs = np.array_split(order[np.argsort(labels[order], kind="stable")], 2 * num_shards)
        pairs = rng.permutation(2 * num_shards).reshape(num_shards, 2)
        return [rng.permutation(np.concatenate([runs[first], runs[second]])) for first, second in pairs]
    if method.alpha is None:
        return np.array_split(order, num_shards)
    for _ in range(_MAX_DRAWS):
        shard_of = _skewed(rng, labels[order], num_shards, method.alpha)
        if np.all(np.bincount(shard_of, minlength=num_shards)):
            return [order[shard_of == shard] for shard in range(num_shards)]
    raise UsageError(
        f"--alpha: expected one that leaves no shard empty. Got: {method.alpha} with {num_shards} shards, "
        f"where each of {_MAX_DRAWS} draws left some empty",
        remedy="a larger --alpha, or fewer --shards",
    )


def _skewed(rng: np.random.Generator, labels: np.ndarray, num_shards: int, alpha: float) -> np.ndarray:
    """Return the shard of each example, (n,): each class is divided in fractions drawn from Dir(alpha)."""
    shard_of = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ends = np.cumsum(rng.dirichlet(np.full(num_shards, alpha))) * len(members)
        # Position i of the class belongs to the shard whose interval contains the middle of [i, i + 1).
        shard_of[members] = np.searchsorted(ends[:-1], np.arange(len(members)) + 0.5)
    return shard_of
