"""Shows the runs below a folder while they train: epoch, images/s, and how long each rank waits for others.

    python jobs/watch.py                        of results
    python jobs/watch.py results/bench --once

A straggler is a rank that the others wait for. Ctrl-C leaves; the runs go on.
"""

import signal
import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live

from mpi_train.monitor.watch_table import SHOWN_S, Watcher, table
from mpi_train.runs.job import guarded
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import Parser

DEFAULT = Path("results")


def main() -> None:
    parser = Parser(prog="python jobs/watch.py", description="Show the runs of a folder while they train.")
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT, metavar="DIR", help="with the runs")
    parser.add_argument("--once", action="store_true", help="print it once and leave, as without a terminal")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks")
    flags = parser.parse_args()
    # The default one is made by the first run.
    if flags.folder != DEFAULT and not flags.folder.is_dir():
        raise UsageError(
            f"expected a folder with runs. Got: {flags.folder}",
            remedy="name the folder given to a job as --out, or one above it",
        )
    if not 0.1 <= flags.interval <= 3600:
        raise UsageError(f"--interval: expected 0.1 to 3600 seconds. Got: {flags.interval:g}")
    console, watcher = Console(highlight=False, markup=False), Watcher(flags.folder)

    def view() -> RenderableType:
        looks = watcher.look()
        title = f"{flags.folder}, {time.strftime('%H:%M:%S')}"
        if looks:
            return Group(title, table(looks, console.width))
        return (
            f"{title}: no run is under way, and none has ended in the last {SHOWN_S:.0f} seconds. Each keeps "
            f"a status.json in its folder while it trains; make mpi starts one."
        )

    if flags.once or not console.is_terminal:
        console.print(view())
        return
    # kill leaves as Ctrl-C does, with the terminal as it was; a script's background jobs ignore the latter.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with Live(view(), console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(view(), refresh=True)
                time.sleep(flags.interval)
    except KeyboardInterrupt:
        console.print(view())


if __name__ == "__main__":
    guarded(main)
