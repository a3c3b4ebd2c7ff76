"""NaN: found within a chunk, on all ranks together; the run stops, or goes back."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpi_train.models.flat import FlatModel
from mpi_train.monitor.status import read_status
from mpi_train.runs.checkpoints import Checkpoints
from mpi_train.runtime.world import World
from tests.in_process import TrainJob, refused

pytestmark = pytest.mark.timeout(300)

STEPS = ["--batch-size", "12", "--checkpoint-every", "7"]
Spoil = Callable[[int], None]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch, world: World) -> Spoil:
    """Give a function that puts NaN into the weights of the last rank after its n-th checkpoint."""
    models: list[FlatModel] = []
    init, save, saves = FlatModel.__init__, Checkpoints.save, []

    def remembered(self: FlatModel, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        models.append(self)

    def after(nth: int) -> None:
        def save_and_spoil(self: Checkpoints, *args: Any) -> bool:
            saved = save(self, *args)
            saves.append(saved)
            if len(saves) == nth and world.rank == world.size - 1:
                models[0].weights.assign(models[0].weights * np.nan)
            return saved

        monkeypatch.setattr(FlatModel, "__init__", remembered)
        monkeypatch.setattr(Checkpoints, "save", save_and_spoil)

    return after


@pytest.mark.mpi(min_size=2)
def test_the_step_and_the_rank_are_named_and_the_last_good_checkpoint_is_kept(
    train_job: TrainJob, spoil: Spoil, world: World
) -> None:
    spoil(11)
    named = f"the loss or the weights became NaN or infinite on rank {world.size - 1} on"
    # Averaged once an epoch, so that the NaN stays on its rank for a while.
    with refused(5, named, "epoch 2, between step "):
        train_job("mpi", *STEPS, "--every", "1000")
    if world.is_root:
        checkpoints = list(train_job.path("checkpoints").iterdir())
        assert checkpoints
        assert all(re.match("epoch-000[12]-step-", path.name) for path in checkpoints)


@pytest.mark.parametrize(
    "job",
    [
        pytest.param("mpi", marks=pytest.mark.mpi(min_size=2), id="ranks"),
        pytest.param("baseline", marks=pytest.mark.mpi_skip, id="one process"),
    ],
)
def test_a_learning_rate_that_is_far_too_large(job: str, train_job: TrainJob, world: World) -> None:
    with refused(5, "epoch 1, between step 1 and", "a smaller --learning-rate"):
        train_job(job, *STEPS, "--learning-rate", "1e38")
    if world.is_root:
        status = read_status(train_job.path("status.json"))
        assert status is not None
        assert status.state == "failed"


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("nth", [12, 1], ids=["later", "at_once"])
def test_rolled_back_it_resumes_at_half_the_rate(nth: int, train_job: TrainJob, spoil: Spoil) -> None:
    spoil(nth)
    record = train_job("mpi", *STEPS, "--on-nan", "rollback", "--learning-rate", "0.002", "--epochs", "4")
    assert [event["kind"] for event in record.history] == ["rolled back"]
    assert record.history[0]["learning_rate"] == pytest.approx(0.001)
    assert record.learning_rate == pytest.approx(0.001)
    assert len(record.epochs) == 4


@pytest.mark.parametrize(
    "job",
    [
        pytest.param("mpi", marks=pytest.mark.mpi(min_size=2), id="ranks"),
        pytest.param("baseline", marks=pytest.mark.mpi_skip, id="one process"),
    ],
)
def test_rolling_back_has_an_end(
    job: str, train_job: TrainJob, world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    with refused(5):
        train_job(job, *STEPS, "--on-nan", "rollback", "--learning-rate", "1e38")
    if world.is_root:
        assert_halved(capfd.readouterr().out)


def assert_halved(printed: str) -> None:
    """Check the learning rates of three rollbacks."""
    rates = re.findall(r"rolled back: .*, learning rate now (\S+)", printed)
    assert rates == ["5e+37", "2.5e+37", "1.25e+37"]


@pytest.mark.peers
def test_rolling_back_under_pytorch_has_an_end(start: Callable[..., Any]) -> None:
    job = start("ddp", "--on-nan", "rollback", "--learning-rate", "1e38", ranks=2)
    assert job.ended(within_s=60) == 5, job.printed
    assert_halved(job.printed)
    assert job.printed.count("error: ") == 1
