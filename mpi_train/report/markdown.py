"""``report.md``: the comparison as text, filled into the template ``report.md.j2``."""

from __future__ import annotations

from collections.abc import Sequence

import jinja2

from mpi_train.report import wording
from mpi_train.report.plots import Plot
from mpi_train.report.summary import Row, Summary


def render(summary: Summary, plots: Sequence[Plot] = ()) -> str:
    """The text of ``report.md``; ``plots`` are the pictures beside it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mpi_train.report", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    shown = [*summary.rows, summary.reference] if summary.reference else summary.rows
    return environment.get_template("report.md.j2").render(
        title=wording.title(summary),
        caution=wording.caution(summary),
        header=wording.header(summary),
        columns=wording.COLUMNS,
        rows=[wording.cells(row) for row in summary.rows],
        readings=[wording.reading(row, summary) for row in summary.rows],
        plots=plots,
        notes=wording.notes(summary),
        commands=[(f"{row.name} on {row.size}", _commands(row)) for row in wording.unique(shown)],
    )


def _commands(row: Row) -> list[str]:
    return [run.command for run in row.runs] + [attempt.command for attempt in row.unfinished]


def _cell(figure: tuple[str, str]) -> str:
    """A (median, range) as a table cell; a bar in a name must not end the cell."""
    median, span = figure
    return (f"{median} ({span})" if span else median).replace("|", "\\|")
