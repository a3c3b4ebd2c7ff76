"""Charts: measured and predicted steps over the ranks, and predicted trainings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpi_train.report.charts import STYLE, colour, legend, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mpi_train.benchmarks.scaling.measure import Measured
    from mpi_train.benchmarks.scaling.predict import Model, Trainings


def scaling(measured: Sequence[Measured]) -> Figure:
    """Draw the time of a step over the ranks: measured points, and lines for the predictions."""
    titles = ("global batch fixed (strong scaling)", "batch of a rank fixed (weak scaling)")
    figure, panels = _figure("A step on more ranks: points measured, lines predicted from two", 4.2, titles)
    alone, sizes = measured[0], sorted({each.ranks for each in measured})
    for axes, kind in zip(panels, ("strong", "weak"), strict=True):
        axes.set_ylabel("ms a step, slowest rank")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        for number, name in enumerate(dict.fromkeys(each.collective for each in measured), start=1):
            own = [e for e in measured if e.collective == name and e.scaling == kind and e.ranks > 1]
            rows, hue = [alone, *own], colour(number)
            ranks, step_ms = [row.ranks for row in rows], [row.step_s * 1e3 for row in rows]
            below = [(row.step_s - min(row.samples_s)) * 1e3 for row in rows]
            above = [(max(row.samples_s) - row.step_s) * 1e3 for row in rows]
            axes.plot(ranks, [row.predicted_s * 1e3 for row in rows], color=hue, linewidth=1.6)
            axes.errorbar(ranks, step_ms, [below, above], color=hue, fmt="o", capsize=3, label=name)
        axes.set_ylim(bottom=0)
    legend(figure, panels[0])
    return figure


def plan(found: Trainings, model: Model, claim: str) -> Figure:
    """Draw time and node-hours of each collective over the ranks, dashed if the result changes."""
    from matplotlib.ticker import LogLocator, NullFormatter

    longest_s = max(row.train_s for rows in found.values() for row in rows)
    units = {"hours": 3600, "minutes": 60, "seconds": 1}
    unit = next((name for name, unit_s in units.items() if longest_s > 2 * unit_s), "seconds")
    figure, panels = _figure(claim, 5, (f"time to the last epoch, {unit}", "node-hours"))
    ranks = [row.shape.ranks for row in next(iter(found.values()))]
    for number, (name, rows) in enumerate(found.items(), start=1):
        look, hue = "--o" if model.changes_result(name) else "-o", colour(number)
        values = [row.train_s / units[unit] for row in rows], [row.node_hours for row in rows]
        for axes, heights in zip(panels, values, strict=True):
            axes.plot(ranks, heights, look, color=hue, markersize=3, linewidth=1.4, label=name)
    ticks = ranks if len(ranks) < 9 else ranks[::2]
    for axes in panels:
        axes.set_yscale("log")
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    legend(figure, panels[0], columns=5)
    return figure


def _figure(claim: str, height_in: float, titles: Sequence[str]) -> tuple[Figure, Sequence[Axes]]:
    """Make a figure with a panel for each of ``titles``, over the ranks."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure = new_figure(claim, height_in, width_in=9)
        panels = figure.subplots(1, len(titles))
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("ranks")
        axes.minorticks_off()
    return figure, panels
