"""The exact all-reduce that is chosen by measuring."""

import numpy as np
import pytest

from mpi_train.collectives import autotune
from mpi_train.collectives.autotune import Choice, fastest
from mpi_train.collectives.config import ExchangeConfig
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.world import World
from mpi_train.training.replicas import check_equal


@pytest.mark.mpi(min_size=2)
def test_what_is_chosen_gives_the_mean(world: World) -> None:
    length = 50_000
    reduce, choice = fastest(world, length)
    assert choice.name in choice.median_s
    assert world.gather_all(choice) == [choice] * world.size
    assert list(choice.median_s) == ["hierarchical", "plain"]  # all ranks of a test are on one node
    vector = np.random.default_rng(world.rank).random(length, np.float32)
    mean = reduce.mean(vector)
    assert np.allclose(mean, world.sum(vector) / world.size, rtol=1e-6)
    check_equal(world, [mean], when="after one")


@pytest.mark.parametrize(
    ("durations", "name"),
    [
        ({"plain": [1.0, 2.0, 9.0], "other": [3.0, 1.5, 1.0]}, "other"),
        ({"plain": [1.0, 1.0, 9.0], "other": [0.97, 0.97, 0.97]}, "plain"),  # too little to change for
        ({"plain": [1.0]}, "plain"),
    ],
)
def test_the_median_decides_and_little_changes_nothing(durations: dict[str, list[float]], name: str) -> None:
    assert autotune._choose(durations).name == name


def test_a_choice_is_told_in_a_line() -> None:
    assert str(Choice("b", {"a": 0.002, "b": 0.0015})) == "a 2.000 ms, b 1.500 ms: b"


def test_a_named_collective_is_not_tuned() -> None:
    with pytest.raises(UsageError, match="--autotune chooses the collective itself"):
        ExchangeConfig(autotune=True, collective="plain")
