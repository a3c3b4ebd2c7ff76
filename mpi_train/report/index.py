"""``index.html``: all runs below a folder on one page, with filters, sorting and links to reports."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mpi_train.report import tables
from mpi_train.report.collect import files_below
from mpi_train.report.pages import PAGE, fill
from mpi_train.report.summary import sized, workers_of
from mpi_train.runs.folder import ARCHIVE
from mpi_train.runs.record import read_run
from mpi_train.runtime import files
from mpi_train.runtime.errors import DataError, UsageError

INDEX = "index.html"
FILTERS = ("Strategy", "Model", "Data")


def write(folder: Path) -> Path:
    """Write ``index.html`` into ``folder``, over all runs below it, the newest first. Return its path.

    Raises:
        UsageError: the file cannot be written.
    """
    entries: list[dict[str, Any]] = []
    unreadable: list[str] = []
    for path in files_below(folder, "run.json", archived=True):
        try:
            entries.append(_entry(path, folder))
        except DataError as error:
            unreadable.append(error.message)
    entries.sort(key=lambda entry: entry["cells"]["When"][1], reverse=True)
    choices = {name: sorted({entry["cells"][name][0] for entry in entries}) for name in FILTERS}
    page = fill(
        "index.html.j2",
        folder=folder.resolve().name,
        entries=entries,
        choices=choices,
        unreadable=unreadable,
    )
    try:
        files.write_text(folder / INDEX, page)
    except OSError as error:
        raise UsageError(
            f"--index: expected a folder that can be written. Got: {folder} ({error.strerror})"
        ) from error
    return folder / INDEX


def _entry(path: Path, folder: Path) -> dict[str, Any]:
    """Return a run on the page: text and sort key of its cells, and the links."""
    record = read_run(path)
    workers, unit = workers_of(record)
    # Records of old versions lack the time of the start; the time of the file is close to the end.
    when = (
        datetime.fromisoformat(record.started.replace("Z", "+00:00"))
        if record.started
        else datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    )
    cells: dict[str, tuple[str, str | float]] = {
        "When": (f"{when:%Y-%m-%d %H:%M}", when.timestamp()),
        "Run": (name := str(path.parent.relative_to(folder)), name),
        "Strategy": (record.strategy, record.strategy),
        "On": (sized(workers, unit), workers),
        "Model": (record.model, record.model),
        "Data": (record.dataset, record.dataset),
        "Batch": (str(record.global_batch_size), record.global_batch_size),
        "Epochs": (str(len(record.epochs)), len(record.epochs)),
        "Seed": (str(record.seed), record.seed),
        "Precision": (record.dtype, record.dtype),
        "Time [s]": (tables.seconds(record.train_s), record.train_s),
        "Images/s": (tables.rate(record.images_per_s), record.images_per_s),
        "Accuracy": (tables.accuracy(record.test_accuracy), record.test_accuracy),
    }
    return {"cells": cells, "record": quote(str(path.relative_to(folder))), "report": _report(path, folder)}


def _report(path: Path, folder: Path) -> str:
    """Return the link to the report in the nearest folder above a record; empty for none."""
    for place in path.parents:
        if (place / PAGE).is_file():
            return quote(str((place / PAGE).relative_to(folder)))
        # The report above a folder of previous runs leaves those out.
        if place == folder or place.name == ARCHIVE:
            break
    return ""
