"""What a running job shows: a bar on a terminal, plain lines in a log file, JSON for a program, or nothing.

A rank under mpiexec writes into a pipe, whatever is at its other end: it prints the lines of a log file.
"""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from mpi_train.monitor.pace import ByRank, Pace
from mpi_train.monitor.status import State, StatusFile

Style = Literal["lines", "json", "quiet"]

LOG_EVERY_S, LOG_AT_MOST_EVERY_S = 10.0, 60.0
"""Seconds between two lines within an epoch, where there is no bar: at the start of a run, and from its
second hour on."""
REFRESH_S = 0.1
"""Between two states of the bar, at least."""
_BAR_CELLS = 6, 40
"""The bar itself, without the figures beside it: at least and at most."""
_PATIENCE_S = 300.0
"""In which a start, a first chunk of steps or an evaluation is expected to end, for those who look on."""


class Progress:
    """Args:
    speaks: Whether this process shows anything; one rank does.
    style: ``lines`` are a bar on a terminal; ``quiet`` is silent but for warnings, on stderr.
    status: Where others see the state of the run, if anywhere.
    """

    def __init__(self, *, speaks: bool, style: Style = "lines", status: StatusFile | None = None) -> None:
        self._speaks, self._style = speaks, style
        self._status = status if speaks else None
        self._console = Console(
            quiet=not speaks or style != "lines", highlight=False, soft_wrap=True, markup=False, emoji=False
        )
        on_terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._on_terminal = on_terminal and speaks and style == "lines"
        self._live: Live | None = None
        self._pace = Pace()
        self._epoch = self._num_epochs = self._step = self._num_steps = self._num_done = 0
        self._began: float | None = None
        self._last_line = self._last_drawn = self._chunk_s = 0.0
        self._write("starting", next_s=_PATIENCE_S)

    # ---- Lines ------------------------------------------------------------------------------------------

    def say(self, line: str, event: str = "message", **facts: Any) -> None:
        """Shows one line, above the bar where there is one.

        Args:
            line: Fields stand two spaces apart: there it is broken on a narrow terminal.
            event: Its name in JSON.
            **facts: What it says, in JSON; the line itself where there are none.
        """
        if self._style == "json" and self._speaks:
            print(json.dumps({"event": event, **(facts or {"text": line})}), flush=True)
        elif self._on_terminal:
            self._console.print(folded(line, self._console.width))
        else:
            self._console.print(line)

    def warn(self, message: str) -> None:
        """Shows a warning."""
        if self._style == "quiet" and self._speaks:
            print(f"warning: {message}", file=sys.stderr, flush=True)
        else:
            self.say(f"warning: {message}", "warning", text=message)

    # ---- An epoch ---------------------------------------------------------------------------------------

    def begin(self, epoch: int, num_epochs: int, num_steps: int) -> None:
        """Starts an epoch, counted from 1; with the first the bar appears, and stays between epochs too."""
        if not self._speaks:
            return
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        self._epoch, self._num_epochs, self._step, self._num_steps = epoch, num_epochs, 0, num_steps
        self._last_line = now
        if self._on_terminal and self._live is None:
            self._live = Live(self, console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._draw()
        self._write("training")

    def advance(self, step: int, chunk: ByRank | None = None) -> None:
        """Shows that ``step`` steps of the epoch are done; without a ``chunk`` they were done before."""
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
        assert self._began is not None
        every_s = min(LOG_AT_MOST_EVERY_S, max(LOG_EVERY_S, (now - self._began) / 60))
        if self._live is None and now - self._last_line > every_s:
            self._last_line = now
            self.say("  ".join(self._fields()), "progress", **self._facts())
        if step < self._num_steps:  # after the last step the state is another, and written then
            self._write("training")

    def evaluate(self) -> None:
        """Says that the steps of the epoch are done, and what it learned is being tried."""
        self._write("evaluating", next_s=_PATIENCE_S)

    def end(self) -> None:
        """Takes the bar away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def leave(self, state: State) -> None:
        """Ends the bar, and says to those who look on how the run ended."""
        self.end()
        self._write(state)

    # ---- Figures ----------------------------------------------------------------------------------------

    @property
    def _ends_in_s(self) -> float | None:
        """Until the end of the run, at the rate since it began, evaluation and checkpoints included."""
        if not self._num_done or self._began is None:
            return None
        num_left = (self._num_epochs - self._epoch + 1) * self._num_steps - self._step
        return (time.monotonic() - self._began) / self._num_done * num_left

    def _facts(self) -> dict[str, Any]:
        """The figures of now, over all ranks, as JSON can hold them."""
        known, ends_in_s = bool(self._pace), self._ends_in_s
        return {
            "epoch": self._epoch,
            "num_epochs": self._num_epochs,
            "step": self._step,
            "num_steps": self._num_steps,
            "images_per_s": round(float(self._pace.images_per_s.sum()), 1) if known else None,
            "loss": round(self._pace.loss, 6) if known and math.isfinite(self._pace.loss) else None,
            "communication": _rounded(self._pace.communication) if known else None,
            "ends_in_s": _rounded(ends_in_s),
        }

    def _fields(self) -> Iterator[str]:
        """The same for a line of a log file."""
        facts = self._facts()
        yield f"epoch {self._epoch}/{self._num_epochs}"
        yield f"step {self._step}/{self._num_steps}"
        if facts["images_per_s"] is not None:
            yield f"{facts['images_per_s']:,.0f} images/s"
            yield f"loss {self._pace.loss:.4f}"
        if facts["communication"] is not None:
            yield f"communication {facts['communication']:.0%}"
        if facts["ends_in_s"] is not None:
            yield f"run ends in {span(facts['ends_in_s']).strip()}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The bar: one line, which leaves out what does not fit, and never fills the last column."""
        facts = self._facts()
        start = f"epoch {self._epoch:>{len(str(self._num_epochs))}}/{self._num_epochs} "
        percent = f" {math.floor(100 * self._step / max(1, self._num_steps)):3}%"
        # In the order of the line, with what is left out last first.
        figures = []
        if self._pace:
            figures = [
                (3, f"  {facts['images_per_s']:>7,.0f} images/s"),
                (2, f"  loss {self._pace.loss:6.4f}"),
                (1, f"  left {span(facts['ends_in_s'])}"),
            ]
            if facts["communication"] is not None:
                figures.insert(2, (4, f"  comm {facts['communication']:4.0%}"))
        room = console.width - 1 - len(start) - len(percent)
        shown = fitting(figures, room - _BAR_CELLS[0])
        cells = min(_BAR_CELLS[1], room - len(shown))
        yield Text(start[: console.width - 1], end="")
        if cells >= _BAR_CELLS[0]:
            yield ProgressBar(total=max(1, self._num_steps), completed=self._step, width=cells)
            yield Text(percent + shown, end="")

    def _draw(self) -> None:
        if self._live is not None:
            self._last_drawn = time.monotonic()
            self._live.refresh()

    def _write(self, state: State, next_s: float = 0.0) -> None:
        if self._status is None or not self._status.is_due(state):
            return
        by_rank: dict[str, Any] = {}
        if self._pace:
            waiting = self._pace.waiting
            by_rank = {
                "rank_images_per_s": self._pace.images_per_s.round(1).tolist(),
                "rank_waiting": waiting.round(3).tolist() if waiting is not None else [],
                "stragglers": self._pace.stragglers,
            }
        next_s = next_s or 2 * self._chunk_s or _PATIENCE_S
        self._status.write(state, {**self._facts(), **by_rank}, next_s=next_s)


def fitting(figures: Sequence[tuple[int, str]], room: int) -> str:
    """As many of the ``figures`` as there is ``room`` for, by their rank, in their order."""
    kept: set[int] = set()
    for rank, text in sorted(figures):
        room -= len(text)
        if room < 0:
            break
        kept.add(rank)
    return "".join(text for rank, text in figures if rank in kept)


def folded(line: str, width: int) -> str:
    """``line`` in lines of ``width``: broken between fields, or else between words; never within one."""
    if len(line) <= width:
        return line
    first, *others = re.split(r"  +", line)
    lines = [first]
    for field in others:
        if len(lines[-1]) + 2 + len(field) <= width:
            lines[-1] += f"  {field}"
        else:
            lines.append(f"  {field}")
    return "\n".join(
        textwrap.fill(one, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for one in lines
    )


def span(seconds: float | None) -> str:
    """A time in five characters: ``12:34`` minutes, ``3h07``, ``12d05``."""
    if seconds is None:
        return "    -"
    minutes, rest = divmod(round(seconds), 60)
    hours, days = minutes // 60, minutes // 1440
    if minutes < 60:
        return f"{minutes:2}:{rest:02}"
    return f"{hours:2}h{minutes % 60:02}" if hours < 100 else f"{days:2}d{hours % 24:02}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
