"""How results leave: a folder, tables on the terminal and in Markdown, and charts as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from mpi_train.report.charts import STYLE
from mpi_train.report.pages import save_png
from mpi_train.runtime.errors import unwritable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Grid:
    """A table: ``title``, names of the columns, and cells; numbers from the second column on."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def table(self) -> Table:
        """For the terminal."""
        shown = Table(title=self.title, title_justify="left", box=None, pad_edge=False)
        for number, column in enumerate(self.columns):
            shown.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            shown.add_row(*row)
        return shown

    def markdown(self) -> str:
        """For ``*.md``."""
        lines = [self.columns, [":---", *("---:" for _ in self.columns[1:])], *self.rows]
        return "\n".join([f"## {self.title}", "", *(f"| {' | '.join(line)} |" for line in lines)])


def make_folder(out: Path, names: Sequence[str]) -> None:
    """Makes ``out`` and removes files of an earlier call from it, before anything is measured.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in names:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error


def save(figure: Figure, path: Path) -> None:
    """Write a figure that was drawn in the style of the report."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        save_png(figure, path)


def seconds(value: float) -> str:
    """In the unit that suits: ``850 us``, ``12.3 ms``, ``4.2 s``, ``15 min``, ``3.1 h``."""
    if value < 0:
        return "-" + seconds(-value)
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1, 1e3, "ms"), (120, 1, "s"), (7200, 1 / 60, "min")):
        if value < limit:
            return f"{value * factor:.3g} {unit}" if value * factor < 1000 else f"{value * factor:.0f} {unit}"
    return f"{value / 3600:,.1f} h"
