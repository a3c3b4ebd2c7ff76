"""``report.html``: the comparison as one file that opens anywhere, without a network."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpi_train.report import charts, look, svg, templates
from mpi_train.report.collect import Run
from mpi_train.report.contents import contents
from mpi_train.report.summary import Row, Summary
from mpi_train.runs.folder import MISTAKES
from mpi_train.runs.record import RunRecord


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A chart on the page, in the shapes of a wide and of a narrow screen."""

    chart: charts.Chart
    wide: str
    narrow: str


@dataclass(frozen=True, kw_only=True)
class Looked:
    """How the final model of a run did, class by class.

    Attributes:
        title: Which run.
        class_names: Name of each label.
        confusion: Test examples by label (row) and prediction (column).
        mistakes: The worst: ``image`` (a data URI), ``label`` and ``predicted`` (their names), ``loss``.
    """

    title: str
    class_names: list[str]
    confusion: list[list[int]]
    mistakes: list[dict[str, Any]]


def render(summaries: list[Summary]) -> str:
    """The text of ``report.html``, with a section for each group of runs that do the same work."""
    sections = [
        {
            **content,
            "number": number,
            "theme": look.theme(look.colours_of(summary.measured), "s"),
            "charts": _draw(summary, number),
            "looked": [looked for row in summary.measured if (looked := _look_at(row)) is not None],
        }
        for number, (content, summary) in enumerate(zip(contents(summaries), summaries, strict=True))
    ]
    return templates.fill(
        "report.html.j2",
        sections=sections,
        parts=list(look.PARTS),
        theme=look.theme(list(look.PARTS.values()), "p"),
    )


def _draw(summary: Summary, number: int) -> list[Drawn]:
    def shapes(style: look.Look) -> list[tuple[charts.Chart, str]]:
        with style.drawing():
            return [
                (chart, svg.inline(chart, f"{number} {style.width_in} {chart.name}", num_series))
                for chart in charts.charts(summary, style)
            ]

    num_series = len(summary.measured)
    pairs = zip(shapes(look.WIDE), shapes(look.NARROW), strict=True)
    return [Drawn(chart=chart, wide=wide, narrow=narrow) for (chart, wide), (_, narrow) in pairs]


def _look_at(row: Row) -> Looked | None:
    run = row.runs[0]
    record = run.record
    if record.confusion is None:
        return None
    return Looked(
        title=f"{row.name} on {row.size}, seed {record.seed}",
        class_names=record.class_names,
        confusion=record.confusion,
        mistakes=_mistakes(run, record),
    )


def _mistakes(run: Run, record: RunRecord) -> list[dict[str, Any]]:
    """What ``mistakes.json`` beside the record has, its pixels as pictures; empty where there is none."""
    path: Path = run.path.with_name(MISTAKES)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return [
            {
                "image": _data_uri(base64.b64decode(mistake["pixels"]), told["image_shape"]),
                "label": record.class_names[mistake["label"]],
                "predicted": record.class_names[mistake["predicted"]],
                "loss": float(mistake["loss"]),
            }
            for mistake in told["worst"]
        ]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        # A report of the figures is worth having without the pictures.
        return []


def _data_uri(pixels: bytes, shape: list[int]) -> str:
    """A PNG of uint8 (height, width, channels), one channel or three."""
    from PIL import Image

    array = np.frombuffer(pixels, np.uint8).reshape(shape)
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if shape[-1] == 1 else array).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
