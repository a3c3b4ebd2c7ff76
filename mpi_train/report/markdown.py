"""``report.md``: the comparison as text, with the same figures as the page."""

from __future__ import annotations

from collections.abc import Sequence

from mpi_train.report import notes, tables, templates, wording
from mpi_train.report.pictures import Picture
from mpi_train.report.summary import Summary, differences


def render(summaries: Sequence[Summary], pictures: Sequence[Sequence[Picture]]) -> str:
    """The text of ``report.md``, a part for each group of runs; ``pictures`` are those beside it."""
    apart = [wording.difference(fields) for fields in differences(summaries)]
    parts = [
        {
            "title": wording.title(summary),
            "difference": difference,
            "caution": wording.caution(summary),
            "header": wording.header(summary),
            "comparison": tables.comparison(summary),
            "details": tables.details(summary),
            "readings": [wording.reading(row, summary) for row in summary.rows],
            "pictures": drawn,
            "notes": notes.notes(summary),
            "commands": wording.commands(summary),
        }
        for summary, difference, drawn in zip(summaries, apart, pictures, strict=True)
    ]
    return templates.fill("report.md.j2", parts=parts)
