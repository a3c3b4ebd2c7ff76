"""``epochs.csv``: a row an epoch, as it ends, with the figures of ``run.json``; for whatever reads tables."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from mpi_train.runs.loggers.base import About
from mpi_train.runs.record import EpochRecord, RunRecord
from mpi_train.runtime import files

FIGURES = [field.name for field in dataclasses.fields(EpochRecord) if field.name != "by_rank"]
COLUMNS = ["run_id", "strategy", "world_size", *FIGURES, "total_train_s"]
"""``total_train_s`` is the time of training up to the end of the epoch: the sum of ``train_s``."""


class EpochsCsv:
    """Args:
    path: The file. Rows are appended, so that it can be followed; it is replaced where a run goes back.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._run: tuple[str, str, int] = ("", "", 0)
        self._train_s: list[float] = []

    def start(self, about: About, epochs: Sequence[EpochRecord]) -> None:
        self._run = (about.run_id, about.strategy, about.world_size)
        self.rewind(epochs)

    def rewind(self, epochs: Sequence[EpochRecord]) -> None:
        self._train_s = []
        files.write_text(self._path, _text(COLUMNS) + "".join(map(self._row, epochs)))

    def epoch(self, record: EpochRecord) -> None:
        with open(self._path, "a", encoding="utf-8", newline="") as file:
            file.write(self._row(record))

    def finish(self, record: RunRecord) -> None:
        """All rows are there."""

    def _row(self, record: EpochRecord) -> str:
        self._train_s.append(record.train_s)
        return _text([*self._run, *(getattr(record, name) for name in FIGURES), sum(self._train_s)])


def _text(values: Sequence[object]) -> str:
    """One line of CSV."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
