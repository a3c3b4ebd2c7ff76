"""Begin and output of measurements: a folder with files, a console, tables, and durations as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from mpi_train.report.pages import save_png
from mpi_train.report.tables import Table
from mpi_train.runtime import devices, files
from mpi_train.runtime.errors import unwritable
from mpi_train.runtime.world import World


def begin(world: World, out: Path | None, names: Iterable[str]) -> tuple[Console, str]:
    """Make the folder ``out`` on rank 0, and claim a device on each rank.

    Returns a console that prints on rank 0, and the device. Raises ``JobError`` on all ranks.
    """
    with world.together():
        if world.is_root and out is not None:
            make_folder(out, names)
    with world.together():
        device = devices.own_device(world)
    return console(quiet=not world.is_root), device


def make_folder(out: Path, names: Iterable[str]) -> None:
    """Make the folder ``out``, and remove the files ``names`` of a previous run; raises ``UsageError``."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in names:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error


def console(*, quiet: bool = False) -> Console:
    """Return a console for text without markup, whose long lines the terminal wraps."""
    return Console(quiet=quiet, highlight=False, markup=False, soft_wrap=True)


def show(to: Console, tables: Iterable[Table]) -> None:
    """Print tables, each below an empty line."""
    for table in tables:
        to.print("", table.terminal(), soft_wrap=False)


def write(out: Path, contents: Mapping[str, Any]) -> None:
    """Write files into ``out``, by their ending JSON, a figure as PNG, or text; raises ``UsageError``."""
    try:
        for name, content in contents.items():
            if name.endswith(".png"):
                save_png(content, out / name)
            else:
                (files.write_json if name.endswith(".json") else files.write_text)(out / name, content)
    except OSError as error:
        raise unwritable(out, error) from error


def page(title: str, lines: Iterable[str], picture: str, tables: Iterable[Table]) -> str:
    """Return a page in Markdown: a list of ``lines``, a picture, and tables."""
    listed = "\n".join(f"- {line}" for line in lines)
    parts = (f"# {title}", listed, picture, *(each.markdown() for each in tables))
    return "\n\n".join(filter(None, parts)) + "\n"


def seconds(value: float) -> str:
    """Return a duration in the unit that suits: ``850 us``, ``12.3 ms``, ``4.2 s``, ``15 min``, ``3.1 h``."""
    if value < 0:
        return "-" + seconds(-value)
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1, 1e3, "ms"), (120, 1, "s"), (7200, 1 / 60, "min")):
        if value < limit:
            return f"{value * factor:.3g} {unit}" if value * factor < 1000 else f"{value * factor:.0f} {unit}"
    return f"{value / 3600:,.1f} h"
