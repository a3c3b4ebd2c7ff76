"""Slurm's queue, through its own commands: submit a script, follow a job, say how it ended."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from mpi_train.cluster.script import shown
from mpi_train.runtime.errors import JobError, PlatformError

POLL_S = 2.0
"""Seconds between two looks at a job: a controller has others to answer."""
_ENDED = frozenset(
    {
        "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "NODE_FAIL",
        "PREEMPTED", "REVOKED",
    }
)  # fmt: skip


class JobFailedError(JobError):
    """A job came to its end, but not well; ``exit_code`` is its own."""

    def __init__(self, message: str, *, remedy: str, exit_code: int) -> None:
        super().__init__(message, remedy=remedy)
        self.exit_code = exit_code


def submit(script: str, asked: dict[str, str]) -> int:
    """Hands ``script`` to sbatch and returns the number of the job.

    Args:
        script: Its text.
        asked: What the user asked for, by sbatch's flags. It is in the script too, but there the variables
            of a login shell (SBATCH_PARTITION) would count for more.

    Raises:
        PlatformError: there is no sbatch, or it refuses; with its own words.
    """
    if shutil.which("sbatch") is None:
        raise PlatformError(
            "expected sbatch. Got: none on this machine",
            remedy="a login node of the cluster; --print shows the script without one",
        )
    done = subprocess.run(
        ["sbatch", "--parsable", *(f"--{name}={value}" for name, value in asked.items())],
        input=script,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = " ".join(done.stderr.replace("sbatch: error:", "").split())
        raise PlatformError(
            f"sbatch refused the job: {said}", remedy="sinfo shows the partitions, --print the script"
        )
    return int(done.stdout.split(";")[0])


def follow(job_id: int, say: Callable[[str], None], *, poll_s: float = POLL_S) -> None:
    """Shows a job's states and what it prints, until its end.

    Args:
        job_id: Its number.
        say: Takes each line.
        poll_s: Seconds between two looks.

    Raises:
        JobFailedError: it did not end well.
        PlatformError: Slurm does not know it.
    """
    state, length = "", 0
    while True:
        fields = job_fields(job_id)
        log = log_of(job_id, fields.get("JobName", ""))
        text = log.read_text(encoding="utf-8", errors="replace") if log is not None else ""
        whole = text.rfind("\n") + 1
        for line in text[length:whole].splitlines():
            say(f"  | {line}")
        # A job that is queued again begins a new log with the old one.
        length = whole if whole >= length else length
        if shown(fields) != state:
            state = shown(fields)
            say(f"job {job_id}: {state}")
        ended = fields.get("JobState") in _ENDED
        if ended:
            break
        time.sleep(poll_s)
    if fields["JobState"] != "COMPLETED":
        code = int(fields.get("ExitCode", "1:0").split(":")[0])
        raise JobFailedError(
            f"job {job_id} ended as {fields['JobState']}, exit code {code}",
            remedy=f"its log: {log}" if log is not None else f"scontrol show job {job_id}",
            exit_code=code or 1,
        )


def job_fields(job_id: int) -> dict[str, str]:
    """What ``scontrol show job`` says, by name. Raises ``PlatformError``."""
    done = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", str(job_id)], capture_output=True, text=True
    )
    if done.returncode:
        raise PlatformError(
            f"Slurm does not know job {job_id}: {' '.join(done.stderr.split())}", remedy=f"sacct -j {job_id}"
        )
    return dict(re.findall(r"(\w+)=(\S*)", done.stdout))


def log_of(job_id: int, name: str) -> Path | None:
    """The file that a job writes to, where ``slurm/env.sh`` has put it; None before there is one."""
    for path in (Path(f"logs/{name}-{job_id}.out"), Path(f"slurm-{job_id}.out")):
        if path.is_file():
            return path
    return None
