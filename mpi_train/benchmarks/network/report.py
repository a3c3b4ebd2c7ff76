"""Collectives compared on slow links: how long each trains to an accuracy, in words and in a picture.

``compare`` makes all figures; ``terminal`` and ``write`` show them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.report import tables, text
from mpi_train.report.charts import STYLE, legend, new_figure
from mpi_train.report.collect import Attempt, Collection, collect
from mpi_train.report.pages import fill, save_png
from mpi_train.report.summary import Summary, summarise, time_to
from mpi_train.report.tables import Table
from mpi_train.runs.record import RunRecord
from mpi_train.runtime import files
from mpi_train.runtime.errors import unwritable
from mpi_train.training.totals import sum_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table as TerminalTable

TEXT, PICTURE_FILE = "network.md", "network.png"
FILES = (TEXT, PICTURE_FILE)
_COLOURS = {False: "#0072b2", True: "#e69f00"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One collective at one rate.

    Attributes:
        name: As ``--collectives`` has it.
        attempt: Its run.
        record: What that left; None where it was not finished.
        reached_s: Training time up to the end of the first epoch whose test accuracy reached the target;
            None where none did.
        speedup: That of plain divided by it; None where either is not known.
        hidden: Part of the time in which bytes moved, over all ranks, in which they computed too.
    """

    name: str
    attempt: Attempt
    record: RunRecord | None = None
    reached_s: float | None = None
    speedup: float | None = None
    hidden: float | None = None

    @property
    def changes_result(self) -> bool | None:
        """Whether the training takes another course than with an exact average at every step."""
        if self.record is None:
            return None
        sync = self.record.sync
        return COLLECTIVES[sync["collective"]].changes_result or sync["every"] > 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Attributes:
    target: Test accuracy that rows are timed to.
    rates: By rate, in the order in which they were measured, a row for each collective.
    summary: Of all runs, for what they have in common.
    """

    target: float
    rates: dict[str, list[Row]]
    summary: Summary


def compare(out: Path, attempts: Sequence[Attempt], *, target: float, plain: str) -> Comparison:
    """Compares runs whose folders in ``out`` are ``RATE/COLLECTIVE``.

    Args:
        out: Folder of the bench, in which each rate's lists its runs.
        attempts: All its runs; some are finished.
        target: Test accuracy that rows are timed to.
        plain: Name of the row that the others are measured against.

    Raises:
        DataError: a record that cannot be read.
    """
    rates = list(dict.fromkeys(attempt.folder.split("/", 1)[0] for attempt in attempts))
    by_path = {run.path: run for run in collect([out / rate for rate in rates]).runs}
    found = {rate: [a for a in attempts if a.folder.startswith(f"{rate}/")] for rate in rates}
    return Comparison(
        target=target,
        rates={
            rate: rows(
                [
                    (
                        attempt,
                        by_path[path].record
                        if (path := out / attempt.folder / "run.json") in by_path
                        else None,
                    )
                    for attempt in own
                ],
                target=target,
                plain=plain,
            )
            for rate, own in found.items()
        },
        summary=summarise(Collection(list(by_path.values()), [])),
    )


def rows(runs: Sequence[tuple[Attempt, RunRecord | None]], *, target: float, plain: str) -> list[Row]:
    """A row for each run at one rate."""
    made = [
        Row(
            name=attempt.strategy,
            attempt=attempt,
            record=record,
            reached_s=time_to(record, target) if record else None,
            hidden=_hidden(record) if record else None,
        )
        for attempt, record in runs
    ]
    plain_s = next((row.reached_s for row in made if row.name == plain), None)
    return [
        dataclasses.replace(row, speedup=plain_s / row.reached_s) if plain_s and row.reached_s else row
        for row in made
    ]


def _hidden(record: RunRecord) -> float | None:
    ranks = sum_of(epoch.by_rank for epoch in record.epochs)
    hidden_s = sum(rank.hidden_s for rank in ranks)
    seen_s = sum(rank.moving_s for rank in ranks)
    return hidden_s / (hidden_s + seen_s) if hidden_s + seen_s else None


def tables_of(comparison: Comparison) -> list[Table]:
    """One for each rate."""
    return [
        Table(
            title="No limit" if rate == "none" else rate,
            columns=(
                "Collective",
                "Averages",
                "Result",
                "Images/s",
                "Sent a step",
                "Hidden",
                f"To {comparison.target:.2f}",
                "Speed-up",
                "Test accuracy",
            ),
            num_names=3,
            rows=[_cells(row) for row in rows_of_rate],
        )
        for rate, rows_of_rate in comparison.rates.items()
    ]


def _cells(row: Row) -> list[str]:
    record = row.record
    if record is None:
        absent = [tables.ABSENT] * 6
        return [row.name, tables.outcome([row.attempt]), "", *absent]
    every = record.sync["every"]
    return [
        row.name,
        record.sync["average"] + (f", every {every}" if every > 1 else ""),
        "changed" if row.changes_result else "exact",
        tables.rate(record.images_per_s),
        tables.ABSENT if record.bytes_per_step is None else tables.size(record.bytes_per_step),
        tables.ABSENT if row.hidden is None else tables.percent(row.hidden),
        f"not in {len(record.epochs)} epochs"
        if row.reached_s is None
        else f"{tables.seconds(row.reached_s)} s",
        tables.ABSENT if row.speedup is None else tables.times(row.speedup),
        tables.accuracy(record.test_accuracy),
    ]


def terminal(comparison: Comparison) -> list[TerminalTable]:
    """Return the tables for a terminal of 80 columns."""
    return [table.terminal() for table in tables_of(comparison)]


def notes(comparison: Comparison) -> list[str]:
    """How the figures were taken, and what to beware of."""
    summary = comparison.summary
    record = summary.records[0]
    cores = record.environment.get("cores")
    lines = [
        (
            f"To {comparison.target:.2f}: training time up to the end of the first epoch whose test accuracy "
            f"reached it; speed-up: that of plain divided by it. Evaluation and start-up are left out."
        ),
        (
            "Averages: what is averaged, weights after a step or gradients before it. Rows that average "
            "another thing than plain have updates of another kind."
        ),
        (
            "Result: exact is the mean over all ranks at every step, but for rounding; changed is another "
            "course of training, which may need more epochs or end elsewhere."
        ),
        (
            "Sent a step: bytes of the rank that sent most, for each global batch. Hidden: of the time in "
            "which they moved, the part in which ranks computed too."
        ),
        "Each node's link lets through the rate one way and the other, and has no latency (docs/network.md).",
        "One run of each, with the same seed: small differences mean nothing.",
    ]
    if cores and cores < record.world_size:
        lines.append(
            f"The {record.world_size} nodes share the {cores} cores of one machine, which move their bytes "
            f"too: at high rates the processor is the limit, and not the network."
        )
    return [*lines, *text.unequal_conditions(summary)]


def write(comparison: Comparison, out: Path) -> None:
    """Writes ``network.md`` and ``network.png`` into the folder ``out``.

    Raises:
        UsageError: they cannot be written.
    """
    import matplotlib as mpl

    summary = comparison.summary
    written = fill(
        "network.md.j2",
        package="mpi_train.benchmarks.network",
        title=f"Collectives on slow links: {summary.work['model']} on {text.data_name(summary)}",
        caution=text.caution(summary),
        header=text.header(summary),
        tables=tables_of(comparison),
        picture=PICTURE_FILE,
        caption=_caption(comparison),
        notes=notes(comparison),
        commands=[row.attempt.command for own in comparison.rates.values() for row in own],
    )
    try:
        with mpl.rc_context(STYLE):
            save_png(_draw(comparison), out / PICTURE_FILE)
        files.write_text(out / TEXT, written)
    except OSError as error:
        raise unwritable(out, error) from error


def _caption(comparison: Comparison) -> str:
    return f"Training time to a test accuracy of {comparison.target:.2f}"


def _draw(comparison: Comparison) -> Figure:
    """Bars of the time to the target, a panel for each rate."""
    rates = comparison.rates
    names = list(dict.fromkeys(row.name for own in rates.values() for row in own))
    work = comparison.summary.work
    data = (
        f"{work['model']} on {text.data_name(comparison.summary)}, global batch {work['global_batch_size']}"
    )
    title = f"{_caption(comparison)}\n{data}"
    figure = new_figure(title, 1.6 + 0.34 * len(names), 3.2 + 2.6 * len(rates))
    panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for axes, (rate, own) in zip(panels, rates.items(), strict=True):
        longest_s = max((row.reached_s for row in own if row.reached_s), default=1.0)
        for row in own:
            place = names.index(row.name)
            words: dict[str, Any] = {"va": "center", "xytext": (4, 0)}
            changed = bool(row.changes_result)
            if row.reached_s is None:
                said = "failed" if row.attempt.failed else "not reached" if row.record else "not run"
                axes.annotate(said, (0, place), textcoords="offset points", **words)
                continue
            axes.barh(place, row.reached_s, height=0.6, color=_COLOURS[changed])
            axes.annotate(
                f"{row.reached_s:,.{0 if row.reached_s >= 100 else 1}f} s",
                (row.reached_s, place),
                textcoords="offset points",
                **words,
            )
        axes.set_title("no limit" if rate == "none" else rate, fontsize=10)
        axes.set_xlim(0, 1.3 * longest_s)
        axes.set_xlabel("training time [s]")
        axes.grid(visible=False, axis="y")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    for changed, label in ((False, "exact"), (True, "changes the result")):
        panels[0].bar(0, 0, color=_COLOURS[changed], label=label)
    legend(figure, panels[0])
    return figure
