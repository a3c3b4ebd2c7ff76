"""A child process with its output in a file: started, watched, and ended when we are."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from mpi_train.runtime import launch

_PATIENCE_S = 10.0
_TAIL_BYTES = 8192


def run_logged(words: Sequence[str], log: Path, show: Callable[[str], None]) -> int:
    """Runs ``words`` with their output in the file ``log``; ends them when interrupted.

    Args:
        words: The command.
        log: Is overwritten.
        show: Called with the last line of the log about twice a second.

    Returns:
        The exit code, 128 + n when signal n ended the process.
    """
    # Unbuffered, or the log would stay empty while the job runs. Without standard input, since a
    # launcher in the background that reads from the terminal is stopped.
    environment = {**launch.environment(), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while child.poll() is None:
                show(" ".join(" ".join(tail(log, 1)).split()))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=0.5)
        finally:
            _end(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends ``child`` if it runs, first politely: a launcher then takes its ranks with it."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_PATIENCE_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            child.kill()
            child.wait()


def tail(log: Path, num_lines: int) -> list[str]:
    """The last lines of a log that say something, without control characters."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = ("".join(c for c in line if c.isprintable()).rstrip() for line in text.splitlines())
    return [line for line in lines if line][-num_lines:]
