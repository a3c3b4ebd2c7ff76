"""What charts share: their figures, the colours of their rows, and how axes look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from mpi_train.report import wording
from mpi_train.report.look import Look, colours_of
from mpi_train.report.summary import Row, Spread, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure_of(summary: Summary, look: Look, claim: str, height_in: float) -> Figure:
    """An empty figure, with a title that says ``claim`` where no page does."""
    # Without pyplot, so that no display is looked for and no figure stays open.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(look.width_in, height_in), layout="constrained", facecolor=look.paper)
    if not look.on_page:
        work = summary.work
        figure.suptitle(
            f"{claim}: {work['model']} on {wording.data_name(summary)}, global batch "
            f"{work['global_batch_size']}, epochs {work['num_epochs']}, {work['dtype']}",
            fontsize=11,
            color=look.ink,
        )
    return figure


def tip(tips: dict[str, list[str]], artist: Any, gid: str, said: list[str]) -> None:
    """Notes what to say of an artist, or of each of its points, as ``Chart.tips`` has it."""
    artist.set_gid(gid)
    tips[gid] = said


def number_of(summary: Summary, row: Row) -> int:
    """The number of a row's colour."""
    return next(number for number, other in enumerate(summary.measured) if other is row)


def first_of(summary: Summary, line: list[Row]) -> Row:
    """The row that lends a line its colour: not the reference, if there is another."""
    return min(line, key=lambda row: number_of(summary, row))


def colour_of(summary: Summary, row: Row, look: Look) -> str:
    number = number_of(summary, row)
    return look.series(number, colours_of(summary.measured)[number])


def label_of(row: Row) -> str:
    return f"{row.name}, {row.size}"


def words_of(figure: tuple[str, str]) -> str:
    median, span = figure
    return f"{median} ({span})" if span else median


def plain(axes: Axes, look: Look, *, grid: Literal["x", "y"]) -> None:
    axes.set_facecolor(look.paper)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(look.faint)
    axes.tick_params(colors=look.ink, length=0, pad=5)
    axes.xaxis.label.set_color(look.ink)
    axes.yaxis.label.set_color(look.ink)
    axes.grid(axis=grid, color=look.faint, linewidth=0.5)
    axes.set_axisbelow(True)


def legend(figure: Figure, axes: Axes, look: Look) -> None:
    """Names the lines or bars of ``axes`` below the figure, where no page does."""
    if not look.on_page:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)


def widened(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis of accuracies: no less than 2 points, or noise would look like a difference."""
    half = max(0.01, (high - low) / 2)
    return (low + high) / 2 - half, (low + high) / 2 + half


def draw_range(axes: Axes, spread: Spread, place: float, look: Look) -> None:
    if spread.num_repeats > 1:
        axes.errorbar(
            spread.median,
            place,
            xerr=[[spread.median - spread.low], [spread.high - spread.median]],
            color=look.ink,
            capsize=4,
            linewidth=1.2,
        )
