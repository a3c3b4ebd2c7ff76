"""Runs one after another, each in a process of its own with its output in a file, then a report of them.

The planned runs are listed before the first one starts, and the report is made of that list: runs that a
previous bench left in the same folder are not part of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from mpi_train.monitor.status import FILE as STATUS_FILE
from mpi_train.report import pages, tables
from mpi_train.report.collect import Attempt, write_attempts
from mpi_train.report.summary import Summary, sized
from mpi_train.runs.folder import FILES
from mpi_train.runs.record import RunRecord, read_run
from mpi_train.runtime import launch
from mpi_train.runtime.errors import DataError, JobError, unwritable

LOG_FILE = "job.log"
_TAIL_LINES, _TAIL_BYTES = 15, 8192
_TERMINATE_S = 10.0


@dataclass(frozen=True)
class Job:
    """Planned run; it is kept if its attempt has the exit code 0."""

    attempt: Attempt
    words: list[str]


class RunsFailedError(JobError):
    """Failure of some runs of a bench; ``exit_code`` is that of the first."""

    def __init__(self, failed: Sequence[Attempt], out: Path) -> None:
        names = ", ".join(attempt.folder for attempt in failed)
        super().__init__(
            f"expected every run to end with exit code 0. Failed: {names}",
            remedy=f"see {out / failed[0].folder / LOG_FILE}, or run it alone: {failed[0].command}",
        )
        self.exit_code = failed[0].exit_code or 1


class Series:
    """Bench in progress: ``jobs`` in order, with their folders and their report in ``out``."""

    def __init__(self, out: Path, jobs: Sequence[Job], console: Console) -> None:
        self.out, self.jobs, self.console = out, jobs, console
        self.attempts = [job.attempt for job in jobs]

    def run(self) -> None:
        """Make all runs, and the report of those that finished.

        Raises ``UsageError`` if the folder cannot be written, ``RunsFailedError``, and ``KeyboardInterrupt``.
        """
        # kill and scancel interrupt a bench as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        self.clear()
        try:
            self._run_all()
        except KeyboardInterrupt:
            self.console.print("interrupted: the report is made of the finished runs")
            raise
        finally:
            if any(attempt.exit_code == 0 for attempt in self.attempts):
                self.report()
            else:
                self.console.print("no run was finished, so there is no report")
        if failed := [attempt for attempt in self.attempts if attempt.failed]:
            raise RunsFailedError(failed, self.out)

    def report(self) -> list[Summary]:
        """Write the report of at least one finished run."""
        return pages.write([self.out], self.out)

    def clear(self) -> None:
        """List the planned runs, and remove the report and the records of previous ones."""
        try:
            for name in (pages.PAGE, pages.TEXT):
                (self.out / name).unlink(missing_ok=True)
            for attempt in self.attempts:
                folder = self.out / attempt.folder
                folder.mkdir(parents=True, exist_ok=True)
                for stale in (*FILES, STATUS_FILE, LOG_FILE) if attempt.exit_code is None else ():
                    (folder / stale).unlink(missing_ok=True)
            write_attempts(self.out, self.attempts)
        except OSError as error:
            raise unwritable(self.out, error) from error

    def _run_all(self) -> None:
        """Make all runs; below the results, a terminal shows the one in progress and how far the bench is."""
        column = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        text = TextColumn("{task.description}", markup=False, table_column=column)
        columns = (text, BarColumn(bar_width=12), MofNCompleteColumn(), TimeElapsedColumn())
        progress = Progress(
            *columns, console=self.console, transient=True, expand=True, disable=not self.console.is_terminal
        )
        with progress:
            bar = progress.add_task("", total=len(self.jobs))
            for number, job in enumerate(self.jobs):
                self._run_one(number, job, partial(progress.update, bar))
                progress.advance(bar)

    def _run_one(self, number: int, job: Job, update: Callable[..., None]) -> None:
        attempt, folder, total = job.attempt, self.out / job.attempt.folder, len(self.jobs)
        count, size = f"{number + 1:{len(str(total))}}/{total}", sized(attempt.workers, attempt.unit)
        width = max(len(each.attempt.strategy) for each in self.jobs)
        label = f"{attempt.strategy:<{width}} {size:<10} seed {attempt.seed}"
        kept, code, shown, result = attempt.exit_code == 0, 0, [], ""

        def show(end: str) -> None:
            update(description=f"{' '.join(label.split())}: {end}")

        if not kept:
            code = run_logged(job.words, folder / LOG_FILE, show)
            shown = tail(folder / LOG_FILE, _TAIL_LINES)
        if code == 0:
            try:
                result = _result(read_run(folder / "run.json"))
            except DataError as error:
                code, shown = error.exit_code, [*shown, str(error)]
        self.attempts[number] = dataclasses.replace(attempt, exit_code=code)
        write_attempts(self.out, self.attempts)
        outcome = result or f"FAILED with exit code {code}"
        self.console.print(f"[{count}] {label}  {outcome}{'  (kept)' if kept else ''}")
        if not result:
            end = f"  the end of {folder / LOG_FILE}:"
            self.console.print(end, *(f"  | {line}" for line in shown), sep="\n")


def _result(record: RunRecord) -> str:
    stalled = sum(epoch.stalled for epoch in record.epochs)
    return (
        f"{tables.seconds(record.train_s):>9} s  {tables.rate(record.images_per_s):>8} images/s  "
        f"test accuracy {tables.accuracy(record.test_accuracy)}"
        + (f"  {tables.STALLED} {stalled} epochs stalled" if stalled else "")
    )


def run_logged(words: Sequence[str], log: Path, show: Callable[[str], None]) -> int:
    """Run ``words`` with their output in the new file ``log``; end them when interrupted.

    Calls ``show`` with the last line of the log about twice a second. Returns the exit code, or 128 + n if
    signal n ended the process.
    """
    # Unbuffered, so that the log grows while the job runs. Without standard input, because a launcher in
    # the background that reads from the terminal is stopped.
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
            child.terminate()  # a launcher then ends its ranks; nothing happens if it has ended
            try:
                child.wait(_TERMINATE_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                child.kill()
                child.wait()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def tail(log: Path, num_lines: int) -> list[str]:
    """Return the last lines of a log that are not empty, without control characters."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = ("".join(c for c in line if c.isprintable()).rstrip() for line in text.splitlines())
    return [line for line in lines if line][-num_lines:]


def as_typed(words: Sequence[str]) -> str:
    """Join ``words`` as a user types them in an activated environment."""
    short = {sys.executable: "python"}
    if Path(words[0]).name == "mpiexec":
        short[words[0]] = "mpiexec"
    return shlex.join(short.get(word, word) for word in words)


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))
