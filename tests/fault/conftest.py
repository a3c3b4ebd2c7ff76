"""Jobs that are started for real, and then killed, stopped, or asked to stop."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from mpi_train.runs.record import RunRecord, read_run
from mpi_train.runtime import launch

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120


class Job:
    """A job under way, on tiny data.

    Args:
        words: What starts one process of it.
        out: Its ``--out``.
        log: File for what it prints.
        ranks: How many processes; 1 is started without a launcher.
    """

    def __init__(self, words: list[str], out: Path, log: Path, ranks: int) -> None:
        self.out, self._log, self.ranks = out, log, ranks
        self._epochs_before = self.events.count("epoch_stop")
        launched = launch.mpiexec(ranks, words) if ranks > 1 else words
        with open(log, "wb") as file:
            # A session of its own, so that nothing of it is left behind.
            self.process = subprocess.Popen(
                launched, cwd=ROOT, env=launch.environment(), stdout=file, stderr=file, start_new_session=True
            )

    @property
    def printed(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def events(self) -> list[str]:
        path = self.out / "events.jsonl"
        return [json.loads(line)["key"] for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def run_id(self) -> str:
        """As it was printed."""
        (name,) = re.findall(r"^run (\S+) in ", self.printed, re.MULTILINE)
        return str(name)

    def wait_for(self, what: Callable[[], bool]) -> None:
        ends = time.monotonic() + TIMEOUT_S
        while not what():
            assert self.process.poll() is None, self.printed
            assert time.monotonic() < ends, self.printed
            time.sleep(0.02)

    def wait_for_training(self, rng: random.Random) -> None:
        """Until an epoch is done and a random time has passed."""
        self.wait_for(lambda: self.events.count("epoch_stop") > self._epochs_before)
        time.sleep(rng.uniform(0, 0.5))

    def pid(self, rank: int) -> int:
        """Process id of a rank."""
        if self.ranks == 1:
            return self.process.pid
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes().split(b"\0")
                environ = (path / "environ").read_bytes().split(b"\0")
                ours = str(self.out).encode() in words and words[0] == sys.executable.encode()
                if ours and f"PMI_RANK={rank}".encode() in environ:
                    return int(path.name)
        raise AssertionError(f"no rank {rank}: {self.printed}")

    def hub_pid(self) -> int:
        """Return the process id of the watchdog's hub, a child of rank 0."""
        root = self.pid(0)
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == root and b"watchdog_hub" in (path / "cmdline").read_bytes():
                    return int(path.name)
        raise AssertionError(f"no hub: {self.printed}")

    def pids(self) -> list[int]:
        """Of all its processes that are alive."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self.out).encode() in (path / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(path.name))
        return found

    def ended(self, *, within_s: float) -> int:
        """Exit code, once all its processes are gone."""
        begin = time.monotonic()
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {within_s} s:\n{self.printed}") from None
        while self.pids():
            assert time.monotonic() - begin < within_s, f"left behind: {self.pids()}"
            time.sleep(0.02)
        return code

    def record(self) -> RunRecord:
        return read_run(self.out / "run.json")


Start = Callable[..., Job]


def words_of(job: str, data: Path, out: Path, *flags: str, driver: Path | None = None) -> list[str]:
    """Return the command line of one process of a job over tiny data, with checkpoints every few steps."""
    return [
        sys.executable, str(driver or f"jobs/{job}.py"), "--dataset", "synthetic",
        "--data", str(data), "--model", "mlp", "--batch-size", "12", "--epochs", "30",
        "--checkpoint-every", "7", "--out", str(out), *flags,
    ]  # fmt: skip


@pytest.fixture
def start(programs: None, tiny_shards: Path, tmp_path: Path) -> Iterator[Start]:
    """Give a function that starts a job over the tiny data set."""
    jobs: list[Job] = []

    def run(job: str, *flags: str, ranks: int = 1, out: str = "out", driver: Path | None = None) -> Job:
        words = words_of(job, tiny_shards, tmp_path / out, *flags, driver=driver)
        jobs.append(Job(words, tmp_path / out, tmp_path / f"{len(jobs)}.log", ranks))
        return jobs[-1]

    yield run
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGKILL)
        for pid in job.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        job.process.wait()


@pytest.fixture(scope="session")
def whole_run(
    programs: None, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., RunRecord]:
    """Give a function that returns the record of an uninterrupted run, which is trained once a session."""

    @cache
    def record(job: str, ranks: int, *flags: str) -> RunRecord:
        folder = tmp_path_factory.mktemp("whole")
        words = words_of(job, tiny_shards, folder / "out", *flags, "--checkpoint-every", "0")
        whole = Job(words, folder / "out", folder / "log", ranks)
        assert whole.ended(within_s=120) == 0, whole.printed
        return whole.record()

    return record


@pytest.fixture(
    params=[1, pytest.param(10, marks=[pytest.mark.slow, pytest.mark.long])], ids=["once", "ten_times"]
)
def times(request: pytest.FixtureRequest) -> int:
    """Return how often a fault is tried: once in make test, ten times in make test-all."""
    return int(request.param)
