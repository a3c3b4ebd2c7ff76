"""What a running job shows: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LOG_EVERY_S = 10.0
"""Seconds between two lines within an epoch, where there is no terminal."""


class Progress:
    """Args:
    speaks: Whether this process shows anything; one rank does.
    """

    def __init__(self, *, speaks: bool) -> None:
        self._console = Console(quiet=not speaks, highlight=False, soft_wrap=True)
        self._is_terminal = speaks and self._console.is_terminal
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._label, self._num_steps, self._last_line = "", 0, 0.0

    def say(self, line: str) -> None:
        """Prints one line, above the bar where there is one."""
        self._console.print(line, markup=False)

    def begin(self, label: str, num_steps: int) -> None:
        """Starts the bar of an epoch."""
        self._label, self._num_steps, self._last_line = label, num_steps, time.monotonic()
        if self._is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f}%  {task.fields[note]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(label, total=num_steps, note="")
            self._bar.start()

    def advance(self, step: int, loss: float) -> None:
        """Shows that ``step`` steps of the epoch are done, at this loss."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=f"loss {loss:.4f}")
        elif time.monotonic() - self._last_line > LOG_EVERY_S:
            self._last_line = time.monotonic()
            self.say(f"{self._label}  step {step}/{self._num_steps}  loss {loss:.4f}")

    def end(self) -> None:
        """Ends the bar of an epoch."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
