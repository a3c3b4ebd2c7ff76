from __future__ import annotations

import numpy as np
import pytest

from mpi_train.data.partition import IID, KINDS, Partition, partition
from mpi_train.runtime.errors import UsageError

LABELS = np.random.default_rng(0).integers(0, 10, 1003).astype(np.uint8)
ALPHA = {"iid": None, "dirichlet": 0.3, "classes": None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_shards", [1, 4, 7])
def test_each_example_goes_to_one_shard(kind: str, num_shards: int) -> None:
    parts = partition(LABELS, num_shards, 5, Partition(kind, ALPHA[kind]))
    assert len(parts) == num_shards
    assert all(len(part) for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: str) -> None:
    first, again, other = (partition(LABELS, 4, seed, Partition(kind, ALPHA[kind])) for seed in (5, 5, 6))
    for mine, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(mine, same)
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_iid_is_even_and_shuffled() -> None:
    parts = partition(LABELS, 4, 5, IID)
    assert [len(part) for part in parts] == [251, 251, 251, 250]
    assert all(np.any(np.diff(part) < 0) for part in parts)


def test_a_smaller_alpha_skews_more() -> None:
    def skew(alpha: float) -> float:
        """Mean over the shards of the share of their most frequent class."""
        parts = partition(LABELS, 5, 5, Partition("dirichlet", alpha))
        return float(np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts]))

    assert skew(0.1) > skew(1.0) > skew(100.0)
    assert skew(0.1) > 0.3
    assert skew(100.0) < 0.2


def test_dirichlet_shards_are_shuffled_too() -> None:
    for part in partition(LABELS, 4, 5, Partition("dirichlet", 0.5)):
        assert np.any(np.diff(LABELS[part].astype(int)) < 0)
        assert np.any(np.diff(part) < 0)


def test_by_classes_each_shard_has_two_runs_of_them() -> None:
    parts = partition(LABELS, 5, 5, Partition("classes"))
    assert {len(part) for part in parts} <= {200, 201, 202}
    # 10 runs of about 100 examples over 10 classes of about 100: a run touches two classes, or three.
    assert max(len(np.unique(LABELS[part])) for part in parts) <= 6
    assert all(np.any(np.diff(LABELS[part].astype(int)) < 0) for part in parts)
    with pytest.raises(UsageError, match=r"expected 1 to 501 .* with --partition classes"):
        partition(LABELS, 600, 5, Partition("classes"))


def test_gives_up_where_some_shard_stays_empty() -> None:
    with pytest.raises(UsageError, match="leaves no shard empty"):
        partition(np.zeros(50, np.uint8), 20, 5, Partition("dirichlet", 1e-3))


@pytest.mark.parametrize("num_shards", [0, -1, 1004])
def test_refuses_numbers_of_shards_that_leave_some_empty(num_shards: int) -> None:
    with pytest.raises(UsageError, match="--shards: expected 1 to 1003"):
        partition(LABELS, num_shards, 5, IID)


@pytest.mark.parametrize(
    ("kind", "alpha", "message"),
    [
        ("even", None, "--partition: expected one of iid, dirichlet, classes. Got: even"),
        ("iid", 0.5, "applies to --partition dirichlet only"),
        ("dirichlet", None, "--alpha: expected a number above 0"),
        ("dirichlet", 0.0, "--alpha: expected a number above 0"),
        ("dirichlet", float("nan"), "--alpha: expected a number above 0"),
        ("dirichlet", float("inf"), "--alpha: expected a number above 0"),
    ],
)
def test_refuses_what_is_no_partition(kind: str, alpha: float | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Partition(kind, alpha)
