"""Runs that a report compares: those below the given folders, without remains of a previous bench.

A bench lists its runs in ``bench.json``. Below its folder only listed runs count, so that runs of a previous
bench with other settings, or runs that failed this time, stay out of the report. Elsewhere every ``run.json``
counts, except in the archive of previous runs: a previous run would look like a repeat of the run above it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath

from mpi_train.runs.folder import ARCHIVE
from mpi_train.runs.record import RunRecord, read_run
from mpi_train.runtime import files
from mpi_train.runtime.errors import DataError

BENCH_FILE = "bench.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run that a bench plans, finished or not.

    Attributes:
        strategy: Name of the strategy.
        workers: Number of ranks or devices, 1 for one process.
        unit: ``rank``, ``device`` or ``process``.
        repeat: Number of the repeat, from 1.
        seed: Seed of the repeat.
        folder: Folder of ``run.json`` and ``job.log``, relative to the folder of the bench.
        command: Command that repeats the run.
        exit_code: None until the run has ended; 128 + n if signal n ended it.
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
    """Record of a run, its file, its command, its date as ``YYYY-MM-DD`` (UTC), and its bench."""

    record: RunRecord
    path: Path
    command: str
    date: str
    bench: Path | None = None


@dataclass(frozen=True)
class Collection:
    """Runs that count, and attempts without a run, whose folders are full paths."""

    runs: list[Run]
    unfinished: list[Attempt]


def write_attempts(bench: Path, attempts: Sequence[Attempt]) -> None:
    """Write ``bench.json`` into the folder ``bench``, whole or not at all."""
    listed = [dataclasses.asdict(attempt) for attempt in attempts]
    files.write_json(bench / BENCH_FILE, {"schema_version": SCHEMA_VERSION, "runs": listed})


def read_attempts(bench: Path) -> list[Attempt]:
    """Read ``bench.json`` from the folder ``bench``.

    Raises:
        DataError: the file is not JSON, has another schema version, lacks a field, or leaves its folder.
    """
    path = bench / BENCH_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {raw['schema_version']}")
        attempts = [Attempt(**run) for run in raw["runs"]]
        for folder in (PurePosixPath(attempt.folder) for attempt in attempts):
            if folder.is_absolute() or ".." in folder.parts:
                raise ValueError(f"the folder {folder}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: expected a bench's list of runs, schema version {SCHEMA_VERSION}. Got: {error}",
            remedy=f"run the bench again, or delete {path} to take all runs below it",
        ) from error
    return attempts


def collect(folders: Sequence[Path]) -> Collection:
    """Return the runs below ``folders``, in the order of their paths, those of a bench in its order.

    Raises:
        DataError: a record that cannot be read or holds impossible figures, or no run at all.
    """
    runs: dict[Path, Run] = {}
    unfinished: list[Attempt] = []
    for folder in folders:
        benches = sorted(path.parent for path in files_below(folder, BENCH_FILE))
        for bench in benches:
            for attempt in read_attempts(bench):
                own = bench / attempt.folder
                if attempt.exit_code == 0:
                    runs.setdefault(own.resolve(), _read(own / "run.json", attempt.command, bench))
                else:
                    unfinished.append(dataclasses.replace(attempt, folder=str(own)))
        for path in sorted(files_below(folder, "run.json")):
            if not any(bench in path.parents for bench in benches):
                runs.setdefault(path.parent.resolve(), _read(path))
    if not runs:
        raise DataError(
            f"expected a finished run (a run.json). Got: none below {', '.join(map(str, folders))}",
            remedy="make bench, or any training job; then name the folder given as --out",
        )
    return Collection(list(runs.values()), unfinished)


def files_below(folder: Path, name: str, *, archived: bool = False) -> list[Path]:
    """Return the files of a name below ``folder``, in no order; if ``archived``, of previous runs too."""
    found = []
    # os.walk, because rglob of pathlib takes several times as long over thousands of folders.
    for place, folders, names in os.walk(folder):
        if name in names:
            found.append(Path(place, name))
        if not archived and ARCHIVE in folders:
            folders.remove(ARCHIVE)
    return found


def _read(path: Path, command: str | None = None, bench: Path | None = None) -> Run:
    record = read_run(path)
    date = f"{datetime.fromtimestamp(path.stat().st_mtime, timezone.utc):%Y-%m-%d}"
    return Run(record=record, path=path, command=command or record.command, date=date, bench=bench)
