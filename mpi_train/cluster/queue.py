"""Slurm's queue through its own commands: submit a script, follow a job, report how it ended."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mpi_train.runtime.errors import JobError, PlatformError

POLL_S = 2.0
"""Seconds between two queries for a job, so that the controller is not overloaded."""
_ENDED = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY"),
    *("BOOT_FAIL", "DEADLINE", "NODE_FAIL", "PREEMPTED", "REVOKED"),
)


def submit(script: str, asked: Mapping[str, str]) -> int:
    """Submit the text of a job script and return the number of the job.

    The options ``asked`` of sbatch are in the script too, but there the variables of a login shell
    (SBATCH_PARTITION) take precedence.
    """
    output = _slurm("sbatch", "--parsable", *(f"--{k}={v}" for k, v in asked.items()), script=script)
    return int(output.split(";")[0])  # "NUMBER;CLUSTER" on a site with several clusters


def follow(job_id: int, say: Callable[[str], None], *, poll_s: float = POLL_S) -> None:
    """Pass the states of a job and its output to ``say``, line by line, until the job ends.

    A failed job raises a ``JobError`` with its exit code.
    """
    state, length = "", 0
    while True:
        output = _slurm("scontrol", "--oneliner", "show", "job", str(job_id))
        fields = dict(re.findall(r"(\w+)=(\S*)", output))
        # slurm/env.sh moves the output of a job to logs/.
        logs = (Path(f"logs/{fields.get('JobName')}-{job_id}.out"), Path(f"slurm-{job_id}.out"))
        log = next((path for path in logs if path.is_file()), None)
        text = log.read_text(encoding="utf-8", errors="replace") if log else ""
        whole = text.rfind("\n") + 1
        for line in text[length:whole].splitlines():
            say(f"  | {line}")
        length = max(length, whole)  # a requeued job begins a new log with the previous one
        if shown(fields) != state:
            state = shown(fields)
            say(f"job {job_id}: {state}")
        if fields.get("JobState") in _ENDED:
            break
        time.sleep(poll_s)
    if fields["JobState"] != "COMPLETED":
        code = int(fields.get("ExitCode", "1:0").split(":")[0]) or 1
        message = f"job {job_id} ended as {fields['JobState']}, exit code {code}"
        failed = JobError(message, remedy=f"its log: {log}" if log else f"scontrol show job {job_id}")
        failed.exit_code = code
        raise failed


def shown(fields: Mapping[str, str]) -> str:
    """Return the state of a job in one line, from the fields of ``scontrol show job``."""
    parts = [fields.get("JobState", "UNKNOWN")]
    if parts == ["PENDING"] and fields.get("Reason", "None") != "None":
        parts.append(f"({fields['Reason']})")
    if fields.get("NodeList", "(null)") not in ("(null)", ""):
        parts.append(f"on {fields['NodeList']}")
    if fields.get("Restarts", "0") != "0":
        parts.append(f"restarts {fields['Restarts']}")
    return " ".join(parts)


def _slurm(*words: str, script: str | None = None) -> str:
    """Run one of Slurm's commands and return its output; its error becomes a ``PlatformError``."""
    command = words[0]
    if shutil.which(command) is None:
        raise PlatformError(
            f"expected {command}. Got: none on this machine",
            remedy="a login node of the cluster; --print shows the script without one",
        )
    done = subprocess.run(words, input=script, capture_output=True, text=True)
    if done.returncode:
        reason = " ".join(done.stderr.replace(f"{command}: error:", "").split())
        remedy = "sinfo shows the partitions, --print the script" if script else "squeue --me, or sacct"
        raise PlatformError(f"{command} failed: {reason}", remedy=remedy)
    return done.stdout
