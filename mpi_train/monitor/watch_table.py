"""Watch command: a table of the runs of a folder while they train, with a line for each rank."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mpi_train.monitor.progress import span
from mpi_train.monitor.status import ENDED, FILE, Status, read_status
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import Parser

DEFAULT = Path("results")
SHOWN_S, SILENT_SHOWN_S = 60.0, 600.0
"""Seconds for which a run is still shown: one that has ended, and one that is silent."""
PATIENCE_S = 10.0
"""Seconds beyond ``Status.next_s`` until a run is called silent."""
GONE_S = 5.0
"""Seconds of silence until a run whose process cannot be found is called dead."""
MAX_RANKS = 8
"""Largest number of lines for the ranks of one run."""
_WIDE, _MIDDLE = 72, 56
"""Widths of a terminal, in columns, with room for the whole table, and for all but step and loss."""
_COLOURS = {"finished": "green", "stopped": "yellow", "failed": "bold red"}


def main(argv: Sequence[str] | None = None) -> None:
    """Show the runs of a folder while they train, until Ctrl-C; print them once without a terminal."""
    parser = Parser(prog="python jobs/watch.py", description="Show the runs of a folder while they train.")
    text = "folder with runs at any depth"
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT, metavar="DIR", help=text)
    parser.add_argument("--once", action="store_true", help="print the table once and exit")
    text = "time between two updates"
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help=text)
    flags = parser.parse_args(argv)
    # The first run makes the default folder.
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
            f"{title}: no run is under way, and none has ended in the last {SHOWN_S:.0f} seconds. A run "
            "keeps a status.json in its folder while it trains; make mpi starts one."
        )

    if flags.once or not console.is_terminal:
        console.print(view())
        return
    # SIGTERM too restores the terminal; a shell script starts background jobs with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with Live(view(), console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(view(), refresh=True)
                time.sleep(flags.interval)
    except KeyboardInterrupt:
        console.print(view())


@dataclass(frozen=True)
class Look:
    """Run as found in the folder."""

    name: str  # path of the run's folder, relative to the watched folder
    status: Status
    age_s: float  # since the status last changed

    @property
    def ended(self) -> bool:
        return self.status.state in ENDED

    @property
    def silent(self) -> bool:
        """True if the file should have been written again by now."""
        return not self.ended and self.age_s > self.status.next_s + PATIENCE_S

    @property
    def gone(self) -> bool:
        """True if the process does not exist any more, though the run has not ended."""
        if self.ended or self.status.host != socket.gethostname():
            return False
        with suppress(PermissionError):
            try:
                os.kill(self.status.pid, 0)
            except ProcessLookupError:
                # A process in another container cannot be found either, but it writes.
                return self.age_s > GONE_S
        return False

    @property
    def state(self) -> tuple[str, str]:
        """Text and style of the state."""
        if self.silent or self.gone:
            return f"{'died' if self.gone else 'silent'} {self.age_s:.0f} s", "bold red"
        return self.status.state, _COLOURS.get(self.status.state, "")


class Watcher:
    """Reader of the runs of a folder, at any depth.

    On the first look the age of a status depends on the clock of the run's host, which may differ from the
    clock of this host. From then on the age is the time for which the status was not seen to change.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, tuple[float, Status]] = {}

    def look(self) -> list[Look]:
        """Return the runs to show, in the order in which they started."""
        looks = []
        now = time.monotonic()
        for place, folders, names in os.walk(self._folder):
            if FILE not in names:
                continue
            folders.clear()  # a run's folder contains no run, and its checkpoints are not searched
            path = Path(place)
            # Read each time: a network file system may report an old time of change.
            status = read_status(path / FILE)
            if status is None:
                continue
            changed, before = self._seen.get(path, (now - max(0.0, time.time() - status.written), status))
            self._seen[path] = (changed if status == before else now, status)
            name = path.name if path == self._folder else str(path.relative_to(self._folder))
            look = Look(name, status, now - self._seen[path][0])
            if look.age_s <= (SILENT_SHOWN_S if look.silent and not look.gone else SHOWN_S):
                looks.append(look)
        return sorted(looks, key=lambda look: look.status.started)


def table(looks: list[Look], width: int) -> Table:
    """Draw one line for each run in ``width`` columns, with its ranks below."""
    columns = ["run", "state", "epoch", "step", "loss", "images/s", "waiting", "ends in"]
    if width < _WIDE:
        columns = [name for name in columns if name not in ("step", "loss")]
    if width < _MIDDLE:
        columns = ["run", "epoch", "images/s", "waiting"]
    drawn = Table(box=None, pad_edge=False, padding=(0, 2 if width >= _MIDDLE else 1, 0, 0))
    for name in columns:
        # Only the names of runs may be cut: their column is the one that shrinks.
        left = name in ("run", "state")
        drawn.add_column(name, justify="left" if left else "right", no_wrap=name != "run")

    def add(cells: dict[str, str], style: str, state_style: str) -> None:
        if "state" not in columns and cells.get("state", "training") != "training":
            cells["epoch"] = cells["state"]
        styles = {"state": state_style, "epoch": state_style}
        for_name = ((cells.get(name, ""), styles.get(name, style)) for name in columns)
        drawn.add_row(*(Text(*each, no_wrap=True, overflow="ellipsis") for each in for_name))

    for look in looks:
        add(_run_cells(look), "", look.state[1])
        for cells in () if look.ended else _rank_cells(look.status):
            style = "bold yellow" if "state" in cells else "dim"
            add(cells, style, style)
    return drawn


def _run_cells(look: Look) -> dict[str, str]:
    """Return the text of a run's line by column."""
    status = look.status
    rate, waiting = status.images_per_s, status.rank_waiting
    left = None if look.ended else status.ends_in_s
    return {
        "run": look.name,
        "state": look.state[0],
        "epoch": f"{status.epoch}/{status.num_epochs}" if status.num_epochs else "-",
        "step": f"{status.step}/{status.num_steps}" if status.num_steps else "-",
        "loss": "-" if status.loss is None else f"{status.loss:.4f}",
        "images/s": "-" if rate is None else f"{rate:,.0f}",
        "waiting": f"{sum(waiting) / len(waiting):.0%}" if waiting else "-",
        "ends in": "-" if left is None else span(left),
    }


def _rank_cells(status: Status) -> Iterator[dict[str, str]]:
    """Yield the text of each rank's line by column; of many ranks, those that the others wait for most."""
    size, rates, waiting = len(status.hosts), status.rank_images_per_s, status.rank_waiting
    if size < 2 or len(rates) != size:
        return
    ranks = list(range(size))
    if size > MAX_RANKS:
        slowest = sorted(ranks, key=lambda rank: (rank not in status.stragglers, (waiting or rates)[rank]))
        ranks = sorted(slowest[: MAX_RANKS - 1])
    for rank in ranks:
        # All stages of a pipeline train on the same images, which count on the last stage.
        cells = {"images/s": f"{rates[rank]:,.0f}" if rates[rank] else ""}
        if waiting:
            cells["waiting"] = f"{waiting[rank]:.0%}"
        if rank in status.stragglers:
            cells["state"] = "straggler"
        yield {"run": f"  rank {rank} {status.hosts[rank]}", **cells}
    if len(ranks) < size:
        others = [waiting[rank] for rank in range(size) if rank not in ranks] if waiting else []
        cells = {"waiting": f"{min(others):.0%}-{max(others):.0%}"} if others else {}
        yield {"run": f"  {size - len(ranks)} more", **cells}
