"""Two runs side by side: in what they differ, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from mpi_train.report import wording
from mpi_train.report.collect import files_below
from mpi_train.report.summary import TARGETS, sized, time_to, workers_of
from mpi_train.runs.record import RunRecord, read_run
from mpi_train.runtime.errors import DataError, UsageError

_SETTINGS = (
    "strategy", "model", "dataset", "dataset_sha256", "world_size", "threads_per_rank", "global_batch_size",
    "optimizer", "learning_rate", "seed", "dtype",
)  # fmt: skip
_Shown = Callable[[float], str]


def find(where: Path) -> tuple[str, RunRecord]:
    """The run at ``where``, a folder, its ``run.json``, or a run id below ``results``; and what to call it.

    Raises:
        UsageError: there is no run.
        DataError: its record cannot be read.
    """
    path = where / "run.json" if where.is_dir() else where
    if path.is_file():
        return str(where), read_run(path)
    for other in files_below(Path("results"), "run.json", put_aside=True):
        with suppress(DataError):
            if (record := read_run(other)).run_id == str(where):
                return record.run_id, record
    raise UsageError(
        f"--compare: expected the folder of a finished run, or its id. Got: {where}",
        remedy="name the folder that a job was given as --out, such as results/mpi",
    )


def table(first: tuple[str, RunRecord], second: tuple[str, RunRecord]) -> Table:
    """Settings and machine where they differ, then all figures, with the ratio of the second to the first."""
    (name_a, a), (name_b, b) = first, second
    shown = Table(box=None, pad_edge=False, title_justify="left")
    shown.add_column("")
    for name in (name_a, name_b):
        shown.add_column(Text(name), justify="right", overflow="fold")
    shown.add_column("ratio", justify="right")
    different = [(key, *values) for key, *values in _settings(a, b) if values[0] != values[1]]
    for key, one, other in different:
        shown.add_row(Text(key), Text(one, style="bold"), Text(other, style="bold"), "")
    if not different:
        shown.add_row("settings, machine", "the same", "the same", "")
    shown.add_section()
    for (key, one_value, how), (_, other_value, _) in zip(_figures(a), _figures(b), strict=True):
        pair = [wording.ABSENT if value is None else how(value) for value in (one_value, other_value)]
        ratio = other_value / one_value if one_value and other_value is not None else math.nan
        shown.add_row(Text(key), *pair, "" if math.isnan(ratio) else f"{ratio:.3f}")
    return shown


def _settings(a: RunRecord, b: RunRecord) -> list[tuple[str, str, str]]:
    def told(record: RunRecord) -> dict[str, Any]:
        return {
            **{name: getattr(record, name) for name in _SETTINGS},
            "epochs": len(record.epochs),
            "workers": sized(*workers_of(record)),
            **record.sync,
            "hosts": ", ".join(dict.fromkeys(record.environment.get("hosts", ()))),
            **wording.environment_facts(record),
        }

    one, other = told(a), told(b)
    return [
        (name.replace("_", " "), str(one.get(name, wording.ABSENT)), str(other.get(name, wording.ABSENT)))
        for name in dict.fromkeys([*one, *other])
    ]


def _figures(record: RunRecord) -> list[tuple[str, float | None, _Shown]]:
    return [
        ("training time [s]", record.train_s, wording.seconds),
        ("images/s", record.images_per_s, wording.rate),
        ("test accuracy", record.test_accuracy, wording.accuracy),
        ("training loss", record.epochs[-1].train_loss, lambda loss: f"{loss:.4f}"),
        *((f"time to {target:.2f} [s]", time_to(record, target), wording.seconds) for target in TARGETS),
        ("evaluation [s]", sum(epoch.eval_s for epoch in record.epochs), wording.seconds),
        ("start-up [s]", record.startup_s, wording.seconds),
        ("memory [MiB]", record.peak_rss_mib, wording.rate),
        ("sent a batch", record.bytes_per_step, wording.size),
    ]
