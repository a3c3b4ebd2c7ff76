"""Files of a report: ``report.md`` with its charts as PNG files, and ``report.html`` with charts inside."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from mpi_train.report import text
from mpi_train.report.charts import INK, STYLE, charts
from mpi_train.report.collect import collect
from mpi_train.report.summary import Summary, groups, summarise
from mpi_train.runtime import files
from mpi_train.runtime.errors import unwritable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, TEXT = "report.html", "report.md"


def write(folders: Sequence[Path], out: Path) -> list[Summary]:
    """Write ``report.html``, ``report.md`` and its charts into ``out``, from the runs below ``folders``.

    Returns a comparison for each group of runs that do the same work.

    Raises:
        DataError: no run, or a record that cannot be read.
        UsageError: ``out`` cannot be written.
    """
    # Imported late: matplotlib takes half a second, and the index needs none of it.
    import matplotlib as mpl

    summaries = [summarise(group) for group in groups(collect(folders))]
    sections = text.contents(summaries)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for number, (section, summary) in enumerate(zip(sections, summaries, strict=True)):
            with mpl.rc_context(STYLE):
                for name, figure in charts(summary).items():
                    file = f"{number}_{name}.png" if number else f"{name}.png"
                    save_png(figure, out / file)
                    section["charts"].append((figure.get_suptitle(), file, _svg(figure)))
        files.write_text(out / TEXT, fill("report.md.j2", sections=sections))
        files.write_text(out / PAGE, fill("report.html.j2", sections=sections))
    except OSError as error:
        raise unwritable(out, error) from error
    return summaries


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, and keep its layout for further files."""
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    figure.set_layout_engine("none")


def _svg(figure: Figure) -> str:
    """Return a figure as an ``svg`` element that takes the text colour of the page around it."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg ") :].replace(INK, "currentColor")
    # Nothing refers to the ids of groups, and other charts have the same ones.
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{escape(figure.get_suptitle())}" ', 1)


def fill(template: str, package: str = "mpi_train.report", **values: Any) -> str:
    """Return a ``template`` of a ``package`` filled with ``values``. Text in HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        undefined=jinja2.StrictUndefined,
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)
