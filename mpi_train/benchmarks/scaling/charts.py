"""The charts: how steps scale, measured beside predicted; and how trainings would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mpi_train.report.charts import STYLE, colour, legend, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mpi_train.benchmarks.scaling.measure import Measured
    from mpi_train.benchmarks.scaling.predict import Model, Training


def scaling(measured: Sequence[Measured]) -> Figure:
    """Milliseconds of a step over the ranks: what was measured, and lines for what was predicted."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure = new_figure("A step on more ranks: points measured, lines predicted from two", 4.2, 9)
        ways = list(dict.fromkeys(each.way for each in measured))
        kinds = ("strong", "weak")
        titles = ("global batch fixed (strong scaling)", "batch of a rank fixed (weak scaling)")
        alone = measured[0]
        for number, (kind, title) in enumerate(zip(kinds, titles, strict=True)):
            axes = figure.add_subplot(1, 2, number + 1)
            _axes(axes, title)
            axes.set_ylabel("ms a step, slowest rank")
            sizes = sorted({each.ranks for each in measured})
            axes.set_xticks(sizes, [str(size) for size in sizes])
            for line, way in enumerate(ways):
                rows = [alone, *(e for e in measured if e.way == way and e.scaling == kind and e.ranks > 1)]
                ranks = [each.ranks for each in rows]
                axes.plot(ranks, [each.predicted_s * 1e3 for each in rows], color=colour(line), linewidth=1.6)
                axes.errorbar(
                    ranks,
                    [each.step_s * 1e3 for each in rows],
                    yerr=[
                        [(each.step_s - min(each.samples_s)) * 1e3 for each in rows],
                        [(max(each.samples_s) - each.step_s) * 1e3 for each in rows],
                    ],
                    color=colour(line),
                    linestyle="none",
                    marker="o",
                    capsize=3,
                    label=way,
                )
            axes.set_ylim(bottom=0)
        legend(figure, axes)
    return figure


def _axes(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("ranks")
    axes.minorticks_off()


def plan(trainings: Mapping[str, Sequence[Training]], model: Model, claim: str) -> Figure:
    """Time and node-hours of each way over the ranks; dashed where the result changes."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure = new_figure(claim, 5, 9)
        first, second = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
        longest_s = max(row.train_s for rows in trainings.values() for row in rows)
        units = {"hours": 3600, "minutes": 60, "seconds": 1}
        unit = next((name for name, unit_s in units.items() if longest_s > 2 * unit_s), "seconds")
        unit_s = units[unit]
        _axes(first, f"time to the last epoch, {unit}")
        _axes(second, "node-hours")
        for line, (way, rows) in enumerate(trainings.items()):
            ranks = [row.shape.ranks for row in rows]
            style = "--" if model.changes_result(way) else "-"
            for axes, values in (
                (first, [row.train_s / unit_s for row in rows]),
                (second, [row.node_hours for row in rows]),
            ):
                axes.plot(
                    ranks,
                    values,
                    style,
                    color=colour(line),
                    marker="o",
                    markersize=3,
                    linewidth=1.4,
                    label=way,
                )
        ticks = [row.shape.ranks for row in next(iter(trainings.values()))]
        ticks = ticks if len(ticks) < 9 else ticks[::2]
        for axes in (first, second):
            axes.set_yscale("log")
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        legend(figure, first)
    return figure
