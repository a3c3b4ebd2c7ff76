"""State of a run while it trains: ``status.json`` in the folder of the run.

The root writes the file about once a second, whole or not at all, without syncing it to disk; on a slow file
system less often, so that writing takes at most a hundredth of the time.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from mpi_train.runtime import files

FILE = "status.json"
EVERY_S, AT_MOST_EVERY_S = 1.0, 30.0
"""Seconds between two writes: if writing is fast, and if writing is slow."""
FRACTION = 0.01
"""Largest fraction of the root's time that writing may take."""

State = Literal["starting", "training", "evaluating", "finished", "stopped", "failed"]
"""State of a run; ``stopped`` has saved a checkpoint and can be resumed."""
ENDED: tuple[State, ...] = ("finished", "stopped", "failed")


@dataclass(frozen=True, kw_only=True)
class Status:
    """Content of the file. Durations are in seconds, times of day in seconds since 1970 by the root's clock.

    Attributes:
        next_s: Longest time to the next write of the file if all is well.
        hosts: Host name of each rank.
        step: Steps of the epoch that are done, out of ``num_steps``.
        loss, images_per_s: Figures of the last seconds over all ranks; None before there are any.
        communication: Fraction of the time in exchanges with other ranks, waiting included: mean over the
            ranks; None if the strategy does not know.
        ends_in_s: Time to the end of the run, evaluation included.
        rank_images_per_s, rank_waiting: Rate of each rank, and fraction of the time that the rank waited for
            slower ones; empty if not known.
        stragglers: Ranks that the others wait for.
    """

    strategy: str
    state: State
    started: float
    written: float
    next_s: float
    host: str
    pid: int
    slurm_job_id: str | None
    hosts: list[str]
    epoch: int = 0
    num_epochs: int = 0
    step: int = 0
    num_steps: int = 0
    loss: float | None = None
    images_per_s: float | None = None
    communication: float | None = None
    ends_in_s: float | None = None
    rank_images_per_s: list[float] = field(default_factory=list)
    rank_waiting: list[float] = field(default_factory=list)
    stragglers: list[int] = field(default_factory=list)


class StatusFile:
    """Writer of the file into ``out``, the folder of the run; ``hosts`` has the host name of each rank."""

    def __init__(self, out: Path, strategy: str, hosts: tuple[str, ...]) -> None:
        self._path = out / FILE
        self._run = {
            "strategy": strategy,
            "started": round(time.time(), 3),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
            "hosts": hosts,
        }
        self._state: State | None = None
        self._due, self._every_s = 0.0, EVERY_S
        self._failed = False

    def is_due(self, state: State) -> bool:
        """Return True if it is time to write: sooner if the state changes, and always at the end."""
        slack_s = 0.9 * self._every_s if state != self._state else 0.0
        return state in ENDED or time.monotonic() >= self._due - slack_s

    def write(self, state: State, facts: dict[str, Any], *, next_s: float = 0.0) -> None:
        """Write the file, with ``facts`` for further fields; the next call comes within ``next_s``.

        A failure is printed once, and the training continues.
        """
        start, next_s = time.monotonic(), max(next_s, self._every_s)
        content = {**self._run, "state": state, "written": round(time.time(), 3), "next_s": next_s, **facts}
        try:
            with files.replacing(self._path, sync=False) as temporary:
                temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
        except OSError as error:
            if not self._failed:
                problem = f"{self._path}: {error.strerror}; make watch does not see this run"
                print(f"warning: {problem}", file=sys.stderr, flush=True)
            self._failed = True
        self._state = state
        # The next write comes within ``next_s``; later ones come less often if this one was slow.
        self._due = start + self._every_s
        self._every_s = min(max(EVERY_S, (time.monotonic() - start) / FRACTION), AT_MOST_EVERY_S)


def read_status(path: Path) -> Status | None:
    """Read a ``status.json``; return None if it is gone or this version cannot read it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Status)
    except (OSError, msgspec.MsgspecError):
        return None
