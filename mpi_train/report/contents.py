"""What every kind of report says of a group of runs, for its template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpi_train.report import notes, tables, wording
from mpi_train.report.summary import Summary, differences


def contents(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """The texts and tables of each group; ``difference`` tells it from the others, and is empty for one."""
    return [
        {
            "title": wording.title(summary),
            "difference": wording.difference(fields),
            "caution": wording.caution(summary),
            "header": wording.header(summary),
            "comparison": tables.comparison(summary),
            "details": tables.details(summary),
            "readings": [wording.reading(row, summary) for row in summary.rows],
            "notes": notes.notes(summary),
            "commands": wording.commands(summary),
        }
        for summary, fields in zip(summaries, differences(summaries), strict=True)
    ]
