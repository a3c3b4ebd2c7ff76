"""Report of a network bench: the training time of each collective up to an accuracy, at each rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mpi_train.benchmarks import output
from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.report import charts, pages, text
from mpi_train.report import tables as cells
from mpi_train.report.collect import Attempt, Collection, collect
from mpi_train.report.summary import Summary, summarise, time_to
from mpi_train.report.tables import ABSENT, Table
from mpi_train.runs.record import RunRecord
from mpi_train.training.totals import sum_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEXT, PICTURE_FILE = "network.md", "network.png"
FILES = (TEXT, PICTURE_FILE)
_COLUMNS = ("Collective", "Averages", "Result", "Images/s", "Sent a step", "Hidden")
_COLOURS = {"exact": "#0072b2", "changes the result": "#e69f00"}


@dataclass(frozen=True)
class Row:
    """Run of a collective at one rate, and its training time up to the target accuracy; None if not known."""

    attempt: Attempt
    record: RunRecord | None
    reached_s: float | None
    speedup: float | None

    @property
    def name(self) -> str:
        return self.attempt.strategy

    @property
    def changes_result(self) -> bool | None:
        """True if training differs from that with an exact average at every step."""
        if self.record is None:
            return None
        return COLLECTIVES[self.record.sync["collective"]].changes_result or self.record.sync["every"] > 1

    @property
    def hidden(self) -> float | None:
        """Fraction of the communication time, over all ranks, that overlapped with computation."""
        ranks = sum_of(epoch.by_rank for epoch in self.record.epochs) if self.record else []
        hidden_s = sum(rank.hidden_s for rank in ranks)
        total_s = hidden_s + sum(rank.moving_s for rank in ranks)
        return hidden_s / total_s if total_s else None


@dataclass(frozen=True)
class Comparison:
    """Rows by rate, the test accuracy that they are timed to, and the facts that all runs have in common."""

    rates: dict[str, list[Row]]
    target: float
    summary: Summary


def compare(out: Path, attempts: Mapping[str, Sequence[Attempt]], *, target: float, plain: str) -> Comparison:
    """Compare the runs at each rate, in its folder of ``out``, with the run ``plain``."""
    runs = collect([out / rate for rate in attempts]).runs
    records = {run.path: run.record for run in runs}
    rates = {
        rate: rows([(a, records.get(out / rate / a.folder / "run.json")) for a in own], target, plain)
        for rate, own in attempts.items()
    }
    return Comparison(rates, target, summarise(Collection(runs, [])))


def rows(runs: Sequence[tuple[Attempt, RunRecord | None]], target: float, plain: str) -> list[Row]:
    """Return a row for each run at one rate."""
    reached_s = {attempt.strategy: time_to(record, target) if record else None for attempt, record in runs}
    plain_s = reached_s.get(plain)
    return [
        Row(attempt, record, own_s, plain_s / own_s if plain_s and own_s else None)
        for (attempt, record), own_s in zip(runs, reached_s.values(), strict=True)
    ]


def tables(comparison: Comparison) -> list[Table]:
    """Return a table for each rate."""
    columns = (*_COLUMNS, f"To {comparison.target:.2f}", "Speed-up", "Test accuracy")
    return [
        Table(title=_title(rate), columns=columns, rows=list(map(_cells, own)), num_names=3)
        for rate, own in comparison.rates.items()
    ]


def _title(rate: str) -> str:
    return "No limit" if rate == "none" else rate


def _cells(row: Row) -> list[str]:
    record = row.record
    if record is None:
        return [row.name, cells.outcome([row.attempt]), "", *[ABSENT] * 6]
    every, sent, reached_s = record.sync["every"], record.bytes_per_step, row.reached_s
    missed = f"not in {len(record.epochs)} epochs"
    return [
        row.name,
        record.sync["average"] + (f", every {every}" if every > 1 else ""),
        "changed" if row.changes_result else "exact",
        cells.rate(record.images_per_s),
        ABSENT if sent is None else cells.size(sent),
        ABSENT if row.hidden is None else cells.percent(row.hidden),
        missed if reached_s is None else f"{cells.seconds(reached_s)} s",
        ABSENT if row.speedup is None else cells.times(row.speedup),
        cells.accuracy(record.test_accuracy),
    ]


def write(comparison: Comparison, out: Path) -> None:
    """Write ``network.md`` and ``network.png`` into the folder ``out``; raises ``UsageError``."""
    summary, target = comparison.summary, f"{comparison.target:.2f}"
    claim = f"Training time to a test accuracy of {target}"
    subject = f"{summary.work['model']} on {text.data_name(summary)}"
    page = pages.fill(
        "network.md.j2",
        __package__,
        subject=subject,
        claim=claim,
        target=target,
        picture=PICTURE_FILE,
        text=text,
        summary=summary,
        tables=tables(comparison),
        rates=comparison.rates,
    )
    figure = _draw(comparison.rates, f"{claim}\n{subject}, global batch {summary.work['global_batch_size']}")
    output.write(out, {PICTURE_FILE: figure, TEXT: page})


def _draw(rates: dict[str, list[Row]], title: str) -> Figure:
    """Draw bars of the time to the target, with a panel for each rate."""
    import matplotlib as mpl

    names = [row.name for row in next(iter(rates.values()))]
    with mpl.rc_context(charts.STYLE):
        figure = charts.new_figure(title, 1.6 + 0.3 * len(names), 3.2 + 2.6 * len(rates))
        panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
        for axes, (rate, own) in zip(panels, rates.items(), strict=True):
            times = [row.reached_s or 0.0 for row in own]
            colours = [_COLOURS["changes the result" if row.changes_result else "exact"] for row in own]
            bars = axes.barh(range(len(own)), times, height=0.6, color=colours)
            axes.bar_label(bars, list(map(_bar_label, own)), padding=4)
            axes.set_title(_title(rate))
            axes.set_xlim(0, 1.3 * (max(times) or 1.0))
            axes.set_xlabel("training time [s]")
            axes.grid(visible=False, axis="y")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.4, -0.6)
        for label, colour in _COLOURS.items():
            panels[0].bar(0, 0, color=colour, label=label)
        charts.legend(figure, panels[0])
        return figure


def _bar_label(row: Row) -> str:
    if row.reached_s is None:
        return "failed" if row.attempt.failed else "not reached" if row.record else "not run"
    return f"{row.reached_s:,.{0 if row.reached_s >= 100 else 1}f} s"
