"""Which runs a report is made of: those below the given folders, less what an older bench left there.

A bench lists the runs that it means to make in ``bench.json``. Below such a folder only listed runs
count, so that a run which an older bench made with other settings, or which failed this time, cannot
get into the report. Elsewhere every ``run.json`` counts, but for what a later run has put aside: beside
that one it would be taken for a repeat.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath

from mpi_train.runs import folder as earlier
from mpi_train.runs.record import RunRecord, read_run
from mpi_train.runtime import files
from mpi_train.runtime.errors import DataError

BENCH_FILE = "bench.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run that a bench meant to make, whether or not it came to an end.

    Attributes:
        strategy: Its name.
        workers: Number of ranks or devices, 1 for one process.
        unit: What a worker is: ``rank``, ``device`` or ``process``.
        repeat: Counted from 1.
        seed: That of the repeat.
        folder: Of its ``run.json`` and ``job.log``, relative to the bench's own.
        command: What to type to run it again.
        exit_code: None until it has ended; 128 + n when signal n ended it.
    """

    strategy: str
    workers: int
    unit: str
    repeat: int
    seed: int
    folder: str
    command: str
    exit_code: int | None = None

    @property
    def failed(self) -> bool:
        return self.exit_code not in (None, 0)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run record and where it comes from.

    Attributes:
        record: What the file holds.
        path: Of the file.
        command: The words that made it.
        date: The day, UTC, as ``YYYY-MM-DD``.
        bench: Folder of the bench that it belongs to.
    """

    record: RunRecord
    path: Path
    command: str
    date: str
    bench: Path | None = None


@dataclass(frozen=True)
class Collection:
    """The runs that count, and the attempts of the benches among them that left none, with full paths."""

    runs: list[Run]
    unfinished: list[Attempt]


def write_attempts(bench: Path, attempts: Sequence[Attempt]) -> None:
    """Writes ``bench.json`` into the folder ``bench``, whole or not at all."""
    listed = [dataclasses.asdict(attempt) for attempt in attempts]
    files.write_json(bench / BENCH_FILE, {"schema_version": SCHEMA_VERSION, "runs": listed})


def read_attempts(bench: Path) -> list[Attempt]:
    """Reads ``bench.json`` from the folder ``bench``.

    Raises:
        DataError: not JSON, of another schema version, without a field, or pointing out of its folder.
    """
    path = bench / BENCH_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {raw['schema_version']}")
        attempts = [Attempt(**run) for run in raw["runs"]]
        for attempt in attempts:
            folder = PurePosixPath(attempt.folder)
            if folder.is_absolute() or ".." in folder.parts:
                raise ValueError(f"the folder {attempt.folder}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: expected a bench's list of runs, schema version {SCHEMA_VERSION}. Got: {error}",
            remedy=f"run the bench again, or delete {path} to take all runs below it",
        ) from error
    return attempts


def collect(folders: Sequence[Path]) -> Collection:
    """The runs below ``folders``, in the order of their paths, those of a bench in the bench's order.

    Raises:
        DataError: a record that cannot be read or holds impossible figures, or no run at all.
    """
    runs: dict[Path, Run] = {}
    unfinished: list[Attempt] = []
    for folder in folders:
        benches = sorted(path.parent for path in files_below(folder, BENCH_FILE))
        for bench in benches:
            for attempt in read_attempts(bench):
                path = bench / attempt.folder / "run.json"
                if attempt.exit_code == 0:
                    runs.setdefault(path.resolve(), _read(path, attempt.command, bench))
                else:
                    folder_of_attempt = str(bench / attempt.folder)
                    unfinished.append(dataclasses.replace(attempt, folder=folder_of_attempt))
        for path in sorted(files_below(folder, "run.json")):
            if not any(bench in path.parents for bench in benches):
                runs.setdefault(path.resolve(), _read(path))
    if not runs:
        raise DataError(
            f"expected at least one finished run (a run.json). Got: none below "
            f"{', '.join(map(str, folders))}",
            remedy="make bench, or any training job; then name the folder given as --out",
        )
    return Collection(list(runs.values()), unfinished)


def files_below(folder: Path, name: str, *, put_aside: bool = False) -> list[Path]:
    """The files of that name below ``folder``, in no order; with ``put_aside`` also those of earlier runs."""
    found = []
    # os.walk, as pathlib's rglob takes several times as long over thousands of folders.
    for place, folders, names in os.walk(folder):
        if name in names:
            found.append(Path(place, name))
        if not put_aside and earlier.ARCHIVE in folders:
            folders.remove(earlier.ARCHIVE)
    return found


def _read(path: Path, command: str | None = None, bench: Path | None = None) -> Run:
    record = read_run(path)
    written = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    return Run(
        record=record, path=path, command=command or record.command, date=f"{written:%Y-%m-%d}", bench=bench
    )
