"""Charts of a comparison, drawn by matplotlib, and narrow: a wide page shows two side by side."""

from __future__ import annotations

import colorsys
import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mpi_train.report import tables
from mpi_train.report.summary import Row, Spread, Summary, elapsed_s, scaling
from mpi_train.strategies import registry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#222222"
"""Colour of text and lines. On a page the text colour of the page replaces it."""
STYLE: dict[Any, Any] = {
    # Text stays text: it can be searched, read aloud, and set in the font of the page.
    "svg.fonttype": "none",
    # The same chart has the same ids every time.
    "svg.hashsalt": "mpi_train",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}
"""Settings of matplotlib, for drawing and for saving."""
_PARTS = {"compute": 1, "moving bytes": 5, "waiting": 2, "host": 0}
_MARKERS = "osD^vPX<>*"
_Numbers = Mapping[Row, int]


def charts(summary: Summary) -> dict[str, Figure]:
    """Draw all charts that have data, by name; within a matplotlib context of ``STYLE``."""
    rows = [row for row in summary.rows if row.runs]
    numbers = numbers_of(summary.measured)
    over = "" if summary.baseline is None else ", and speed-up over plain Keras"
    drawn: dict[str, Figure | None] = {
        "training_time": _bars(
            f"Training time{over}", "training time [s]", {row: row.train_s for row in rows}, _time, numbers
        ),
        "test_accuracy": _bars(
            "Test accuracy", "test accuracy after the last epoch",
            {row: row.test_accuracy for row in rows}, lambda _, spread: tables.accuracy(spread.median),
            numbers, dots=True,
        ),
        "learning_curves": _curves(rows, numbers, "epoch"),
        "learning_curves_time": _curves(rows, numbers, "training time [s]"),
        "speedup_over_one": _scaling(summary, numbers, "Speed-up over one rank"),
        "efficiency": _scaling(summary, numbers, "Efficiency"),
        "time_split": _time_split(summary),
        "memory": _bars(
            "Peak memory of the rank with the most", "memory [MiB]",
            {row: row.spread(lambda run: run.peak_rss_mib) for row in summary.measured},
            lambda _, spread: tables.mebibytes(spread.median), numbers,
        ),
    }  # fmt: skip
    return {name: figure for name, figure in drawn.items() if figure is not None}


def numbers_of(rows: Sequence[Row]) -> dict[Row, int]:
    """Return a number for the colour and the marker of each row.

    The first row of a strategy has its number in the registry, which is the same in all reports.
    """
    own = {name: number for number, name in enumerate(registry.STRATEGIES)}
    others = itertools.count(len(own))
    return {row: own.pop(row.strategy) if row.strategy in own else next(others) for row in rows}


def colour(number: int) -> str:
    """Return the colour of a ``number``, which no other number has. It is legible on white and on black.

    Hues lie a golden angle apart. Luminance of 0.15 to 0.32 contrasts with white pages and with dark ones.
    """
    if number == 0:
        return "#777777"
    hue = (0.56 + 0.381966 * (number - 1)) % 1
    light = np.square(colorsys.hsv_to_rgb(hue, 1, 1))  # linear, with a gamma of 2
    luminance, wanted = light @ (0.2126, 0.7152, 0.0722), (0.15, 0.22, 0.32)[number % 3]
    if luminance > wanted:
        light *= wanted / luminance
    else:
        light += (1 - light) * (wanted - luminance) / (1 - luminance)
    return "#" + "".join(f"{round(255 * value):02x}" for value in np.sqrt(light))


def new_figure(title: str, height_in: float, width_in: float = 4.9) -> Figure:
    """Return an empty figure with a title. Without pyplot it needs no display and does not stay open."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in))
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, weight="bold")
    return figure


def legend(figure: Figure, axes: Axes, columns: int = 1) -> None:
    """Name the lines or bars of ``axes`` below the figure, in so many columns."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=columns)


def _legend_in(num_labels: int) -> float:
    """Return the height in inches of a legend."""
    return 0.15 + 0.19 * num_labels


def _label(row: Row) -> str:
    return f"{textwrap.shorten(row.name, 44, placeholder=' …')}, {row.size}"


def _line(number: int) -> dict[str, Any]:
    marker = _MARKERS[number % len(_MARKERS)]
    return {"color": colour(number), "marker": marker, "markersize": 4.5, "linewidth": 1.5}


def _note(axes: Axes, x: float, place: float, text: str) -> None:
    axes.annotate(text, (x, place), xytext=(6, 0), textcoords="offset points", va="center")


def _ends(spreads: Sequence[Spread]) -> list[list[float]]:
    """Return the lengths of error bars below and above the medians."""
    return [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]


def _places(title: str, xlabel: str, labels: Sequence[str], extra_in: float = 0.0) -> tuple[Figure, Axes]:
    """Return a figure with a place for each bar, from 0 downwards. Each label stands above its bar."""
    figure = new_figure(title, 1.0 + extra_in + 0.46 * len(labels))
    axes = figure.subplots()
    for place, label in enumerate(labels):
        axes.annotate(label, (0, place - 0.28), xycoords=("axes fraction", "data"), va="bottom")
    axes.set(ylim=(len(labels) - 0.5, -0.9), yticks=[], xlabel=xlabel)
    axes.spines["left"].set_visible(False)
    return figure, axes


def _bars(
    title: str,
    xlabel: str,
    spreads: Mapping[Row, Spread | None],
    note: Callable[[Row, Spread], str],
    numbers: _Numbers,
    *,
    dots: bool = False,
) -> Figure:
    """Draw medians as bars from 0, or as dots, with their ranges and a note each."""
    known = {row: spread for row, spread in spreads.items() if spread is not None}
    figure, axes = _places(title, xlabel, [_label(row) for row in known])
    for place, (row, spread) in enumerate(known.items()):
        if dots:
            axes.plot(spread.median, place, "o", markersize=8, zorder=3, color=colour(numbers[row]))
        else:
            axes.barh(place, spread.median, height=0.42, color=colour(numbers[row]))
        if spread.num_repeats > 1:
            axes.errorbar(spread.median, place, xerr=_ends([spread]), color=INK, capsize=3, linewidth=1.2)
        _note(axes, spread.high, place, note(row, spread))
    low, high = min(spread.low for spread in known.values()), max(spread.high for spread in known.values())
    low, high = _widened(low, high) if dots else (0, high)
    axes.set_xlim(low, high + 0.45 * (high - low))
    axes.locator_params(axis="x", nbins=5)
    return figure


def _time(row: Row, spread: Spread) -> str:
    speedup = "" if row.speedup is None or row.is_baseline else f" ({tables.times(row.speedup.median)})"
    return f"{tables.seconds(spread.median)} s{speedup}"


def _widened(low: float, high: float) -> tuple[float, float]:
    """Return limits for accuracies at least 2 points apart, so that noise does not look like a difference."""
    half = max(0.01, 0.55 * (high - low))
    return (low + high) / 2 - half, (low + high) / 2 + half


def _curves(rows: Sequence[Row], numbers: _Numbers, xlabel: str) -> Figure:
    """Draw test accuracy and training loss at the end of each epoch: one line for each run."""
    over = "epochs" if xlabel == "epoch" else "training time"
    figure = new_figure(f"Test accuracy and training loss over {over}", 4.4 + _legend_in(len(rows)))
    above, below = figure.subplots(2, 1, sharex=True)
    for row in rows:
        for run in row.runs:
            epochs, label = run.record.epochs, _label(row) if run is row.runs[0] else None
            xs = [epoch.epoch for epoch in epochs] if xlabel == "epoch" else elapsed_s(run.record)
            above.plot(xs, [epoch.test_accuracy for epoch in epochs], label=label, **_line(numbers[row]))
            below.plot(xs, [epoch.train_loss for epoch in epochs], **_line(numbers[row]))
    above.set_ylim(_widened(*above.get_ylim()))
    above.set_ylabel("test accuracy")
    below.set(ylabel="training loss", xlabel=xlabel)
    below.set_xlim(left=0)
    below.xaxis.get_major_locator().set_params(integer=True)
    legend(figure, above)
    return figure


def _scaling(summary: Summary, numbers: _Numbers, title: str) -> Figure | None:
    """Draw speed-up over the suite's own loop on one rank, or efficiency, over the number of workers."""
    lines = scaling(summary)
    if not lines:
        return None
    is_speedup = title != "Efficiency"
    sizes = sorted({1, *(row.workers for line in lines for row in line)})
    largest = max(2, *sizes)
    figure = new_figure(title, 2.9 + _legend_in(1 + len(lines)))
    axes = figure.subplots()
    axes.plot((1, largest), (1, largest if is_speedup else 1), "--", color=INK, linewidth=1, label="ideal")
    for line in lines:
        # A line has the colour of the reference only if it has no other row.
        own = max(line, key=lambda row: row is not summary.reference)
        spreads = [s for row in line if (s := row.speedup_over_one if is_speedup else row.efficiency)]
        label = textwrap.shorten(own.name, 56, placeholder=" …")
        axes.errorbar(
            [row.workers for row in line], [spread.median for spread in spreads], yerr=_ends(spreads),
            label=label, capsize=3, **_line(numbers[own]),
        )  # fmt: skip
    if largest > 8:
        axes.set_xscale("log", base=2)
    if largest > 8 and is_speedup:
        axes.set_yscale("log", base=2)
        axes.set_yticks(sizes, map(str, sizes))
    else:
        axes.set_ylim(bottom=0)
    axes.set(xlim=(0.9, 1.1 * largest), xlabel="ranks or devices")
    axes.set_xticks(sizes, map(str, sizes))
    axes.minorticks_off()
    legend(figure, axes)
    return figure


def _time_split(summary: Summary) -> Figure | None:
    """Draw the fractions of each rank's training time as stacked bars."""
    shown = [(row, rank, spent) for row in summary.measured for rank, spent in tables.shown_ranks(row)]
    if not shown:
        return None
    figure, axes = _places(
        "Where the training time went, by rank",
        "% of the training time, first repeat",
        [f"{_label(row)}: rank {rank}" for row, rank, _ in shown],
        extra_in=_legend_in(len(_PARTS)),
    )
    parts_s = np.array([spent.parts_s for _, _, spent in shown])
    whole_s = parts_s.sum(axis=1)
    shares = 100 * parts_s / whole_s[:, None]
    for part, (name, number) in enumerate(_PARTS.items()):
        left, width = shares[:, :part].sum(axis=1), shares[:, part]
        axes.barh(range(len(shown)), width, left=left, height=0.42, color=colour(number), label=name)
    for place, together_s in enumerate(whole_s):
        _note(axes, 100, place, f"{tables.seconds(together_s)} s")
    axes.set_xlim(0, 130)
    axes.set_xticks(range(0, 101, 25))
    legend(figure, axes)
    return figure
