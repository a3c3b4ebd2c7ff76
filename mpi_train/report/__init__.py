"""The comparison of runs, from their ``run.json`` files to tables and plots.

One direction: ``collect`` finds the runs, ``summary`` does the statistics, ``wording`` puts them into
words, ``markdown`` and ``plots`` write files. No figure is computed after ``summary``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpi_train import files
from mpi_train.errors import UsageError
from mpi_train.report.collect import collect
from mpi_train.report.summary import Summary, summarise


def write(folders: Sequence[Path], out: Path) -> Summary:
    """Writes ``report.md`` and its plots into ``out``, from the runs below ``folders``.

    Raises:
        DataError: no run, a record that cannot be read, or runs that do not do the same work.
        UsageError: ``out`` cannot be written.
    """
    # Imported late: matplotlib takes half a second, which --help need not wait for.
    from mpi_train.report import markdown, plots

    summary = summarise(collect(folders))
    try:
        out.mkdir(parents=True, exist_ok=True)
        drawn = plots.draw(summary, out)
        files.write_text(out / "report.md", markdown.render(summary, drawn))
    except OSError as error:
        raise UsageError(
            f"--out: expected a folder that can be written. Received: {out} ({error.strerror})",
            remedy="--out with another folder",
        ) from error
    return summary
