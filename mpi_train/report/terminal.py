"""The table of a comparison on the terminal, in 80 columns."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from mpi_train.report import wording
from mpi_train.report.summary import Summary


def table(summary: Summary) -> Table:
    """The rows of ``report.md``'s table, with sizes and ranges under names and medians."""
    shown = Table(title=Text(wording.title(summary)), title_justify="left", box=None, pad_edge=False)
    first, _, *figures = wording.COLUMNS
    shown.add_column(first)
    for column in figures:
        shown.add_column(column, justify="right")
    for row in summary.rows:
        (name, outcome), (size, _), *rest = wording.cells(row)
        shown.add_row(
            _cell(name, size, outcome), *(_cell(median, span.replace(" to ", "-")) for median, span in rest)
        )
    return shown


def _cell(first: str, *below: str) -> Text:
    return Text.assemble(first, *((f"\n{line}", "dim") for line in below if line))
