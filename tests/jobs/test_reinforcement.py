"""The reinforcement job as a user starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from mpi_train.reinforcement.site import Site
from mpi_train.report.collect import collect
from mpi_train.runs.config import ReinforcementConfig
from mpi_train.runs.coordinator import Control
from mpi_train.runtime.errors import DataError, DivergedError, UsageError
from mpi_train.runtime.world import World
from tests.fault.conftest import Job
from tests.jobs.test_jobs import assert_one_message, start

pytestmark = [pytest.mark.mpi_skip, pytest.mark.timeout(240)]

SMALL = ("--num-envs", "6", "--batch-size", "192", "--updates", "4")


def train(out: Path, *flags: str, ranks: int) -> dict[str, Any]:
    result = start("reinforcement", "--out", out, *flags, ranks=ranks)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
    return json.loads((out / "reinforcement.json").read_text())


def test_leaves_a_record_and_a_picture(tmp_path: Path) -> None:
    record = train(tmp_path, *SMALL, "--trace", ranks=2)
    assert (record["strategy"], record["world_size"], record["threads_per_rank"]) == ("reinforcement", 2, 1)
    assert [update["update"] for update in record["updates"]] == [1, 2, 3, 4]
    assert [update["env_steps"] for update in record["updates"]] == [192, 384, 576, 768]
    assert record["updates"][-1]["elapsed_s"] == record["train_s"] > record["updates"][0]["elapsed_s"] > 0
    assert len(record["episode_rewards"]) == 20
    assert record["mean_reward"] == pytest.approx(sum(record["episode_rewards"]) / 20)
    assert re.fullmatch("[0-9a-f]{64}", record["weights_sha256"])
    assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")
    keys = [json.loads(line)["key"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert keys.count("tracked_stats") == 4
    assert keys[-1] == "run_stop"
    for rank in json.loads((tmp_path / "trace.json").read_text())["otherData"]["ranks"]:
        assert list(rank["seconds"]) == ["epoch 1", "epoch 2", "epoch 3", "epoch 4"]
        assert {"play", "compute", "all-reduce", "evaluate"} <= set(rank["seconds"]["epoch 4"])
    # It has no part in a comparison of runs on a data set.
    with pytest.raises(DataError, match=r"at least one finished run \(a run\.json\)\. Got: none"):
        collect([tmp_path])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_learns_to_balance_the_pole(ranks: int, tmp_path: Path) -> None:
    assert train(tmp_path, "--updates", "30", ranks=ranks)["mean_reward"] >= 400


def test_asked_to_stop_it_says_that_nothing_is_saved(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "jobs/reinforcement.py", "--out", str(out), "--updates", "1000000"]
    job = Job(words, out, tmp_path / "log", ranks=2)
    try:
        job.wait_for(lambda: "tracked_stats" in job.events)
        os.kill(job.pid(1), signal.SIGTERM)
        assert job.ended(within_s=30) == 75, job.printed
    finally:
        job.process.kill()
    assert "stopped by SIGTERM after update" in job.printed
    assert job.printed.count("error: ") == 1
    assert not (out / "reinforcement.json").exists()


def test_a_learning_rate_that_is_too_large() -> None:
    config = ReinforcementConfig(num_envs=2, batch_size=64, learning_rate=1e38)
    with pytest.raises(
        DivergedError, match=r"update 1: the weights became NaN(.|\n)*a smaller --learning-rate"
    ):
        next(Site(config, World(), "/CPU:0").updates(Control(World())))


def test_fewer_environments_than_ranks(tmp_path: Path) -> None:
    flags = ("--num-envs", "1", "--batch-size", "64", "--out", tmp_path)
    result = start("reinforcement", *flags, ranks=2)
    assert_one_message(result, 2, "for each of the 2 ranks. Got: 1", "--num-envs 2, or fewer ranks")


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"num_envs": 0}, "--num-envs: expected at least 1"),
        ({"updates": 0}, "--updates: expected at least 1"),
        ({"batch_size": 0}, "--batch-size: expected a multiple of 256"),
        ({"batch_size": 100, "num_envs": 6}, r"a multiple of 24, .*\. Got: 100(.|\n)*--batch-size 120"),
        ({"learning_rate": 0.0}, "--learning-rate: expected a number above 0"),
        ({"stall_timeout": 1.0}, "--stall-timeout: expected at least 5 seconds"),
    ],
)
def test_bad_flags(flags: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        ReinforcementConfig(**flags)
