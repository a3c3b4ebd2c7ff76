"""The plots of a comparison, as PNG files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mpi_train import files
from mpi_train.report import wording
from mpi_train.report.summary import Row, Spread, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which people with any kind of colour vision can tell apart
# (https://jfly.uni-koeln.de/color/), without its yellow, which is too pale on white.
_OWN_COLOUR = {
    "baseline": "#6B6B6B",
    "tuned": "#56B4E9",
    "mpi": "#0072B2",
    "mirrored": "#D55E00",
    "custom": "#009E73",
}
_OTHER_COLOURS = ("#CC79A7", "#E69F00", "#332288", "#882255", "#44AA99", "#AA4499")
_TEXT = "#222222"
_FAINT = "#C8C8C8"


@dataclass(frozen=True)
class Plot:
    """A picture of the report: its file name, and what it shows."""

    file: str
    caption: str


def draw(summary: Summary, out: Path) -> list[Plot]:
    """Writes the plots into the folder ``out`` and says which they are."""
    rows = [row for row in summary.rows if row.runs]
    plots = []
    for name, caption, figure in (
        ("training_time.png", "Training time and test accuracy", _training_time(summary, rows)),
        ("accuracy_over_time.png", "Test accuracy over training time", _accuracy_over_time(summary, rows)),
    ):
        with files.replacing(out / name) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
        plots.append(Plot(name, f"{caption} on {wording.data_name(summary)}"))
    return plots


def _figure(summary: Summary, claim: str, height_in: float) -> Figure:
    # Without pyplot, so that no display is looked for and no figure stays open.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height_in), layout="constrained")
    work = summary.work
    figure.suptitle(
        f"{claim}: {work['model']} on {wording.data_name(summary)}, global batch "
        f"{work['global_batch_size']}, epochs {work['num_epochs']}, {work['dtype']}",
        fontsize=11,
        color=_TEXT,
    )
    return figure


def _colours(rows: Sequence[Row]) -> list[str]:
    """A colour a row: its strategy's own, so that it is the same in every report, where that is free."""
    own, others = dict(_OWN_COLOUR), itertools.cycle(_OTHER_COLOURS)
    return [own.pop(row.strategy) if row.strategy in own else next(others) for row in rows]


def _label(row: Row) -> str:
    return f"{row.name}\n{row.size}"


def _plain(axes: Axes, *, grid: Literal["x", "y"]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_TEXT, length=0)
    axes.grid(axis=grid, color=_FAINT, linewidth=0.5)
    axes.set_axisbelow(True)


def _training_time(summary: Summary, rows: Sequence[Row]) -> Figure:
    """Bars of the median training time and, beside them, dots of the accuracy; ranges over the repeats."""
    figure = _figure(summary, "Training time", 1.3 + 0.75 * len(rows))
    time, score = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = range(len(rows))
    colours = _colours(rows)
    for place, row, colour in zip(places, rows, colours, strict=True):
        assert row.train_s is not None
        assert row.test_accuracy is not None
        time.barh(place, row.train_s.median, height=0.55, color=colour)
        _range(time, row.train_s, place)
        speedup = "" if row.speedup is None or row.is_baseline else f"  ({wording.times(row.speedup.median)})"
        time.annotate(
            f"{wording.cells(row)[2][0]}{speedup}",
            (row.train_s.high, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=_TEXT,
        )
        _range(score, row.test_accuracy, place)
        score.plot(row.test_accuracy.median, place, "o", markersize=8, color=colour)
        score.annotate(
            wording.accuracy(row.test_accuracy.median),
            (row.test_accuracy.median, place),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            color=_TEXT,
        )
    time.set_yticks(places, [_label(row) for row in rows])
    time.invert_yaxis()
    # Room for the words behind the longest bar.
    time.set_xlim(0, 1.38 * max(row.train_s.high for row in rows if row.train_s is not None))
    time.set_xlabel("training time [s], and speed-up over plain Keras")
    score.set_xlabel("test accuracy")
    score.margins(x=0.2, y=0.1)
    score.set_xlim(_widened(*score.get_xlim()))
    score.locator_params(axis="x", nbins=4)
    for axes in (time, score):
        _plain(axes, grid="x")
    return figure


def _widened(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis of accuracies: no less than 2 points, or noise would look like a difference."""
    half = max(0.01, (high - low) / 2)
    return (low + high) / 2 - half, (low + high) / 2 + half


def _range(axes: Axes, spread: Spread, place: float) -> None:
    if spread.num_repeats > 1:
        axes.errorbar(
            spread.median,
            place,
            xerr=[[spread.median - spread.low], [spread.high - spread.median]],
            color=_TEXT,
            capsize=4,
            linewidth=1.2,
        )


def _accuracy_over_time(summary: Summary, rows: Sequence[Row]) -> Figure:
    """Test accuracy at the end of each epoch against the training time spent until then, a line a run."""
    figure = _figure(summary, "Test accuracy over training time", 4.6)
    axes = figure.subplots()
    for row, colour in zip(rows, _colours(rows), strict=True):
        for number, run in enumerate(row.runs):
            elapsed_s = list(itertools.accumulate(epoch.train_s for epoch in run.record.epochs))
            scores = [epoch.test_accuracy for epoch in run.record.epochs]
            name = f"{row.name}, {row.size}" if number == 0 else None
            axes.plot(
                elapsed_s, scores, "o-", color=colour, markersize=4, linewidth=1.5, alpha=0.85, label=name
            )
    axes.set_xlim(left=0)
    axes.set_ylim(_widened(*axes.get_ylim()))
    axes.set_xlabel("training time [s]")
    axes.set_ylabel("test accuracy at the end of each epoch")
    _plain(axes, grid="y")
    axes.legend(
        loc="best", labelcolor="linecolor", prop={"weight": "bold"}, facecolor="white", edgecolor="none"
    )
    return figure
