"""Comparison of runs: from their ``run.json`` files to tables, charts and a page.

``collect`` finds the runs, ``summary`` computes all figures, ``tables`` and ``text`` put the figures into
words, ``charts`` draws them, ``pages`` writes the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpi_train.report.collect import collect
from mpi_train.report.summary import Summary, groups, summarise
from mpi_train.runtime.errors import unwritable

PAGE, TEXT = "report.html", "report.md"


def write(folders: Sequence[Path], out: Path) -> list[Summary]:
    """Write ``report.html``, ``report.md`` and its charts into ``out``, from the runs below ``folders``.

    Returns:
        The comparisons, one for each group of runs that do the same work.

    Raises:
        DataError: no run, or a record that cannot be read.
        UsageError: ``out`` cannot be written.
    """
    # Imported late: its modules import this one.
    from mpi_train.report import pages

    summaries = [summarise(group) for group in groups(collect(folders))]
    try:
        out.mkdir(parents=True, exist_ok=True)
        pages.write(summaries, out)
    except OSError as error:
        raise unwritable(out, error) from error
    return summaries
