"""Logger that writes ``epochs.csv``: one row an epoch, with the figures of ``run.json``."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from mpi_train.runs.loggers.base import Logger, RunInfo
from mpi_train.runs.record import EpochRecord
from mpi_train.runtime import files

FIGURES = [field.name for field in dataclasses.fields(EpochRecord) if field.name != "by_rank"]
COLUMNS = ["run_id", "strategy", "world_size", *FIGURES, "total_train_s"]
"""``total_train_s`` is the sum of ``train_s`` up to the end of the epoch."""


class EpochsCsv(Logger):
    """CSV table in the file ``path``. Rows are appended; a run that is rolled back replaces the file."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path

    def start(self, info: RunInfo, epochs: Sequence[EpochRecord]) -> None:
        self._run = (info.run_id, info.strategy, info.world_size)
        self.rewind(epochs)

    def rewind(self, epochs: Sequence[EpochRecord]) -> None:
        self._train_s: list[float] = []
        files.write_text(self._path, _line(COLUMNS) + "".join(map(self._row, epochs)))

    def epoch(self, record: EpochRecord) -> None:
        with open(self._path, "a", encoding="utf-8", newline="") as file:
            file.write(self._row(record))

    def _row(self, record: EpochRecord) -> str:
        self._train_s.append(record.train_s)
        return _line([*self._run, *(getattr(record, name) for name in FIGURES), sum(self._train_s)])


def _line(values: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
