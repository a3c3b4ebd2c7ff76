"""The comparison of runs, from their ``run.json`` files to tables, charts and a page.

One direction: ``collect`` finds the runs, ``summary`` does the statistics, ``wording``, ``notes`` and
``tables`` put them into words (``contents``, all of them), ``charts`` draws them, ``markdown``, ``pictures``
and ``page`` write files.
No figure is computed after ``summary``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpi_train.report.collect import collect
from mpi_train.report.summary import Summary, groups, summarise
from mpi_train.runtime import files
from mpi_train.runtime.errors import unwritable

PAGE, TEXT = "report.html", "report.md"


def write(folders: Sequence[Path], out: Path) -> list[Summary]:
    """Writes ``report.html``, ``report.md`` and its pictures into ``out``, from the runs below ``folders``.

    Returns:
        The comparisons, one for each group of runs that do the same work.

    Raises:
        DataError: no run, or a record that cannot be read.
        UsageError: ``out`` cannot be written.
    """
    # Imported late: matplotlib takes half a second, which --help need not wait for.
    from mpi_train.report import markdown, page, pictures

    summaries = [summarise(group) for group in groups(collect(folders))]
    try:
        out.mkdir(parents=True, exist_ok=True)
        drawn = [
            pictures.draw(summary, out, prefix=f"{number}_" if number else "")
            for number, summary in enumerate(summaries)
        ]
        files.write_text(out / TEXT, markdown.render(summaries, drawn))
        files.write_text(out / PAGE, page.render(summaries))
    except OSError as error:
        raise unwritable(out, error) from error
    return summaries
