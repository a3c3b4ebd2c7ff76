"""Real jobs whose ranks die, stop, or fail alone: the others end soon, and the lost rank is named.

The watchdog's rules are tested on plain sockets in ``tests/runtime/test_watchdog.py``. Here, a change's tests
start one job for each kind of fault; further ranks, places and strategies are slow tests.
"""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.mpi_skip, pytest.mark.timeout(900)]
slow = pytest.mark.slow

Start = Callable[..., Any]


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=slow)])
def test_a_killed_rank_is_named_and_the_run_goes_on_with_the_same_bits(
    ranks: int, times: int, start: Start
) -> None:
    whole = start("mpi", "--checkpoint-every", "0", ranks=ranks, out="whole")
    assert whole.ended(within_s=120) == 0, whole.printed
    for number in range(times):
        rng = random.Random(100 * ranks + number)
        victim = rng.randrange(ranks)
        job = start("mpi", ranks=ranks, out=f"killed-{number}")
        job.wait_for_training(rng)
        os.kill(job.pid(victim), signal.SIGKILL)
        assert job.ended(within_s=10) != 0, job.printed
        assert re.search(rf"error: rank {victim} on \S+ was lost", job.printed), job.printed
        assert "last known: epoch" in job.printed
        resumed = start("mpi", ranks=ranks, out=f"killed-{number}")
        assert resumed.ended(within_s=120) == 0, resumed.printed
        assert resumed.record().weights_sha256 == whole.record().weights_sha256


@pytest.mark.parametrize(("ranks", "victim"), [(2, 0), pytest.param(3, 1, marks=slow)])
def test_a_stopped_rank_is_named_within_the_stall_time(
    ranks: int, victim: int, times: int, start: Start
) -> None:
    for number in range(times):
        job = start("mpi", "--stall-timeout", "5", ranks=ranks, out=f"stopped-{number}")
        job.wait_for_training(random.Random(number))
        os.kill(job.pid(victim), signal.SIGSTOP)
        assert job.ended(within_s=5 + 10) == 6, job.printed
        message = rf"error: rank {victim} on \S+ has not been heard of for 5 s \(last known: epoch \d+"
        assert len(re.findall(message, job.printed)) == 1, job.printed
        assert job.printed.count("error: ") == 1


def test_a_run_whose_hub_is_killed_warns_once_and_ends_normally(start: Start) -> None:
    job = start("mpi", ranks=2)
    job.wait_for_training(random.Random(1))
    os.kill(job.hub_pid(), signal.SIGKILL)
    assert job.ended(within_s=120) == 0, job.printed
    assert re.search(r"warning: the hub of the watchdog on \S+ ended unexpectedly", job.printed), job.printed
    assert job.printed.count("warning: ") == 1


@slow
def test_tensorflows_cluster_ends_for_a_stopped_rank_too(start: Start) -> None:
    job = start("multiworker", "--epochs", "500", "--stall-timeout", "15", ranks=2)
    job.wait_for_training(random.Random(1))
    os.kill(job.pid(1), signal.SIGSTOP)
    # TensorFlow gives up after 10 s where its own all-reduce waits for the rank, or the watch after 15.
    assert job.ended(within_s=15 + 10) == 6, job.printed
    assert job.printed.count("error: ") == 1, job.printed
    assert re.search(r"error: rank 1 on \S+ (has not been heard of|is what TensorFlow calls)", job.printed)


@pytest.mark.peers
def test_a_rank_that_dies_under_pytorch_is_named_too(start: Start) -> None:
    job = start("ddp", "--epochs", "500", ranks=3)
    job.wait_for_training(random.Random(1))
    os.kill(job.pid(1), signal.SIGKILL)
    assert job.ended(within_s=10) != 0, job.printed
    assert re.search(r"error: rank 1 on \S+ was lost", job.printed), job.printed
    assert "Traceback" not in job.printed


RAISE, SLEEP = 'raise ZeroDivisionError("made by the test")', "time.sleep(1000)"
DRIVER = """
import functools, pkgutil, sys, time

owner, _, name = {function!r}.rpartition(".")
owner = pkgutil.resolve_name(owner)
whole, calls = getattr(owner, name), 0

@functools.wraps(whole)
def broken(*args, **kwargs):
    global calls
    calls += 1
    if calls == {nth} and sys.modules["mpi4py.MPI"].COMM_WORLD.rank == {rank}:
        {fault}
    return whole(*args, **kwargs)

setattr(owner, name, broken)
from mpi_train.cli import main
main({job!r})
"""


@pytest.fixture
def driver(tmp_path: Path) -> Callable[..., Path]:
    """Writes a script that runs a job with a fault on one rank, at the n-th call of a function."""

    def write(function: str, nth: int, *, job: str = "mpi", rank: int = 1, fault: str = RAISE) -> Path:
        path = tmp_path / "driver.py"
        path.write_text(DRIVER.format(function=function, nth=nth, job=job, rank=rank, fault=fault))
        return path

    return write


@pytest.mark.parametrize(
    ("function", "nth"),
    [
        pytest.param("mpi_train.data.shards:ShardSet.read", 1, id="loading", marks=slow),
        pytest.param("mpi_train.training.trainer:Trainer.gradient", 1, id="tracing", marks=slow),
        pytest.param("mpi_train.collectives.hierarchical:HierarchicalAllReduce.mean", 100, id="a_step"),
        pytest.param("mpi_train.training.evaluation:Evaluator.evaluate", 1, id="evaluation", marks=slow),
        pytest.param("mpi_train.runs.checkpoints:Checkpoints.save", 2, id="checkpointing", marks=slow),
    ],
)
def test_an_exception_on_one_rank_ends_all_with_one_traceback(
    function: str, nth: int, times: int, start: Start, driver: Callable[..., Path]
) -> None:
    script = driver(function, nth)
    for number in range(max(1, times // 5)):  # the five places come to ten together
        job = start("mpi", driver=script, ranks=2, out=f"broken-{number}")
        assert job.ended(within_s=60) != 0, job.printed
        assert "made by the test" in job.printed
        assert job.printed.count("Traceback (most recent call last)") == 1, job.printed
        assert "rank 1 on" in job.printed
        assert "was lost" not in job.printed, job.printed


@pytest.mark.peers
def test_an_exception_on_one_rank_under_pytorch_leaves_its_traceback(
    start: Start, driver: Callable[..., Path]
) -> None:
    script = driver("mpi_train.strategies.pytorch.loop:Loop.prepare", 2, job="ddp")
    job = start("ddp", driver=script, ranks=2)
    assert job.ended(within_s=60) != 0, job.printed
    assert "ZeroDivisionError: made by the test" in job.printed
    assert job.printed.count("Traceback (most recent call last)") == 1, job.printed
    assert "rank 1 on" in job.printed


@slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_hangs_alive_is_named(victim: int, start: Start, driver: Callable[..., Path]) -> None:
    script = driver("mpi_train.runs.resumable:ResumableRun.limit", 20, rank=victim, fault=SLEEP)
    job = start("mpi", "--stall-timeout", "5", driver=script, ranks=3)
    job.wait_for(lambda: "global batch" in job.printed)
    assert job.ended(within_s=60) == 6, job.printed
    message = rf"error: rank {victim} on \S+ hangs: the others have waited 8 s for it in a step"
    assert re.search(message, job.printed), job.printed
    assert job.printed.count("error: ") == 1


@slow
def test_a_rank_that_does_not_come_to_tensorflows_cluster_holds_up_nobody(
    start: Start, driver: Callable[..., Path]
) -> None:
    script = driver("mpi_train.runtime.devices.quiet_start", 2, job="multiworker", fault=SLEEP)
    job = start("multiworker", "--stall-timeout", "5", driver=script, ranks=2)
    assert job.ended(within_s=90) == 6, job.printed
    # While it waits, TensorFlow holds the interpreter's lock, so that rank 0 cannot be heard.
    assert "last known: start of TensorFlow's cluster, which waits for every rank" in job.printed


@slow
def test_a_slow_start_is_no_loss_and_a_normal_end_is_none_either(start: Start) -> None:
    job = start("mpi", "--epochs", "3", "--stall-timeout", "5", ranks=3)
    assert job.ended(within_s=120) == 0, job.printed
    assert "error" not in job.printed
    assert "warning" not in job.printed
