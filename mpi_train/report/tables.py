"""The tables of a report, as cells of text: the comparison, and what lies behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mpi_train.report import wording
from mpi_train.report.summary import TARGETS, Reached, Row, Spread, Summary
from mpi_train.training.totals import RankTimes

MAX_RANKS = 8
"""Ranks of a row that are shown: of more, those that computed least and most."""

Cell = tuple[str, str]
"""A figure and its range over the repeats, which is empty for one repeat."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """What is shown of it.

    Attributes:
        title: Above it; empty for the first of a report.
        columns: Their names.
        num_names: Columns, from the left, that hold names; the others hold figures.
        rows: A cell for each column.
        note: Below it.
    """

    title: str
    columns: tuple[str, ...]
    num_names: int
    rows: list[list[Cell]]
    note: str = ""


def comparison(summary: Summary) -> Table:
    """A line a strategy: time, speed-up, efficiency, accuracy."""
    rows = [wording.cells(row) for row in summary.rows]
    return Table(title="", columns=wording.COLUMNS, num_names=2, rows=rows)


def details(summary: Summary) -> list[Table]:
    """All other tables that have anything to say."""
    tables = (_time_to_accuracy(summary), _where_the_time_went(summary), _what_else(summary))
    return [table for table in tables if table.rows]


def _time_to_accuracy(summary: Summary) -> Table:
    return Table(
        title="Training time to a test accuracy",
        columns=("Strategy", "On", *(f"{target:.2f}" for target in TARGETS)),
        num_names=2,
        rows=[
            [(row.name, ""), (row.size, ""), *(_reached(row, row.reached[target]) for target in TARGETS)]
            for row in summary.measured
        ],
        note="By the clock of the training steps, at the end of the first epoch that had it.",
    )


def _reached(row: Row, reached: Reached) -> Cell:
    median, span = wording.cell(reached.train_s, wording.seconds, unit=" s")
    if 0 < reached.num_runs < len(row.runs):
        median += f", {reached.num_runs} of {len(row.runs)} runs"
    return median, span


def _where_the_time_went(summary: Summary) -> Table:
    hides = any(times.hidden_s for row in summary.measured for times in row.rank_times)
    return Table(
        title="Where the training time went",
        columns=(
            *("Strategy", "Rank", "Compute", "Moving bytes", "Waiting", "Host", "Sent"),
            *(("Hidden",) if hides else ()),
        ),
        num_names=2,
        rows=[
            [(f"{row.name}, {row.size}", ""), (who, ""), *_parts(times, hides=hides)]
            for row in summary.measured
            for who, times in shown_ranks(row)
        ],
        note="Of the first repeat, all epochs together. Waiting is for other ranks that were not there yet; "
        "host is what lies between two compiled chunks of steps. "
        + (
            "Hidden is for how long bytes moved while the rank computed, which took no time. "
            if hides
            else ""
        )
        + "Strategies that are not listed exchange inside TensorFlow or PyTorch, where it cannot be told.",
    )


def _parts(times: RankTimes, *, hides: bool) -> list[Cell]:
    hidden = [(_seconds(times.hidden_s), "")] if hides else []
    parts = [(_seconds(part_s), "") for part_s in times.parts_s]
    return [*parts, (wording.size(times.sent_bytes), ""), *hidden]


def shown_ranks(row: Row) -> list[tuple[str, RankTimes]]:
    """Ranks whose times are shown, by name: all of a few, else those that computed least and most."""
    everyone = row.rank_times
    names = [f"{rank}" for rank in range(len(everyone))]
    if len(everyone) <= MAX_RANKS:
        return list(zip(names, everyone, strict=True))
    by_work = sorted(range(len(everyone)), key=lambda rank: everyone[rank].compute_s)
    chosen = sorted([*by_work[: MAX_RANKS // 2], *by_work[-MAX_RANKS // 2 :]])
    return [(f"{names[rank]} of {len(everyone)}", everyone[rank]) for rank in chosen]


def _what_else(summary: Summary) -> Table:
    return Table(
        title="What else it took",
        columns=("Strategy", "On", "Start-up", "Evaluation", "Checkpoints", "Sent a batch", "Memory"),
        num_names=2,
        rows=[
            [
                (row.name, ""),
                (row.size, ""),
                _cell(row.costs.startup_s, _seconds),
                _cell(row.costs.eval_s, _seconds),
                _cell(row.costs.checkpoint_s, _seconds),
                _cell(row.costs.bytes_per_step, wording.size),
                _cell(row.costs.peak_rss_mib, wording.mebibytes),
            ]
            for row in summary.measured
            if row.costs is not None
        ],
        note="Start-up is from the start of the process until the first step can be made. Memory is the peak "
        "of the rank with the most; sent, of the rank that sent most.",
    )


def _cell(spread: Spread | None, shown: Callable[[float], str]) -> Cell:
    """As ``wording.cell``, with a range only where it shows."""
    median, span = wording.cell(spread, shown)
    return median, "" if span == f"{median} to {median}" else span


def _seconds(value: float) -> str:
    return f"{wording.seconds(value)} s"
