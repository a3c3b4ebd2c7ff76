"""What a folder holds of an earlier run, put aside in ``earlier/RUN_ID`` when another begins there.

A result took hours; that the same command was given twice is no reason to lose it. Checkpoints are not
kept: they are large, and serve to go on with a run, not to know what it did.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from mpi_train.runs import run_id

FOLDER = "earlier"
EVENTS, EPOCHS, MISTAKES, TRACE = "events.jsonl", "epochs.csv", "mistakes.json", "trace.json"
"""What any run may leave beside its record."""
RECORDS = ("run.json", "reinforcement.json")
FILES = (
    *RECORDS,
    EVENTS,
    EPOCHS,
    MISTAKES,
    TRACE,
    "rounds.jsonl",
    "clients.json",
    "clients.png",
    "reward.png",
)
"""What belongs to one run. A list, as ``--out`` may name a folder that holds other things too."""


def id_of(out: Path) -> str | None:
    """The id of the run that has its events in ``out``: what the first of them says that names one."""
    with suppress(OSError, ValueError, TypeError, KeyError), open(out / EVENTS, encoding="utf-8") as file:
        for line in file:
            event = json.loads(line)
            if event["key"] == "run_id" and run_id.is_one(event["value"]):
                return str(event["value"])
    return None


def put_aside(out: Path) -> Path | None:
    """Moves the files of the run in ``out`` away; where to, or None if it holds none.

    Raises:
        OSError: a file cannot be moved.
    """
    # Without these two, a bench has removed what it is about to make again.
    marks = [out / name for name in (*RECORDS, EVENTS) if (out / name).exists()]
    if not marks:
        return None
    name = id_of(out)
    if name is None:  # of a version that gave no ids
        name = run_id.new(marks[0].stat().st_mtime, ("unnamed",))
    folder = out / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        with suppress(FileNotFoundError):
            os.replace(out / file, folder / file)
    return folder
