"""Runs one after another, each a process of its own with its output in a file, then a report of them.

What is meant to run is listed before anything starts, and the report is made of that list, so that runs
which an older bench left in the same folder stay out of it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from mpi_train.benchmarks.process import run_logged, tail
from mpi_train.benchmarks.strategies.bench import Job
from mpi_train.monitor.status import FILE as STATUS_FILE
from mpi_train.report import tables
from mpi_train.report.collect import Attempt, write_attempts
from mpi_train.runs.folder import FILES
from mpi_train.runs.record import RunRecord, read_run
from mpi_train.runtime.errors import DataError, JobError, unwritable

LOG_FILE = "job.log"
_TAIL_LINES = 15


class RunsFailedError(JobError):
    """Runs of the bench failed; ``exit_code`` is that of the first."""

    def __init__(self, failed: Sequence[Attempt], out: Path) -> None:
        names = ", ".join(attempt.folder for attempt in failed)
        super().__init__(
            f"expected every run to end with exit code 0. Failed: {names}",
            remedy=f"see {out / failed[0].folder / LOG_FILE}, or run it alone: {failed[0].command}",
        )
        self.exit_code = failed[0].exit_code or 1


class Series(ABC):
    """Runs in progress.

    Attributes:
        reports: Names of the report's files in ``out``.

    Args:
        out: Folder of the runs, each of which has one of its own in it, and of the report.
        planned: The runs, in order.
        console: Where they are shown.
    """

    reports: ClassVar[tuple[str, ...]]

    def __init__(self, out: Path, planned: Sequence[Job], console: Console) -> None:
        self.out = out
        self.jobs = planned
        self.attempts = [job.attempt for job in planned]
        self.console = console

    def run(self) -> None:
        """Makes all runs and the report.

        Raises:
            UsageError: the folder cannot be written.
            RunsFailedError: some failed; the report holds the others.
            KeyboardInterrupt: interrupted; the report holds what was finished.
        """
        self._clear()
        try:
            self._run_all()
        except KeyboardInterrupt:
            self.console.print("interrupted: the report is made of the runs that were finished")
            self._report_finished()
            raise
        self._report_finished()
        failed = [attempt for attempt in self.attempts if attempt.failed]
        if failed:
            raise RunsFailedError(failed, self.out)

    @abstractmethod
    def report(self) -> None:
        """Writes and shows it; some run was finished."""

    def prepare(self, job: Job) -> None:  # noqa: B027  # nothing, where no run needs it
        """Called before each run."""

    def list_attempts(self) -> None:
        """Writes down what is meant to run, and what became of it."""
        write_attempts(self.out, self.attempts)

    def _clear(self) -> None:
        """Removes the older report and the records of runs to be made again; lists what is to come.

        A strategy that fails before it opens its folder would otherwise leave an older run's record.
        """
        try:
            for written in self.reports:
                (self.out / written).unlink(missing_ok=True)
            for attempt in self.attempts:
                folder = self.out / attempt.folder
                folder.mkdir(parents=True, exist_ok=True)
                if attempt.exit_code is None:
                    for stale in (*FILES, STATUS_FILE, LOG_FILE):
                        (folder / stale).unlink(missing_ok=True)
            self.list_attempts()
        except OSError as error:
            raise unwritable(self.out, error) from error

    def _run_all(self) -> None:
        with Progress(
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            expand=True,
            disable=not self.console.is_terminal,
        ) as progress:
            bar = progress.add_task("", total=len(self.jobs))
            for number, job in enumerate(self.jobs):
                label = " ".join(job.label.split())

                def show(last_line: str, label: str = label) -> None:
                    progress.update(bar, description=f"{label}: {last_line}" if last_line else label)

                show("")
                self._run_one(number, job, show)
                progress.advance(bar)

    def _run_one(self, number: int, job: Job, show: Callable[[str], None]) -> None:
        folder = self.out / job.attempt.folder
        kept = job.attempt.exit_code == 0
        if kept:
            code, told = 0, []
        else:
            self.prepare(job)
            code = run_logged(job.words, folder / LOG_FILE, show)
            told = tail(folder / LOG_FILE, _TAIL_LINES)
        record: RunRecord | None = None
        if code == 0:
            try:
                record = read_run(folder / "run.json")
            except DataError as error:
                code, told = error.exit_code, [*told, str(error)]
        self.attempts[number] = dataclasses.replace(job.attempt, exit_code=code)
        self.list_attempts()
        total = len(self.jobs)
        line = f"[{number + 1:{len(str(total))}}/{total}] {_line(job, record, code)}"
        self.console.print(line + ("  (kept)" if kept else ""))
        if record is None:
            self.console.print(f"  the end of {folder / LOG_FILE}:")
            self.console.print("\n".join(f"  | {line}" for line in told))

    def _report_finished(self) -> None:
        if any(attempt.exit_code == 0 for attempt in self.attempts):
            self.report()
        else:
            self.console.print("no run was finished, so there is no report")


def _line(job: Job, record: RunRecord | None, code: int) -> str:
    """One finished run in one line."""
    if record is None:
        return f"{job.label}  FAILED with exit code {code}"
    stalled = sum(epoch.stalled for epoch in record.epochs)
    rate = f"{tables.rate(record.images_per_s):>8} images/s"
    return (
        f"{job.label}  {tables.seconds(record.train_s):>9} s  {rate}  "
        f"test accuracy {tables.accuracy(record.test_accuracy)}"
        + (f"  {tables.STALLED} {stalled} epochs stalled" if stalled else "")
    )
