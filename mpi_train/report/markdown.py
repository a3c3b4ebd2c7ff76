"""``report.md``: the comparison as text, with the same figures as the page."""

from __future__ import annotations

from collections.abc import Sequence

from mpi_train.report import templates
from mpi_train.report.contents import contents
from mpi_train.report.pictures import Picture
from mpi_train.report.summary import Summary


def render(summaries: Sequence[Summary], pictures: Sequence[Sequence[Picture]]) -> str:
    """The text of ``report.md``, a part for each group of runs; ``pictures`` are those beside it."""
    pairs = zip(contents(summaries), pictures, strict=True)
    parts = [{**content, "pictures": drawn} for content, drawn in pairs]
    return templates.fill("report.md.j2", parts=parts)
