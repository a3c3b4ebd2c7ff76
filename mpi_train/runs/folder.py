"""The output folder of a run: its id, its record, its event log, and the archive of previous runs.

When a new run begins in a folder, the files of the previous run move to ``earlier/RUN_ID``: a result took
hours, and a command that was given twice is no reason to lose it. Checkpoints are not kept, because they are
large and serve only to resume a run.

Run ids sort by time and are valid in file names and URLs:

    20261121T110222Z-mpi-4x-cnn-fashion_mnist-s1-3f9a

An id holds start (UTC), strategy, ranks, model, data set and seed, and four random digits, because two runs
may start within a second.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpi_train.runtime import files
from mpi_train.runtime.errors import UsageError, unwritable
from mpi_train.runtime.world import World

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ARCHIVE = "earlier"
RECORD, EVENTS, EPOCHS, TRACE = "run.json", "events.jsonl", "epochs.csv", "trace.json"
FILES = (
    *(RECORD, EVENTS, EPOCHS, TRACE, "rounds.jsonl", "clients.json", "clients.png"),
    *("mistakes.json", "reinforcement.json", "reward.png"),
)
"""Files that belong to one run; some only older versions wrote. ``--out`` may hold other files too."""

MIN_FREE_BYTES = 1 << 16
"""Space that a run needs on disk for its record and its events."""

_STAMP = "%Y%m%dT%H%M%SZ"
_RUN_ID = re.compile(r"\d{8}T\d{6}Z-[\w.-]+", re.ASCII)
_LONGEST_PART = 40


def new_run_id(started_s: float, parts: Sequence[str]) -> str:
    """Make a unique run id from the start, in seconds since 1970, and descriptions of the run."""
    stamp = datetime.fromtimestamp(started_s, timezone.utc).strftime(_STAMP)
    safe = (re.sub(r"[^A-Za-z0-9_.]+", "-", part)[:_LONGEST_PART] for part in parts)
    return "-".join([stamp, *safe, secrets.token_hex(2)])


def started(run_id: str) -> str:
    """Return the start of a run, in UTC and ISO 8601: ``2026-11-21T11:02:22Z``."""
    return datetime.strptime(run_id.split("-")[0], _STAMP).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_run_id(text: object) -> bool:
    """Return True if ``text`` is a run id, and therefore safe as the name of a folder."""
    return isinstance(text, str) and _RUN_ID.fullmatch(text) is not None


def id_of(out: Path) -> str | None:
    """Return the id of the run whose event log is in ``out``, or None."""
    with suppress(OSError, ValueError, TypeError, KeyError), open(out / EVENTS, encoding="utf-8") as file:
        for line in file:
            event = json.loads(line)
            if event["key"] == "run_id" and is_run_id(event["value"]):
                return str(event["value"])
    return None


def archive_previous_run(out: Path) -> Path | None:
    """Move the files of the run in ``out`` to the archive; return their new folder, or None without a run.

    Raises:
        OSError: a file cannot be moved.
    """
    # Without these two files, a bench has removed what it is about to make again.
    marks = [out / name for name in (RECORD, EVENTS) if (out / name).exists()]
    if not marks:
        return None
    # Versions without run ids left no name.
    archive = out / ARCHIVE / (id_of(out) or new_run_id(marks[0].stat().st_mtime, ("unnamed",)))
    archive.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        with suppress(FileNotFoundError):
            os.replace(out / file, archive / file)
    return archive


class RunFolder:
    """Output folder ``out`` of one run, written by the root of ``world`` alone."""

    def __init__(self, out: Path, world: World) -> None:
        self.out, self.path, self.world = out, out / RECORD, world
        self._lost_events = False

    def open(self) -> None:
        """Make the folder.

        Raises:
            UsageError: it cannot be written. Raised on all ranks.
        """
        with self.world.together():
            if self.world.is_root:
                try:
                    self.out.mkdir(parents=True, exist_ok=True)
                    with tempfile.TemporaryFile(dir=self.out) as file:
                        # On a full disk a file can be created, but not filled.
                        file.write(bytes(MIN_FREE_BYTES))
                except OSError as error:
                    raise unwritable(self.out, error) from error

    def begin(self, new_id: str, *, anew: bool) -> str:
        """Begin the event log of a new run, or continue that of the interrupted run in the folder.

        Args:
            new_id: Id for a new run.
            anew: True for a new run. The previous run in the folder is then archived.

        Returns:
            Id of the run, on all ranks.

        Raises:
            UsageError: the previous run cannot be moved. Raised on all ranks.
        """
        name: str | None = None
        with self.world.together():
            if self.world.is_root:
                try:
                    if anew:
                        archive_previous_run(self.out)
                    else:
                        name = id_of(self.out)
                except OSError as error:
                    raise UsageError(
                        f"--out: expected to move the previous run to {self.out / ARCHIVE}. "
                        f"Got: {error.strerror}",
                        remedy="--out with another folder",
                    ) from error
                if name is None:  # a new run, or one of a version without run ids
                    self.event("run_id", name := new_id)
        return self.world.gather_all(name)[0] or new_id

    def event(self, key: str, value: Any = None, **metadata: Any) -> None:
        """Append one line to the event log, on the root.

        Keys are those of MLPerf's logging rules, such as ``run_start``; ``metadata`` may be ``epoch_num``.
        """
        if not self.world.is_root:
            return
        kinds = {"start": "INTERVAL_START", "stop": "INTERVAL_END"}
        line = {
            "time_ms": time.time_ns() // 1_000_000,
            "event_type": kinds.get(key.rsplit("_", 1)[-1], "POINT_IN_TIME"),
            "key": key,
            "value": value,
            "metadata": metadata,
        }
        try:
            with open(self.out / EVENTS, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            # A full disk must not end the training.
            if not self._lost_events:
                print(f"warning: {self.out / EVENTS}: {error.strerror}; events are lost", file=sys.stderr)
            self._lost_events = True

    def write(self, record: DataclassInstance) -> None:
        """Write the run's record, and wait until all ranks can see it."""
        with self.world.together():
            if self.world.is_root:
                try:
                    files.write_json(self.path, dataclasses.asdict(record))
                except OSError as error:
                    raise UsageError(f"{self.path} cannot be written: {error.strerror}") from error
        self.world.barrier()
