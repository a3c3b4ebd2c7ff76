"""Writes the report again, from the run.json files below one or more folders: report.html and report.md.

    python jobs/report.py                                  of results/bench
    python jobs/report.py results/baseline results/mpi --out results/comparison
    python jobs/report.py --compare results/mpi results/custom
    python jobs/report.py --index results                  results/index.html, over all runs

Runs that do not do the same work (model, data, batch, epochs, ...) are compared apart, with the
difference named.
"""

from pathlib import Path

from rich.console import Console

from mpi_train import report
from mpi_train.report import compare, index, terminal
from mpi_train.runs.job import guarded
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import Parser


def main() -> None:
    parser = Parser(prog="python jobs/report.py", description="Write the report of runs made before.")
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="(default: results/bench)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the report (default: the first DIR)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="print two runs side by side instead"
    )
    instead.add_argument(
        "--index", type=Path, metavar="DIR", help="write DIR/index.html instead, a page of all runs below DIR"
    )
    flags = parser.parse_args()
    if (flags.compare or flags.index) and (flags.folders or flags.out):
        raise UsageError("--compare and --index stand alone. Got: folders or --out beside them")
    console = Console(highlight=False)
    if flags.compare:
        console.print(compare.table(*(compare.find(path) for path in flags.compare)))
        return
    if flags.index:
        _require_folder(flags.index)
        print(f"index: {index.write(flags.index)}")
        return
    folders = flags.folders or [Path("results/bench")]
    for folder in folders:
        _require_folder(folder)
    out = flags.out or folders[0]
    for summary in report.write(folders, out):
        console.print(terminal.table(summary))
    print(f"report: {out / report.PAGE}, and {out / report.TEXT}")


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(
            f"expected a folder with runs. Got: {folder}",
            remedy="make bench, or name the folder given to a job as --out",
        )


if __name__ == "__main__":
    guarded(main)
