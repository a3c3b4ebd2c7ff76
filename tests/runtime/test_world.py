"""The ranks: who they are, how they agree, how they fail together."""

import numpy as np
import pytest

from mpi_train.runtime import world as worlds
from mpi_train.runtime.devices import share_of
from mpi_train.runtime.errors import DataError, DivergedError, PlatformError
from mpi_train.runtime.world import World
from mpi_train.training.replicas import check_equal


def test_launcher_is_the_nearest_one() -> None:
    assert worlds.launcher({}) is None
    # A batch script of Slurm has the rank, but is no step.
    assert worlds.launcher({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) is None
    step = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}
    assert worlds.launcher(step) == worlds.Launcher("srun", 3, 4)
    inside = worlds.launcher({**step, "PMI_RANK": "1", "PMI_SIZE": "2"})
    assert inside is not None
    assert (inside.rank, inside.size) == (1, 2)


def test_a_job_of_one_process_refuses_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "launcher", lambda: worlds.Launcher("srun", 0, 4))
    with pytest.raises(PlatformError, match="Got: 4 processes"):
        worlds.alone(job="baseline")


def test_cores_are_shared_evenly_or_kept_as_bound() -> None:
    whole = frozenset(range(8))
    assert [share_of([whole] * 2, rank) for rank in (0, 1)] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    bound = [frozenset({0, 1}), frozenset({2, 3})]
    assert [share_of(bound, rank) for rank in (0, 1)] == [(0, 1), (2, 3)]
    few = frozenset({0, 1})
    assert [share_of([few] * 4, rank) for rank in range(4)] == [(0, 1)] * 4


@pytest.mark.ranks(4)
@pytest.mark.mpi
def test_an_error_of_one_rank_is_raised_on_all(world: World) -> None:
    last = world.size - 1

    def read() -> None:
        with world.together():
            if world.rank == last:
                raise DataError("shard is broken", remedy="make data")

    with pytest.raises(DataError) as error:
        read()
    assert error.value.remedy == "make data"
    assert ("rank" in error.value.message) == (world.size > 1)


@pytest.mark.mpi
def test_sums_and_broadcasts(world: World) -> None:
    assert world.sum(np.array([1.0, world.rank])).tolist() == [world.size, sum(range(world.size))]
    value = np.full(3, world.rank, np.float32)
    world.broadcast(value)
    assert value.tolist() == [0, 0, 0]
    assert world.gather_all(world.rank) == list(range(world.size))


@pytest.mark.ranks(4)
@pytest.mark.mpi(min_size=3)
def test_ranks_that_went_apart_are_named(world: World) -> None:
    weights = np.zeros(4, np.float32)
    check_equal(world, [weights], when="at the start")
    if world.rank == 1:
        weights[2] = np.nextafter(np.float32(0), np.float32(1))
    with pytest.raises(DivergedError, match=r"after epoch 1.*other weights on rank 1 on"):
        check_equal(world, [weights], when="after epoch 1")
