"""Progress display of a job: a bar on a terminal, plain lines in a log file, JSON for a program, or nothing.

A rank under mpiexec writes into a pipe, whatever reads the pipe, so it prints the lines of a log file.
"""

from __future__ import annotations

import json
import math
import sys
import textwrap
import time
from typing import Any, Literal

from rich.console import Console
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from mpi_train.monitor.pace import ByRank, Pace
from mpi_train.monitor.status import State, StatusFile

Style = Literal["lines", "json", "quiet"]

LOG_EVERY_S, LOG_AT_MOST_EVERY_S = 10.0, 60.0
"""Seconds between two lines of an epoch, without a bar: at the start of a run, and from its second hour."""
REFRESH_S = 0.1
"""Shortest time between two states of the bar."""
_BAR_CELLS = 6
"""Smallest width of the bar, without the figures."""
_PATIENCE_S = 300.0
"""Time in which a start, a first chunk of steps or an evaluation is expected to end."""
_FIGURES = (
    ("images_per_s", "{:,.0f} images/s", " {:>7,.0f} images/s", 43),
    ("loss", "loss {:.4f}", " loss {:6.4f}", 25),
    ("communication", "communication {:.0%}", " comm {:4.0%}", 54),
    ("left", "run ends in {}", " left {:>5}", 12),
)
"""Figures: name, format in a log, format beside the bar, and the free cells that the terminal must have."""


class Progress:
    """Display of one run, and its ``status.json``, which ``jobs/watch.py`` reads.

    Args:
        speaks: True on the one rank that prints.
        style: ``lines`` shows a bar on a terminal; ``quiet`` prints warnings only, on stderr.
        status: Writer of the file, if the run has one.
    """

    def __init__(self, *, speaks: bool, style: Style = "lines", status: StatusFile | None = None) -> None:
        self._speaks, self._style = speaks, style
        self._status = status if speaks else None
        self._console = Console(
            quiet=not speaks or style != "lines", highlight=False, soft_wrap=True, markup=False, emoji=False
        )
        on_terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._on_terminal = on_terminal and not self._console.quiet
        self._bar: Live | None = None
        self._pace = Pace()
        self._epoch = self._num_epochs = self._step = self._num_steps = self._num_done = 0
        self._began = self._last_line = self._last_drawn = self._chunk_s = 0.0
        self._write("starting", next_s=_PATIENCE_S)

    def say(self, line: str, event: str = "message", **facts: Any) -> None:
        """Print one line, above the bar if there is one; in JSON, ``facts``, or else the line."""
        if self._style == "json" and self._speaks:
            print(json.dumps({"event": event, **(facts or {"text": line})}), flush=True)
            return
        if self._on_terminal:  # a path is never broken
            line = textwrap.fill(
                line,
                self._console.width,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        self._console.print(line)

    def warn(self, message: str) -> None:
        """Print a warning."""
        if self._style == "quiet" and self._speaks:
            print(f"warning: {message}", file=sys.stderr, flush=True)
        else:
            self.say(f"warning: {message}", "warning", text=message)

    def begin(self, epoch: int, num_epochs: int, num_steps: int) -> None:
        """Start an epoch, counted from 1. The first call shows the bar, which stays between epochs."""
        if not self._speaks:
            return
        self._last_line = time.monotonic()
        self._began = self._began or self._last_line
        self._epoch, self._num_epochs, self._step, self._num_steps = epoch, num_epochs, 0, num_steps
        if self._on_terminal and self._bar is None:
            self._bar = Live(
                console=self._console, get_renderable=self._line, auto_refresh=False, transient=True
            )
            self._bar.start()
        self._draw()
        self._write("training")

    def advance(self, step: int, chunk: ByRank | None = None) -> None:
        """Show that ``step`` steps of the epoch are done; those without a ``chunk`` by a previous run."""
        if not self._speaks:
            return
        if chunk is not None:
            self._num_done += step - self._step
            self._pace.add(chunk)
            self._chunk_s = float(chunk.elapsed_s.max())
        self._step = step
        now = time.monotonic()
        if now - self._last_drawn >= REFRESH_S or step == self._num_steps:
            self._draw()
        every_s = min(LOG_AT_MOST_EVERY_S, max(LOG_EVERY_S, (now - self._began) / 60))
        if self._bar is None and now - self._last_line > every_s:
            self._last_line = now
            fields = [f"epoch {self._epoch}/{self._num_epochs}", f"step {self._step}/{self._num_steps}"]
            figures = self._figures()
            fields += [text.format(figures[name]) for name, text, _, _ in _FIGURES if name in figures]
            self.say("  ".join(fields), "progress", **self._facts())
        if step < self._num_steps:  # after the last step the state changes, which is written then
            self._write("training")

    def evaluate(self) -> None:
        """Show that the steps of the epoch are done and the model is evaluated."""
        self._write("evaluating", next_s=_PATIENCE_S)

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def leave(self, state: State) -> None:
        """Remove the bar, and write the final state of the run."""
        self.end()
        self._write(state)

    def _figures(self) -> dict[str, Any]:
        """Return those figures over all ranks that are known."""
        figures: dict[str, Any] = {}
        if self._pace:
            figures = {"images_per_s": float(self._pace.images_per_s.sum()), "loss": self._pace.loss}
            if self._pace.communication is not None:
                figures["communication"] = self._pace.communication
        if self._num_done:
            # The mean rate so far includes evaluation and checkpoints.
            num_left = (self._num_epochs - self._epoch + 1) * self._num_steps - self._step
            figures["ends_in_s"] = (time.monotonic() - self._began) / self._num_done * num_left
            figures["left"] = span(figures["ends_in_s"])
        return figures

    def _facts(self) -> dict[str, Any]:
        """Return the position and the figures for JSON, which has no NaN."""
        facts = {name: getattr(self, f"_{name}") for name in ("epoch", "num_epochs", "step", "num_steps")}
        figures = self._figures()
        for name in ("images_per_s", "loss", "communication", "ends_in_s"):
            known = math.isfinite(figures.get(name, math.nan))
            facts[name] = round(figures[name], 6) if known else None
        return facts

    def _draw(self) -> None:
        if self._bar is not None:
            self._last_drawn = time.monotonic()
            self._bar.refresh()

    def _line(self) -> Constrain:
        """Render the bar: one line, a cell narrower than the terminal, with the figures that fit."""
        figures = self._figures()
        epoch = f"epoch {self._epoch:>{len(str(self._num_epochs))}}/{self._num_epochs}"
        percent = f"{math.floor(100 * self._step / max(1, self._num_steps)):3}%"
        room = self._console.width - 1 - len(epoch) - _BAR_CELLS - len(percent) - 2
        shown = [
            text.format(figures[name])
            for name, _, text, least in _FIGURES
            if room >= least and name in figures
        ]
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(max(1, self._num_steps), self._step)
        cells: tuple[str | ProgressBar, ...] = (epoch, bar, percent, *shown)
        for cell in cells:
            line.add_column(no_wrap=isinstance(cell, str))  # the bar fills the line
        line.add_row(*cells)
        return Constrain(line, self._console.width - 1)

    def _write(self, state: State, next_s: float = 0.0) -> None:
        if self._status is None or not self._status.is_due(state):
            return
        facts = self._facts()
        if self._pace:
            waiting = self._pace.waiting
            facts["rank_images_per_s"] = self._pace.images_per_s.round(1).tolist()
            facts["rank_waiting"] = waiting.round(3).tolist() if waiting is not None else []
            facts["stragglers"] = self._pace.stragglers
        self._status.write(state, facts, next_s=next_s or 2 * self._chunk_s or _PATIENCE_S)


def span(seconds: float) -> str:
    """Format a time in at most five characters: ``12:34`` minutes, ``3h07``, ``12d05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, days = minutes // 60, minutes // 1440
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    return f"{hours}h{minutes % 60:02}" if hours < 100 else f"{days}d{hours % 24:02}"
