"""A clone to submit from, and the Slurm cluster that the tests marked ``slurm`` submit to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
NUM_NODES = 4


@dataclass(frozen=True)
class Job:
    """A Slurm job that has ended.

    Attributes:
        job_id: Its number.
        state: As ``scontrol`` names it: ``COMPLETED``, ``FAILED``, ...
        exit_code: Of the job script.
        log: What it printed, stdout and stderr.
    """

    job_id: int
    state: str
    exit_code: int
    log: str


@dataclass(frozen=True)
class Clone:
    """A folder that looks like a clone after ``make setup``, with its own data, results and logs."""

    root: Path

    def sbatch(self, *words: str, **environ: str) -> int:
        """Submits a job from here, with ``environ`` added to the environment; its number."""
        done = subprocess.run(
            ["sbatch", "--parsable", *words],
            cwd=self.root,
            env={**os.environ, **environ},
            check=True,
            capture_output=True,
            text=True,
        )
        return int(done.stdout.split(";")[0])

    def result(self, job_id: int, *, limit_s: float = 300) -> Job:
        """Waits for a job's end; one that takes longer than ``limit_s`` fails the test and is cancelled.

        By polling: ``sbatch --wait`` looks at the job every 10 s only.
        """
        deadline = time.monotonic() + limit_s
        while is_queued(job_id):
            if time.monotonic() > deadline:
                subprocess.run(["scancel", str(job_id)], check=False)
                pytest.fail(f"job {job_id} was still there after {limit_s} s\n{self.log(job_id)}")
            time.sleep(0.3)
        fields = dict(
            word.split("=", 1)
            for word in slurm("scontrol", "--oneliner", "show", "job", str(job_id)).split()
            if "=" in word
        )
        return Job(job_id, fields["JobState"], int(fields["ExitCode"].split(":")[0]), self.log(job_id))

    def run(self, *words: str, limit_s: float = 300, **environ: str) -> Job:
        """Submits a job and waits for its end."""
        return self.result(self.sbatch(*words, **environ), limit_s=limit_s)

    def log(self, job_id: int) -> str:
        """What a job has printed so far."""
        logs = [*self.root.glob(f"logs/*-{job_id}.out"), *self.root.glob(f"slurm-{job_id}.out")]
        return "".join(log.read_text() for log in logs)


def slurm(*words: str) -> str:
    """The stdout of one of Slurm's commands."""
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout


def is_queued(job_id: int) -> bool:
    """Whether a job is waiting, running or cleaning up."""
    known = subprocess.run(["squeue", "-h", "-j", str(job_id)], capture_output=True, text=True, timeout=30)
    return known.stdout.strip() != ""


@pytest.fixture
def make_clone(programs: None, tmp_path: Path) -> Callable[[], Clone]:
    return lambda: link_clone(tmp_path / "clone")


@pytest.fixture(scope="session")
def cluster_clone(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone on a running cluster, with shards of the synthetic data set cut by a job there."""
    require_cluster()
    clone = link_clone(tmp_path_factory.mktemp("slurm") / "clone")
    (clone.root / ".venv").symlink_to(sys.prefix)
    job = clone.run("slurm/prepare_data.sh", "--dataset", "synthetic")
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
    return clone


def link_clone(root: Path) -> Clone:
    """Makes a clone without an environment, its code the repository's own."""
    root.mkdir()
    for name in ("jobs", "slurm"):
        (root / name).symlink_to(REPOSITORY / name)
    return Clone(root)


def require_cluster() -> None:
    """Skips the test, and says why, where no cluster is to be had; CI, which starts one, must have it."""
    skip = pytest.fail if os.environ.get("REQUIRE_SLURM") else pytest.skip
    mend = f"slurm/local_cluster.sh up {NUM_NODES} (as root) starts one"
    if shutil.which("sinfo") is None:
        skip(f"Slurm is not installed here; {mend}")
    try:
        states = slurm("sinfo", "-h", "-N", "-o", "%T").split()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        skip(f"no Slurm cluster answers; {mend}")
    if states.count("idle") < NUM_NODES:
        skip(f"expected {NUM_NODES} idle nodes, found {' '.join(states)}; {mend}")
