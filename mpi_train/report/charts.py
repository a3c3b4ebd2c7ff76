"""The charts of a comparison, drawn by matplotlib: the same ones for pictures beside ``report.md`` and
for the page, which only look different."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mpi_train.report import tables, wording
from mpi_train.report.drawing import (
    colour_of,
    draw_range,
    figure_of,
    first_of,
    label_of,
    legend,
    number_of,
    plain,
    tip,
    widened,
    words_of,
)
from mpi_train.report.look import PARTS, Look
from mpi_train.report.summary import Summary, elapsed_s, workers_with_efficiency
from mpi_train.runs.record import EpochRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Chart:
    """What is drawn.

    Attributes:
        name: For files and ids.
        caption: What it shows.
        figure: The drawing.
        tips: By the gid of an artist, what to say of it, or of each of its points in turn.
        series: Rows in it that a legend outside of it must name, as (number, name).
        toggles: Whether each of them is lines of its own, which can be hidden.
        parts: Whether it needs the legend of ``PARTS``.
    """

    name: str
    caption: str
    figure: Figure
    tips: dict[str, list[str]]
    series: list[tuple[int, str]] = field(default_factory=list)
    toggles: bool = False
    parts: bool = False


def charts(summary: Summary, look: Look) -> list[Chart]:
    """All charts that have something to show."""
    kinds = (_training_time, _learning_curves, _scaling, _time_split, _memory)
    return [chart for kind in kinds if (chart := kind(summary, look)) is not None]


def _training_time(summary: Summary, look: Look) -> Chart:
    """Bars of the median training time and, beside them, dots of the accuracy; ranges over the repeats."""
    rows = [row for row in summary.rows if row.runs]
    shape = (2, 1) if look.is_narrow else (1, 2)
    names = [look.wrapped(row.name, row.size) for row in rows]
    height_in = look.bars_in(names) + 0.9
    figure = figure_of(summary, look, "Training time", height_in * (2 if look.is_narrow else 1))
    ratios: dict[str, Any] = {} if look.is_narrow else {"width_ratios": (3, 2)}
    time, score = figure.subplots(*shape, sharey=True, **ratios)
    places = range(len(rows))
    tips: dict[str, list[str]] = {}
    for place, row in zip(places, rows, strict=True):
        colour = colour_of(summary, row, look)
        assert row.train_s is not None
        assert row.test_accuracy is not None
        cells = wording.cells(row)
        (bar,) = time.barh(place, row.train_s.median, height=0.55, color=colour)
        tip(tips, bar, f"time-{place}", [f"{label_of(row)}: {words_of(cells[2])}"])
        draw_range(time, row.train_s, place, look)
        speedup = "" if row.speedup is None or row.is_baseline else f"  ({wording.times(row.speedup.median)})"
        time.annotate(
            f"{cells[2][0]}{speedup}",
            (row.train_s.high, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=look.ink,
        )
        draw_range(score, row.test_accuracy, place, look)
        (dot,) = score.plot(row.test_accuracy.median, place, "o", markersize=8, color=colour)
        tip(tips, dot, f"score-{place}", [f"{label_of(row)}: test accuracy {words_of(cells[6])}"])
        score.annotate(
            wording.accuracy(row.test_accuracy.median),
            (row.test_accuracy.median, place),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            color=look.ink,
        )
    time.set_yticks(places, names)
    score.tick_params(labelleft=look.is_narrow)
    # Downwards, with room for what stands above the uppermost dot.
    time.set_ylim(len(rows) - 0.4, -0.8)
    # Room for the words behind the longest bar.
    room = 2 if look.is_narrow else 1.42
    time.set_xlim(0, room * max(row.train_s.high for row in rows if row.train_s is not None))
    beside = (
        "" if summary.baseline is None else ", and speed-up" + ("" if look.is_narrow else " over plain Keras")
    )
    time.set_xlabel(f"training time [s]{beside}")
    score.set_xlabel("test accuracy")
    score.margins(x=0.2)
    score.set_xlim(widened(*score.get_xlim()))
    score.locator_params(axis="x", nbins=4)
    for axes in (time, score):
        plain(axes, look, grid="x")
    return Chart("training_time", "Training time and test accuracy", figure, tips)


def _learning_curves(summary: Summary, look: Look) -> Chart:
    """Test accuracy and training loss at the end of each epoch, over epochs and over time; a line a run."""
    rows = [row for row in summary.rows if row.runs]
    figure = figure_of(summary, look, "Learning curves", 11.5 if look.is_narrow else 7.2)
    grid = figure.subplots(4, 1) if look.is_narrow else figure.subplots(2, 2, sharex="col", sharey="row").T
    over_epochs, over_time = (grid[:2], grid[2:]) if look.is_narrow else grid
    tips: dict[str, list[str]] = {}
    for row in rows:
        for number, run in enumerate(row.runs):
            epochs = run.record.epochs
            times_s = elapsed_s(run.record)
            said = [
                f"{label_of(row)}, seed {run.record.seed}, epoch {epoch.epoch}: test accuracy "
                f"{wording.accuracy(epoch.test_accuracy)}, training loss {epoch.train_loss:.4f}, after "
                f"{wording.seconds(after_s)} s"
                for epoch, after_s in zip(epochs, times_s, strict=True)
            ]
            numbers = [float(epoch.epoch) for epoch in epochs]
            for column, xs in ((over_epochs, numbers), (over_time, times_s)):
                for axes, value in zip(column, _CURVES.values(), strict=True):
                    (line,) = axes.plot(
                        xs,
                        [value(epoch) for epoch in epochs],
                        "o-",
                        color=colour_of(summary, row, look),
                        markersize=4,
                        linewidth=1.5,
                        label=label_of(row) if number == 0 else None,
                    )
                    tip(tips, line, f"series-{number_of(summary, row)}-{len(tips)}", said)
    for column, name in ((over_epochs, "epoch"), (over_time, "training time [s]")):
        for axes, words in zip(column, _CURVES, strict=True):
            plain(axes, look, grid="y")
            axes.set_xlim(left=0)
            axes.set_ylabel(words)
            axes.set_xlabel(name)
        column[0].set_ylim(widened(*column[0].get_ylim()))
        if not look.is_narrow:
            column[0].set_xlabel("")
    for axes in over_epochs:
        axes.xaxis.get_major_locator().set_params(integer=True)
    if not look.is_narrow:
        for axes in over_time:
            axes.set_ylabel("")
    series = [(number_of(summary, row), label_of(row)) for row in rows]
    legend(figure, over_epochs[0], look)
    return Chart(
        "learning_curves", "Accuracy and loss, over epochs and over time", figure, tips, series, toggles=True
    )


_CURVES: dict[str, Callable[[EpochRecord], float]] = {
    "test accuracy": lambda epoch: epoch.test_accuracy,
    "training loss": lambda epoch: epoch.train_loss,
}


def _scaling(summary: Summary, look: Look) -> Chart | None:
    """Speed-up over the suite's own loop on one rank, and efficiency, against the number of workers."""
    lines = workers_with_efficiency(summary)
    if not lines:
        return None
    figure = figure_of(summary, look, "Speed-up and efficiency", 6.4 if look.is_narrow else 3.6)
    speedup, efficiency = figure.subplots(*((2, 1) if look.is_narrow else (1, 2)))
    tips: dict[str, list[str]] = {}
    largest = max(row.workers for line in lines for row in line)
    ideal = (1, max(2, largest))
    speedup.plot(ideal, ideal, "--", color=look.ink, linewidth=1)
    efficiency.plot(ideal, (1, 1), "--", color=look.ink, linewidth=1)
    speedup.annotate("ideal", (ideal[1], ideal[1]), xytext=(-6, 2), textcoords="offset points", ha="right",
                     color=look.ink)  # fmt: skip
    for number, line in enumerate(lines):
        own = first_of(summary, line)
        colour = colour_of(summary, own, look)
        xs = [row.workers for row in line]
        speedups = [row.speedup_over_one for row in line if row.speedup_over_one is not None]
        shares = [row.efficiency for row in line if row.efficiency is not None]
        said = [
            f"{label_of(row)}: speed-up {wording.times(times.median)} over one rank, "
            f"efficiency {wording.percent(share.median)}"
            for row, times, share in zip(line, speedups, shares, strict=True)
        ]
        for axes, spreads in ((speedup, speedups), (efficiency, shares)):
            ranges = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
            values = [spread.median for spread in spreads]
            axes.errorbar(xs, values, yerr=ranges, fmt="none", ecolor=colour, capsize=3, linewidth=1)
            (drawn,) = axes.plot(xs, values, "o-", color=colour, markersize=6, label=own.name)
            tip(tips, drawn, f"scale-{number}-{axes is speedup:d}", said)
    sizes = sorted({1, *(row.workers for line in lines for row in line)})
    if largest > 8:
        speedup.set_yscale("log", base=2)
        speedup.set_yticks(sizes, [str(size) for size in sizes])
    else:
        speedup.set_ylim(bottom=0)
    efficiency.set_ylim(bottom=0)
    for axes, words in ((speedup, "speed-up over one rank"), (efficiency, "efficiency")):
        plain(axes, look, grid="y")
        axes.set_xlabel("ranks or devices")
        axes.set_ylabel(words)
        axes.set_xlim(0.9, 1.1 * ideal[1])
        if largest > 8:
            axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    series = [(number_of(summary, own), own.name) for own in (first_of(summary, line) for line in lines)]
    legend(figure, speedup, look)
    return Chart("scaling", "Speed-up and efficiency against ranks or devices", figure, tips, series)


def _time_split(summary: Summary, look: Look) -> Chart | None:
    """Where each rank's training time went, in shares, as stacked bars."""
    shown = [(row, who, times) for row in summary.measured for who, times in tables.shown_ranks(row)]
    if not shown:
        return None
    names = [look.wrapped(f"{label_of(row)}: rank {who}") for row, who, _ in shown]
    figure = figure_of(summary, look, "Where the training time went", 0.9 + look.bars_in(names))
    axes = figure.subplots()
    tips: dict[str, list[str]] = {}
    for place, (row, who, times) in enumerate(shown):
        left = 0.0
        whole_s = sum(times.parts_s)
        for number, (name, part_s) in enumerate(zip(PARTS, times.parts_s, strict=True)):
            share = 100 * part_s / whole_s
            (bar,) = axes.barh(
                place, share, left=left, height=0.7, color=look.part(number),
                label=name if place == 0 else None,
            )  # fmt: skip
            said = f"{label_of(row)}: rank {who}, {name} {wording.seconds(part_s)} s of {whole_s:,.2f} s"
            tip(tips, bar, f"part-{place}-{number}", [said])
            left += share
        axes.annotate(f"{wording.seconds(whole_s)} s", (100, place), xytext=(6, 0),
                      textcoords="offset points", va="center", color=look.ink)  # fmt: skip
    axes.set_yticks(range(len(shown)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 135 if look.is_narrow else 112)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel("% of the first repeat")
    plain(axes, look, grid="x")
    legend(figure, axes, look)
    return Chart("time_split", "Where the training time went, by rank", figure, tips, parts=True)


def _memory(summary: Summary, look: Look) -> Chart:
    """Peak memory of the rank with the most, the median over the repeats."""
    rows = summary.measured
    names = [look.wrapped(label_of(row)) for row in rows]
    figure = figure_of(summary, look, "Memory", 0.8 + look.bars_in(names))
    axes = figure.subplots()
    tips: dict[str, list[str]] = {}
    spreads = [row.costs.peak_rss_mib for row in rows if row.costs is not None]
    for place, (row, spread) in enumerate(zip(rows, spreads, strict=True)):
        (bar,) = axes.barh(place, spread.median, height=0.55, color=colour_of(summary, row, look))
        tip(tips, bar, f"memory-{place}", [f"{label_of(row)}: {wording.mebibytes(spread.median)}"])
        axes.annotate(f"{spread.median:,.0f}", (spread.median, place), xytext=(6, 0),
                      textcoords="offset points", va="center", color=look.ink)  # fmt: skip
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(spread.median for spread in spreads))
    axes.set_xlabel("peak memory [MiB]")
    plain(axes, look, grid="x")
    return Chart("memory", "Memory", figure, tips)
