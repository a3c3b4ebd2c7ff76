"""``index.html``: all runs below a folder on one page, to be filtered, sorted, and gone to from there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote

from mpi_train.report import templates, wording
from mpi_train.report.collect import files_below
from mpi_train.report.summary import sized, workers_of
from mpi_train.runs import folder as earlier
from mpi_train.runs.record import read_run
from mpi_train.runtime import files
from mpi_train.runtime.errors import DataError, UsageError

INDEX = "index.html"
_REPORT = "report.html"

COLUMNS = (
    "When", "Run", "Strategy", "On", "Model", "Data", "Batch", "Epochs", "Seed", "Precision", "Time [s]",
    "Images/s", "Accuracy",
)  # fmt: skip
FILTERS = ("Strategy", "Model", "Data")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run on the page.

    Attributes:
        cells: A text for each of ``COLUMNS``.
        keys: What to sort each by.
        record: Where its ``run.json`` is, relative to the page.
        report: Where the nearest report is; empty where there is none.
    """

    cells: tuple[str, ...]
    keys: tuple[str | float, ...]
    record: str
    report: str


def write(folder: Path) -> Path:
    """Writes ``index.html`` into ``folder``, over all runs below it, the newest first. Returns its path.

    Raises:
        UsageError: it cannot be written.
    """
    entries: list[Entry] = []
    unreadable: list[str] = []
    reports: dict[Path, str] = {}
    for path in files_below(folder, "run.json", put_aside=True):
        try:
            entries.append(_entry(path, folder, reports))
        except DataError as error:
            unreadable.append(error.message)
    entries.sort(key=lambda entry: entry.keys[0], reverse=True)
    text = templates.fill(
        "index.html.j2",
        folder=folder.resolve().name,
        columns=COLUMNS,
        entries=entries,
        choices={name: _choices(entries, name) for name in FILTERS},
        unreadable=unreadable,
        num_names=6,
    )
    target = folder / INDEX
    try:
        files.write_text(target, text)
    except OSError as error:
        raise UsageError(
            f"--index: expected a folder that can be written. Got: {folder} ({error.strerror})"
        ) from error
    return target


def _entry(path: Path, folder: Path, reports: dict[Path, str]) -> Entry:
    record = read_run(path)
    workers, unit = workers_of(record)
    # A record of a version that did not note its start has at least been written some time.
    when = (
        datetime.fromisoformat(record.started.replace("Z", "+00:00"))
        if record.started
        else datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    )
    name = str(path.parent.relative_to(folder))
    shown: list[tuple[str, str | float]] = [
        (f"{when:%Y-%m-%d %H:%M}", when.timestamp()),
        (name, name),
        (record.strategy, record.strategy),
        (sized(workers, unit), workers),
        (record.model, record.model),
        (record.dataset, record.dataset),
        (str(record.global_batch_size), record.global_batch_size),
        (str(len(record.epochs)), len(record.epochs)),
        (str(record.seed), record.seed),
        (record.dtype, record.dtype),
        (wording.seconds(record.train_s), record.train_s),
        (wording.rate(record.images_per_s), record.images_per_s),
        (wording.accuracy(record.test_accuracy), record.test_accuracy),
    ]
    cells, keys = zip(*shown, strict=True)
    return Entry(
        cells=cells,
        keys=keys,
        record=quote(str(path.relative_to(folder))),
        report=_report_near(path.parent, folder, reports),
    )


def _report_near(place: Path, folder: Path, known: dict[Path, str]) -> str:
    """The report in ``place``, or in the nearest folder above it up to ``folder``."""
    if place not in known:
        if (place / _REPORT).is_file():
            known[place] = quote(str((place / _REPORT).relative_to(folder)))
        else:
            # That of a folder leaves out what was put aside in it.
            ends = place == folder or place.name == earlier.ARCHIVE
            known[place] = "" if ends else _report_near(place.parent, folder, known)
    return known[place]


def _choices(entries: list[Entry], column: str) -> list[str]:
    place = COLUMNS.index(column)
    return sorted({entry.cells[place] for entry in entries})
