"""Settings for speed alone, chosen by measuring."""

import os
from pathlib import Path

import numpy as np
import pytest
from mpi_train.benchmarks.threads import tune

from mpi_train.collectives import autotune
from mpi_train.collectives.autotune import Choice, fastest
from mpi_train.collectives.plain import PlainAllReduce
from mpi_train.runtime.errors import PlatformError, UsageError
from mpi_train.runtime.world import World
from mpi_train.strategies.mpi.config import MpiConfig
from mpi_train.training.replicas import check_equal


@pytest.mark.mpi(min_size=2)
def test_what_is_chosen_gives_the_mean(world: World) -> None:
    length = 50_000
    reduce, choice = fastest(world, length)
    assert choice.name in choice.median_s
    assert world.gather_all(choice) == [choice] * world.size
    assert list(choice.median_s)[:2] == ["hierarchical", "plain"]  # all ranks of a test are on one node
    assert "plain in chunks of 64 KiB" in choice.median_s
    vector = np.random.default_rng(world.rank).random(length, np.float32)
    mean = reduce.mean(vector)
    assert np.allclose(mean, world.sum(vector) / world.size, rtol=1e-6)
    check_equal(world, [mean], when="after one")


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("chunk", [1, 7, 1000, 5000])
def test_in_chunks_it_is_the_same_mean(chunk: int, world: World) -> None:
    vector = np.random.default_rng(world.rank).random(1001, np.float32)
    whole, pieces = (PlainAllReduce(world, 1001, size).mean(vector) for size in (None, chunk))
    assert np.allclose(whole, pieces, rtol=1e-6)


@pytest.mark.parametrize(
    ("durations", "name"),
    [
        ({"plain": [1.0, 2.0, 9.0], "other": [3.0, 1.5, 1.0]}, "other"),
        ({"plain": [1.0, 1.0, 9.0], "other": [0.97, 0.97, 0.97]}, "plain"),  # too little to change for
        ({"plain": [1.0]}, "plain"),
    ],
)
def test_the_median_decides_and_little_changes_nothing(durations: dict[str, list[float]], name: str) -> None:
    assert autotune._choice(durations).name == name


def test_a_choice_is_told_in_a_line() -> None:
    assert str(Choice("b", {"a": 0.002, "b": 0.0015})) == "a 2.000 ms, b 1.500 ms: b"


@pytest.mark.parametrize(("most", "expected"), [(1, [1]), (2, [2, 1]), (6, [6, 3, 1]), (64, [64, 32, 16, 8])])
def test_fewer_threads_are_tried_by_halves(most: int, expected: list[int]) -> None:
    assert tune.candidates(most) == expected


def test_threads_are_timed_in_a_process_that_knows_no_mpi(
    tiny_shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(os.environ, "PMI_SIZE", "2")  # as under a launcher
    config = MpiConfig(model="mlp", batch_size=8, dataset="synthetic", data=tiny_shards)
    chosen = tune.tuned_threads(config, World(), 2)
    told = capsys.readouterr().out
    assert chosen in (1, 2)
    assert "a step on one rank by its number of threads: 2: " in told
    assert f"; {chosen} it is" in told


def test_a_step_that_cannot_be_timed_is_an_error_with_a_way_out() -> None:
    with pytest.raises(PlatformError, match=r"with 2 threads could not be timed: .*nonsense") as caught:
        tune._step_s(MpiConfig(model="nonsense"), 8, 2, (28, 28))
    assert "--threads" in (caught.value.remedy or "")


def test_a_named_collective_is_not_tuned() -> None:
    with pytest.raises(UsageError, match="--autotune chooses the collective itself"):
        MpiConfig(autotune=True, collective="plain")
