"""Writes the report again, from the run.json files below one or more folders.

    python jobs/report.py                                  of results/bench
    python jobs/report.py results/baseline results/mpi --out results/comparison

Runs that do not do the same work (model, data, batch, epochs, seeds, ...) are refused, not mixed.
"""

from pathlib import Path

from rich.console import Console

from mpi_train import report
from mpi_train.cli import guarded
from mpi_train.config import Parser
from mpi_train.errors import UsageError
from mpi_train.report import terminal


def main() -> None:
    parser = Parser(prog="python jobs/report.py", description="Write the report of runs made before.")
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="(default: results/bench)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the report (default: the first DIR)")
    flags = parser.parse_args()
    folders = flags.folders or [Path("results/bench")]
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(
                f"expected a folder with runs. Received: {folder}",
                remedy="make bench, or name the folder given to a job as --out",
            )
    out = flags.out or folders[0]
    Console().print(terminal.table(report.write(folders, out)))
    print(f"report: {out / 'report.md'}")


if __name__ == "__main__":
    guarded(main)
