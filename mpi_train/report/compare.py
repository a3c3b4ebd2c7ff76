"""Comparison of two runs side by side: settings and machine where they differ, then all figures."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from rich.table import Table
from rich.text import Text

from mpi_train.report import tables
from mpi_train.report.collect import files_below
from mpi_train.report.summary import TARGETS, sized, time_to, workers_of
from mpi_train.report.text import environment_facts
from mpi_train.runs.record import RunRecord, read_run
from mpi_train.runtime.errors import DataError, UsageError

_SETTINGS = (
    "strategy", "model", "dataset", "dataset_sha256", "world_size", "threads_per_rank", "global_batch_size",
    "optimizer", "learning_rate", "seed", "dtype",
)  # fmt: skip


def find(where: Path) -> tuple[str, RunRecord]:
    """Return name and record of a run, given its folder, its ``run.json``, or its id below ``results``.

    Raises:
        UsageError: there is no such run.
        DataError: its record cannot be read.
    """
    path = where / "run.json" if where.is_dir() else where
    if path.is_file():
        return str(where), read_run(path)
    for other in files_below(Path("results"), "run.json", archived=True):
        with suppress(DataError):
            if (record := read_run(other)).run_id == str(where):
                return record.run_id, record
    raise UsageError(
        f"--compare: expected the folder of a finished run, or its id. Got: {where}",
        remedy="name the folder that a job was given as --out, such as results/mpi",
    )


def table(first: tuple[str, RunRecord], second: tuple[str, RunRecord]) -> Table:
    """Return the settings that differ, and all figures with the ratio of the second run to the first."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("")
    for name, _ in (first, second):
        shown.add_column(Text(name), justify="right", overflow="fold")
    shown.add_column("ratio", justify="right")
    one, other = _settings(first[1]), _settings(second[1])
    differing = [key for key in one | other if one.get(key) != other.get(key)]
    for key in differing:
        pair = (Text(facts.get(key, tables.ABSENT), style="bold") for facts in (one, other))
        shown.add_row(Text(key.replace("_", " ")), *pair)
    if not differing:
        shown.add_row("settings, machine", "the same", "the same")
    shown.add_section()
    others = _figures(second[1])
    for key, (text, value) in _figures(first[1]).items():
        other_text, other_value = others[key]
        ratio = f"{other_value / value:.3f}" if value and other_value is not None else ""
        shown.add_row(Text(key), text, other_text, ratio)
    return shown


def _settings(record: RunRecord) -> dict[str, str]:
    facts = {
        **{name: getattr(record, name) for name in _SETTINGS},
        "epochs": len(record.epochs),
        "workers": sized(*workers_of(record)),
        **record.sync,
        "hosts": ", ".join(dict.fromkeys(record.environment.get("hosts", ()))),
        **environment_facts(record),
    }
    return {name: str(value) for name, value in facts.items()}


def _figures(record: RunRecord) -> dict[str, tuple[str, float | None]]:
    """Return text and value of each figure, by name."""
    figures = {
        "training time [s]": (tables.seconds, record.train_s),
        "images/s": (tables.rate, record.images_per_s),
        "test accuracy": (tables.accuracy, record.test_accuracy),
        "training loss": (tables.accuracy, record.epochs[-1].train_loss),
        **{f"time to {target:.2f} [s]": (tables.seconds, time_to(record, target)) for target in TARGETS},
        "evaluation [s]": (tables.seconds, sum(epoch.eval_s for epoch in record.epochs)),
        "start-up [s]": (tables.seconds, record.startup_s),
        "memory [MiB]": (tables.rate, record.peak_rss_mib),
        "sent a batch": (tables.size, record.bytes_per_step),
    }
    return {
        name: (tables.ABSENT if value is None else shown(value), value)
        for name, (shown, value) in figures.items()
    }
