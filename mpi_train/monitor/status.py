"""``status.json`` in a run's folder: what the run does just now, for whoever looks on.

The root writes it about once a second while it trains, whole or not at all, but does not sync it to disk:
what is out of date in a second need not survive a power cut. On a shared file system, where writing may
take long, it is written less often, so that it takes at most a hundredth of the time.
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

from mpi_train.runtime import files

FILE = "status.json"
EVERY_S = 1.0
SHARE, AT_MOST_EVERY_S = 0.01, 30.0
"""Of the root's time, what writing may take; and how rare that may make it."""

State = Literal["starting", "training", "evaluating", "finished", "stopped", "failed"]
"""``stopped`` has saved and goes on when it is started again."""
ENDED: tuple[State, ...] = ("finished", "stopped", "failed")


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the file holds. Times are seconds; those of day are of the root's clock, since 1970.

    Attributes:
        next_s: By when the file is to be written again, if all is well; watchers are patient beyond it.
        hosts: Of the ranks, in rank order.
        step: Steps of the epoch that are done, of ``num_steps``.
        loss, images_per_s: Over all ranks, of the last seconds; None before there are any.
        communication: Share of the time in exchanges with other ranks, waiting included: the mean over
            the ranks; None where the strategy cannot tell.
        ends_in_s: Until the end of the run, evaluation included.
        rank_images_per_s, rank_waiting: Of each rank; empty where that is not known. What a rank waited for
            slower ones, as a share of the time.
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
    """Args:
    out: The folder of the run.
    strategy: Its name.
    hosts: Of the ranks.
    """

    def __init__(self, out: Path, strategy: str, hosts: tuple[str, ...]) -> None:
        self._path = out / FILE
        self._who = {
            "strategy": strategy,
            "started": round(time.time(), 3),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
            "hosts": list(hosts),
        }
        self._state: State | None = None
        self._due, self._every_s = 0.0, EVERY_S
        self._failed = False

    def is_due(self, state: State) -> bool:
        """Whether to write again: in time, sooner when the state is another, and the last word always."""
        slack_s = 0.9 * self._every_s if state != self._state else 0.0
        return state in ENDED or time.monotonic() >= self._due - slack_s

    def write(self, state: State, facts: dict[str, Any], *, next_s: float = 0.0) -> None:
        """Writes the file now; a failure is said once, and is no reason to lose the training.

        Args:
            state: Of the run.
            facts: The further fields.
            next_s: How long it may take until this is called again.
        """
        start = time.monotonic()
        when = {"state": state, "written": round(time.time(), 3), "next_s": max(next_s, self._every_s)}
        try:
            with files.replacing(self._path, sync=False) as temporary:
                temporary.write_text(json.dumps({**self._who, **when, **facts}) + "\n", encoding="utf-8")
        except OSError as error:
            if not self._failed:
                problem = f"{self._path}: {error.strerror}; make watch does not see this run"
                print(f"warning: {problem}", file=sys.stderr, flush=True)
            self._failed = True
        self._state = state
        # What the file has promised holds for the next time; from then on it is rarer, if this took long.
        self._due = start + self._every_s
        self._every_s = min(max(EVERY_S, (time.monotonic() - start) / SHARE), AT_MOST_EVERY_S)


def read_status(path: Path) -> Status | None:
    """What a ``status.json`` says; None where it is gone, or is none that this version can read."""
    try:
        return Status(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
