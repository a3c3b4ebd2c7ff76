"""The runs of a folder that are under way, as a table: a line for each, and below it a line for each rank."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from mpi_train.monitor.progress import span
from mpi_train.monitor.status import ENDED, FILE, Status, read_status

SHOWN_S = 60.0
"""How long a run that has ended is still shown,"""
SILENT_SHOWN_S = 600.0
"""and one of which nothing is heard."""
PATIENCE_S = 10.0
"""Beyond the time by which a run was to write again, until it is called silent."""
GONE_S = 5.0
"""How long nothing is heard of a run whose process cannot be found, until it is called dead."""
MAX_RANKS = 8
"""Lines for the ranks of one run."""
_WIDE, _MIDDLE = 72, 56
"""Columns of a terminal that has room for all, and for all but step and loss."""

_COLOURS = {"finished": "green", "stopped": "yellow", "failed": "bold red"}


@dataclass(frozen=True)
class Look:
    """A run as it was found.

    Attributes:
        name: Its folder, below the one that is watched.
        status: What its file says.
        age_s: How long that has not changed.
        gone: Its process is no more, though it did not say goodbye.
    """

    name: str
    status: Status
    age_s: float

    @property
    def silent(self) -> bool:
        return self.status.state not in ENDED and self.age_s > self.status.next_s + PATIENCE_S

    @property
    def shown(self) -> bool:
        return self.age_s <= (SILENT_SHOWN_S if self.silent and not self.gone else SHOWN_S)

    @property
    def gone(self) -> bool:
        if self.status.state in ENDED or self.status.host != socket.gethostname():
            return False
        try:
            os.kill(self.status.pid, 0)
        except ProcessLookupError:
            # One in a container of its own cannot be seen either, but it writes.
            return self.age_s > GONE_S
        except OSError:
            pass
        return False


class Watcher:
    """Looks at the runs below a folder.

    The age of a status is told by the clock on the first look, when that of the run's host may differ by
    a little; from then on by how long it was not seen to change, for which no other clock is needed.

    Args:
        folder: With runs at any depth.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, tuple[int, float, Status]] = {}

    def look(self) -> list[Look]:
        """The runs to show, those that started last at the end."""
        looks = []
        now = time.monotonic()
        for path in _status_files(self._folder):
            try:
                changed = path.stat().st_mtime_ns
            except OSError:
                continue
            seen = self._seen.get(path)
            if seen is not None and seen[2].state in ENDED and seen[0] == changed:
                status: Status | None = seen[2]
            else:
                # Read, not only looked at: what a network file system says of a file may be old.
                status = read_status(path)
            if status is None:
                continue
            if seen is None or seen[2] != status:
                age_s = max(0.0, time.time() - status.written) if seen is None else 0.0
                seen = self._seen[path] = (changed, now - age_s, status)
            name = str(path.parent.relative_to(self._folder))
            look = Look(path.parent.name if name == "." else name, seen[2], now - seen[1])
            if look.shown:
                looks.append(look)
        return sorted(looks, key=lambda look: look.status.started)


def _status_files(folder: Path) -> Iterator[Path]:
    """A run's folder has no run within, so that checkpoints are not searched."""
    for place, folders, names in os.walk(folder):
        if FILE in names:
            folders.clear()
            yield Path(place) / FILE


def table(looks: list[Look], width: int) -> Table:
    """One line a run, in ``width`` columns, with its ranks below."""
    columns = ["run", "state", "epoch", "step", "loss", "images/s", "waiting", "ends in"]
    if width < _WIDE:
        columns = [name for name in columns if name not in ("step", "loss")]
    if width < _MIDDLE:
        columns = ["run", "epoch", "images/s", "waiting"]
    shown = Table(box=None, pad_edge=False, padding=(0, 2 if width >= _MIDDLE else 1, 0, 0))
    for name in columns:
        # The names of runs alone may be cut: they are what is taken from where there is too little room.
        left = name in ("run", "state")
        shown.add_column(name, justify="left" if left else "right", no_wrap=name != "run")
    for look in looks:
        state, colour = _state(look)
        cells = _run_cells(look, state)
        if "state" not in columns and state != "training":
            cells["epoch"] = state
        shown.add_row(*(_cell(cells[name], colour if name in ("state", "epoch") else "") for name in columns))
        for line in _rank_lines(look.status) if look.status.state not in ENDED else ():
            if "state" not in columns:
                line["epoch"] = line["state"]
            style = "bold yellow" if line["state"] else "dim"
            shown.add_row(*(_cell(line.get(name, ""), style) for name in columns))
    return shown


def _cell(text: str, style: str) -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _state(look: Look) -> tuple[str, str]:
    state = look.status.state
    if state in ENDED:
        return state, _COLOURS[state]
    if look.silent or look.gone:
        return f"{'died' if look.gone else 'silent'} {look.age_s:.0f} s", "bold red"
    return state, ""


def _run_cells(look: Look, state: str) -> dict[str, str]:
    status = look.status
    rate, waiting = status.images_per_s, status.rank_waiting
    going = status.state not in ENDED and status.ends_in_s is not None
    return {
        "run": look.name,
        "state": state,
        "epoch": f"{status.epoch}/{status.num_epochs}" if status.num_epochs else "-",
        "step": f"{status.step}/{status.num_steps}" if status.num_steps else "-",
        "loss": "-" if status.loss is None else f"{status.loss:.4f}",
        "images/s": "-" if rate is None else f"{rate:,.0f}",
        "waiting": f"{sum(waiting) / len(waiting):.0%}" if waiting else "-",
        "ends in": span(status.ends_in_s).strip() if going else "-",
    }


def _rank_lines(status: Status) -> Iterator[dict[str, str]]:
    """The cells of each rank, by column; of many ranks, of those that the others wait for most."""
    size = len(status.hosts)
    if size < 2 or len(status.rank_images_per_s) != size:
        return
    rates, waiting = status.rank_images_per_s, status.rank_waiting
    ranks = list(range(size))
    if size > MAX_RANKS:
        slowest = sorted(ranks, key=lambda rank: (rank not in status.stragglers, (waiting or rates)[rank]))
        ranks = sorted(slowest[: MAX_RANKS - 1])
    for rank in ranks:
        yield {
            "run": f"  rank {rank} {status.hosts[rank]}",
            "state": "straggler" if rank in status.stragglers else "",
            # All stages of a pipeline work on the same images, which count on the last.
            "images/s": f"{rates[rank]:,.0f}" if rates[rank] else "",
            "waiting": f"{waiting[rank]:.0%}" if waiting else "",
        }
    if len(ranks) < size:
        others = [waiting[rank] for rank in range(size) if rank not in ranks] if waiting else []
        yield {
            "run": f"  {size - len(ranks)} more",
            "state": "",
            "waiting": f"{min(others):.0%}-{max(others):.0%}" if others else "",
        }
