"""Command ``report``: write the report of previous runs, compare two runs, or write an index of all runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mpi_train.report import compare, index, pages, tables, text
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import Parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the flags ``argv``, by default those of the process."""
    parser = Parser(prog="python jobs/report.py", description="Write the report of previous runs.")
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="DIR", help="folders with runs (default: results/bench)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the report (default: the first DIR)"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="print two runs side by side instead"
    )
    instead.add_argument(
        "--index", type=Path, metavar="DIR", help="write DIR/index.html instead, a page of all runs below DIR"
    )
    flags = parser.parse_args(argv)
    if (flags.compare or flags.index) and (flags.folders or flags.out):
        raise UsageError(
            "--compare and --index take no folders and no --out. Got: folders or --out",
            remedy="remove them, or call the command once for each",
        )
    folders = [flags.index] if flags.index else flags.folders or [Path("results/bench")]
    console = Console(highlight=False)
    if flags.compare:
        console.print(compare.table(*(compare.find(path) for path in flags.compare)))
        return
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(
                f"expected a folder with runs. Got: {folder}",
                remedy="make bench, or name the folder given to a job as --out",
            )
    if flags.index:
        print(f"index: {index.write(flags.index)}")
        return
    out = flags.out or folders[0]
    for summary in pages.write(folders, out):
        console.print(tables.comparison(summary, text.title(summary)).terminal())
    print(f"report: {out / pages.PAGE}, and {out / pages.TEXT}")
