"""NaN: found within a chunk, on all ranks together; the run stops, or goes back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpi_train.monitor.status import read_status
from mpi_train.runs.checkpoint_file import CheckpointFile

pytestmark = [pytest.mark.mpi_skip, pytest.mark.timeout(300)]

Start = Callable[..., Any]

# Puts NaN into the weights of rank 1 before the n-th chunk.
DRIVER = """
import sys
from mpi_train.runs.session import Session
from mpi_train.strategies import own_loop

whole, calls = Session.limit, 0

def limit(self, first, stop):
    global calls
    calls += 1
    if calls in {calls} and sys.modules["mpi4py.MPI"].COMM_WORLD.rank == 1:
        weights = self.state._variables["weights"]
        weights.assign(weights * float("nan"))
    return whole(self, first, stop)

Session.limit = limit
from mpi_train.cli import run_training
from mpi_train.strategies.mpi.config import MpiConfig
run_training("mpi", MpiConfig, description="", mpi=True)
"""


def test_the_step_and_the_rank_are_named_and_the_last_good_checkpoint_is_kept(
    start: Start, tmp_path: Path
) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER.format(calls={12}))
    # Averaged every 5 steps, so that the NaN stays on its rank for a while.
    job = start("mpi", "--every", "1000", driver=driver, ranks=2)
    assert job.ended(within_s=60) == 5, job.printed
    assert job.printed.count("error: ") == 1
    assert "the loss or the weights became NaN or infinite on rank 1 on" in job.printed
    assert "epoch 2, between step " in job.printed
    paths = sorted((job.out / "checkpoints").glob("*.safetensors"))
    assert paths
    for path in paths:
        assert CheckpointFile(path).state["position"]["epoch"] <= 2


def test_a_learning_rate_that_is_far_too_large(start: Start) -> None:
    for job in (
        start("mpi", "--learning-rate", "1e38", ranks=2),
        start("baseline", "--learning-rate", "1e38"),
    ):
        assert job.ended(within_s=60) == 5, job.printed
        assert "epoch 1, between step 1 and" in job.printed
        assert "a smaller --learning-rate" in job.printed
        status = read_status(job.out / "status.json")
        assert status is not None
        assert status.state == "failed"


@pytest.mark.parametrize("chunks", [{12}, {1}], ids=["later", "at_once"])
def test_rolled_back_it_goes_on_at_half_the_rate(chunks: set[int], start: Start, tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER.format(calls=chunks))
    job = start(
        "mpi", "--on-nan", "rollback", "--learning-rate", "0.002", "--epochs", "4", driver=driver, ranks=2
    )
    assert job.ended(within_s=60) == 0, job.printed
    record = job.record()
    assert [event["kind"] for event in record.history] == ["rolled back"]
    assert record.history[0]["learning_rate"] == pytest.approx(0.001)
    assert record.learning_rate == pytest.approx(0.001)
    assert len(record.epochs) == 4


@pytest.mark.parametrize(
    ("name", "ranks"), [("mpi", 2), ("baseline", 1), pytest.param("ddp", 2, marks=pytest.mark.peers)]
)
def test_rolling_back_has_an_end(name: str, ranks: int, start: Start) -> None:
    job = start(name, "--on-nan", "rollback", "--learning-rate", "1e38", ranks=ranks)
    assert job.ended(within_s=60) == 5, job.printed
    rates = re.findall(r"rolled back: .*, learning rate now (\S+)", job.printed)
    assert rates == ["5e+37", "2.5e+37", "1.25e+37"]
    assert job.printed.count("error: ") == 1
