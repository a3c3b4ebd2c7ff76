"""The charts of a comparison as PNG files, beside ``report.md``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpi_train.report import wording
from mpi_train.report.charts import charts
from mpi_train.report.look import PICTURE
from mpi_train.report.summary import Summary
from mpi_train.runtime import files


@dataclass(frozen=True)
class Picture:
    """A picture of the report: its file name, and what it shows."""

    file: str
    caption: str


def draw(summary: Summary, out: Path, prefix: str = "") -> list[Picture]:
    """Writes the pictures into the folder ``out``, under names that begin with ``prefix``."""
    pictures = []
    with PICTURE.drawing():
        for chart in charts(summary, PICTURE):
            name = f"{prefix}{chart.name}.png"
            with files.replacing(out / name) as temporary:
                chart.figure.savefig(temporary, format="png", dpi=150)
            pictures.append(Picture(name, f"{chart.caption} on {wording.data_name(summary)}"))
    return pictures
