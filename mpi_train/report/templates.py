"""The texts of reports, in Jinja2 templates beside this module."""

from __future__ import annotations

from typing import Any

import jinja2


def fill(name: str, package: str = "mpi_train.report", **values: Any) -> str:
    """The template ``name`` of ``package`` filled with ``values``; what goes into HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        undefined=jinja2.StrictUndefined,
        autoescape=name.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    return environment.get_template(name).render(**values)


def _cell(figure: tuple[str, str]) -> str:
    """A (median, range) as a cell of a Markdown table; a bar in a name must not end the cell."""
    median, span = figure
    return (f"{median} ({span})" if span else median).replace("|", "\\|")
