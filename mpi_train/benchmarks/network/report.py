"""Report of a network bench: the training time of each collective up to an accuracy, at each rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mpi_train.benchmarks import output
from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.report import pages, text
from mpi_train.report import tables as cells
from mpi_train.report.collect import Attempt, Collection, collect
from mpi_train.report.summary import summarise, time_to
from mpi_train.report.tables import ABSENT, Table
from mpi_train.runs.record import RunRecord
from mpi_train.training.totals import sum_of

TEXT = "network.md"
_COLUMNS = ("Collective", "Averages", "Result", "Images/s", "Sent a step", "Hidden")


def write(out: Path, attempts: Mapping[str, Sequence[Attempt]], target: float, plain: str) -> list[Table]:
    """Write ``network.md`` into ``out``, and return its tables: one for each rate.

    The runs at a rate are in its folder of ``out``. They are timed to the test accuracy ``target``, and
    compared with the run ``plain`` at the same rate. Raises ``UsageError`` if ``out`` cannot be written.
    """
    runs = collect([out / rate for rate in attempts]).runs
    records = {run.path.parent: run.record for run in runs}
    tables = []
    for rate, own in attempts.items():
        pairs = [(attempt, records.get(out / rate / attempt.folder)) for attempt in own]
        tables.append(table("No limit" if rate == "none" else rate, pairs, target, plain))
    page = pages.fill(
        "network.md.j2",
        __package__,
        target=f"{target:.2f}",
        text=text,
        summary=summarise(Collection(runs, [])),
        tables=tables,
        commands=[attempt.command for own in attempts.values() for attempt in own],
    )
    output.write(out, {TEXT: page})
    return tables


def table(title: str, runs: Sequence[tuple[Attempt, RunRecord | None]], target: float, plain: str) -> Table:
    """Return the table of the runs at one rate; without a record, a run has not finished."""
    columns = (*_COLUMNS, f"To {target:.2f}", "Speed-up", "Test accuracy")
    reached_s = {each.strategy: time_to(record, target) if record else None for each, record in runs}
    rows = [
        [attempt.strategy, *_cells(record, reached_s[attempt.strategy], reached_s.get(plain))]
        if record
        else [attempt.strategy, cells.outcome([attempt]), "", *[ABSENT] * 6]
        for attempt, record in runs
    ]
    return Table(title=title, columns=columns, rows=rows, num_names=3)


def _cells(record: RunRecord, reached_s: float | None, plain_s: float | None) -> list[str]:
    """Return the figures of a run, given its own time up to the target accuracy and that of ``plain``."""
    sync, every, sent, hidden = record.sync, record.sync["every"], record.bytes_per_step, hidden_of(record)
    changes_result = COLLECTIVES[sync["collective"]].changes_result or every > 1
    return [
        sync["average"] + (f", every {every}" if every > 1 else ""),
        "changed" if changes_result else "exact",
        cells.rate(record.images_per_s),
        ABSENT if sent is None else cells.size(sent),
        ABSENT if hidden is None else cells.percent(hidden),
        f"not in {len(record.epochs)} epochs" if reached_s is None else f"{cells.seconds(reached_s)} s",
        cells.times(plain_s / reached_s) if plain_s and reached_s else ABSENT,
        cells.accuracy(record.test_accuracy),
    ]


def hidden_of(record: RunRecord) -> float | None:
    """Return the fraction of the communication time, over all ranks, that overlapped with computation."""
    ranks = sum_of(epoch.by_rank for epoch in record.epochs)
    hidden_s = sum(rank.hidden_s for rank in ranks)
    total_s = hidden_s + sum(rank.moving_s for rank in ranks)
    return hidden_s / total_s if total_s else None
