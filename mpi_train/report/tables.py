"""Tables of a report as text cells, and the formats of the figures in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mpi_train.report.collect import Attempt
from mpi_train.report.summary import TARGETS, Row, Spread, Summary, elapsed_s
from mpi_train.runs.record import RunRecord
from mpi_train.training.totals import RankTimes

if TYPE_CHECKING:
    from rich.table import Table as TerminalTable

ABSENT = "-"
STALLED = "†"
seconds = "{:,.2f}".format
rate = "{:,.0f}".format
accuracy = "{:.4f}".format
times = "{:.2f}x".format
percent = "{:.0%}".format
mebibytes = "{:,.0f} MiB".format
_time = "{:,.2f} s".format
MAX_RANKS = 8
"""Number of ranks of a row that are shown: of more ranks, those that computed least and most."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Table of text cells, with a ``title`` above and a ``note`` below unless they are empty.

    The first ``num_names`` columns hold names, the others figures. A line break in a cell separates a figure
    from its range over the repeats.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""
    num_names: int = 1

    def markdown(self) -> str:
        """Return heading, table and note in Markdown."""
        ruler = [":---" if number < self.num_names else "---:" for number in range(len(self.columns))]
        rows = [[one_line(cell).replace("|", "\\|") for cell in row] for row in self.rows]
        first, *lines = (f"| {' | '.join(line)} |" for line in (self.columns, *rows))
        table = "\n".join((first, f"|{'|'.join(ruler)}|", *lines))
        return "\n\n".join(filter(None, (f"## {self.title}" if self.title else "", table, self.note)))

    def terminal(self) -> TerminalTable:
        """Return a narrow table for rich: ranges stand under figures, further names under the first name."""
        from rich.table import Table as TerminalTable
        from rich.text import Text

        title = Text(self.title) if self.title else None
        shown = TerminalTable(title=title, title_justify="left", box=None, pad_edge=False)
        shown.add_column(self.columns[0], overflow="fold")
        for column in self.columns[self.num_names :]:
            shown.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
        for row in self.rows:
            (name, *remark), *others = (cell.replace(" to ", "-").split("\n") for cell in row)
            below = ", ".join(filter(None, (*(cell[0] for cell in others[: self.num_names - 1]), *remark)))
            cells = ([name, below], *others[self.num_names - 1 :])
            shown.add_row(*(Text(first) + Text("\n".join(("", *more)) if any(more) else "", "dim")
                            for first, *more in cells))  # fmt: skip
        return shown


def one_line(cell: str) -> str:
    """Return the text of a cell in one line, with the range of its figure in brackets."""
    figure, _, span = cell.partition("\n")
    return f"{figure} ({span})" if span else figure


def size(num_bytes: float) -> str:
    """Return a number of bytes in powers of 1000, such as ``407 kB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 999.5 or unit == "GB":
            break
        num_bytes /= 1000
    return f"{num_bytes:,.0f} {unit}" if num_bytes >= 100 else f"{num_bytes:.3g} {unit}"


def cell(spread: Spread | None, shown: Callable[[float], str], unit: str = "") -> str:
    """Return a figure and its range, such as ``9.52 s\\n9.13 to 9.75``; no range for a single repeat."""
    if spread is None:
        return ABSENT
    span = f"\n{shown(spread.low)} to {shown(spread.high)}" if spread.num_repeats > 1 else ""
    return shown(spread.median) + unit + span


def _brief(spread: Spread | None, shown: Callable[[float], str]) -> str:
    """Return a ``cell`` without a range whose two ends read the same as the figure."""
    figure, _, span = (text := cell(spread, shown)).partition("\n")
    return figure if span == f"{figure} to {figure}" else text


def outcome(unfinished: Sequence[Attempt]) -> str:
    """Return the outcome of attempts that left no run; empty if there are none."""
    failed = [attempt for attempt in unfinished if attempt.failed]
    if failed:
        codes = " and ".join(sorted({str(attempt.exit_code) for attempt in failed}))
        return f"failed ({f'{len(failed)} times, ' if len(failed) > 1 else ''}exit code {codes})"
    return "was not finished" if unfinished else ""


def comparison(summary: Summary, title: str = "") -> Table:
    """Return the main table: time, speed-up, efficiency and accuracy of each strategy."""
    return Table(
        title=title,
        columns=("Strategy", "On", "Training time", "Speed-up", "Efficiency", "Images/s", "Test accuracy"),
        num_names=2,
        rows=[_compared(row) for row in summary.rows],
    )


def _compared(row: Row) -> list[str]:
    end = outcome(row.unfinished)
    if not row.runs:
        return [row.name, row.size, end, *[ABSENT] * 4]
    return [
        f"{row.name}\n{end}" if end else row.name,
        row.size,
        cell(row.train_s, seconds, unit=f" s {STALLED}" if row.num_stalled else " s"),
        times(1) if row.is_baseline else cell(row.speedup, times),
        cell(row.efficiency, percent),
        cell(row.images_per_s, rate),
        cell(row.test_accuracy, accuracy),
    ]


def details(summary: Summary) -> list[Table]:
    """Return all further tables that have rows."""
    tables = (
        _by_row(
            "Training time to a test accuracy",
            summary.measured,
            {f"{target:.2f}": partial(_reached, target=target) for target in TARGETS},
            "Training time at the end of the first epoch that reached the accuracy.",
        ),
        _by_row(
            "Scaling",
            [row for row in summary.measured if row.efficiency is not None],
            {
                "Speed-up over one rank": lambda row: _brief(row.speedup_over_one, times),
                "Efficiency": lambda row: _brief(row.efficiency, percent),
            },
            "Speed-up over one rank: images/s divided by the images/s of the suite's own loop on one rank.",
        ),
        _where_the_time_went(summary),
        _by_row(
            "Other costs",
            summary.measured,
            {
                "Start-up": lambda row: _brief(row.spread(lambda run: run.startup_s), _time),
                "Evaluation": lambda row: _brief(row.spread(_eval_s), _time),
                "Checkpoints": lambda row: _brief(row.spread(lambda run: run.checkpoint_s), _time),
                "Sent a batch": lambda row: _brief(row.spread(lambda run: run.bytes_per_step), size),
                "Memory": lambda row: _brief(row.spread(lambda run: run.peak_rss_mib), mebibytes),
            },
            "Start-up: time from the start of the process until the first step can begin. Sent a batch: "
            "bytes of the rank that sent most. Memory: peak of the rank with the most.",
        ),
    )
    return [table for table in tables if table.rows]


def _by_row(title: str, rows: Sequence[Row], figures: Mapping[str, Callable[[Row], str]], note: str) -> Table:
    return Table(
        title=title,
        columns=("Strategy", "On", *figures),
        num_names=2,
        rows=[[row.name, row.size, *(figure(row) for figure in figures.values())] for row in rows],
        note=note,
    )


def _reached(row: Row, target: float) -> str:
    spread, num_runs = row.reached_s(target), len(row.runs)
    some = f", {spread.num_repeats} of {num_runs} runs" if spread and spread.num_repeats < num_runs else ""
    return cell(spread, seconds, unit=f" s{some}")


def _eval_s(record: RunRecord) -> float:
    return sum(epoch.eval_s for epoch in record.epochs)


def _where_the_time_went(summary: Summary) -> Table:
    return Table(
        title="Where the training time went",
        columns=(
            "Strategy", "Rank", "Compute", "Moving bytes", "Waiting", "Host", "Together", "Hidden", "Sent"
        ),
        num_names=2,
        rows=[
            [f"{row.name}, {row.size}", rank,
             *map(_time, (*spent.parts_s, sum(spent.parts_s), spent.hidden_s)), size(spent.sent_bytes)]
            for row in summary.measured
            for rank, spent in shown_ranks(row)
        ],
        note="First repeat, all epochs together. Waiting: time until other ranks joined an exchange. "
        "Host: time between two compiled chunks of steps. Hidden: time in which bytes moved while the rank "
        "computed. Strategies that are not listed exchange inside TensorFlow or PyTorch, which do not report "
        "it.",
    )  # fmt: skip


def shown_ranks(row: Row) -> list[tuple[str, RankTimes]]:
    """Return name and times of the ranks to show: of many ranks, those that computed least and most."""
    everyone = list(enumerate(row.rank_times))
    if len(everyone) <= MAX_RANKS:
        return [(str(rank), spent) for rank, spent in everyone]
    by_work = sorted(everyone, key=lambda each: each[1].compute_s)
    chosen = sorted([*by_work[: MAX_RANKS // 2], *by_work[-MAX_RANKS // 2 :]], key=lambda each: each[0])
    return [(f"{rank} of {len(everyone)}", spent) for rank, spent in chosen]


def epochs(summary: Summary) -> Table:
    """Return the figures at the end of each epoch of each run."""
    return Table(
        title="All epochs",
        columns=("Strategy", "On", "Seed", "Epoch", "Training time", "Training loss", "Test accuracy"),
        num_names=2,
        rows=[
            [row.name, row.size, str(run.record.seed), str(epoch.epoch), _time(after_s),
             f"{epoch.train_loss:.4f}", accuracy(epoch.test_accuracy)]
            for row in summary.measured
            for run in row.runs
            for epoch, after_s in zip(run.record.epochs, elapsed_s(run.record), strict=True)
        ],
        note="Training time up to the end of the epoch.",
    )  # fmt: skip
