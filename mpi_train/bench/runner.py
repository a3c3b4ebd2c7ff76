"""The strategies one after another, each a process of its own, then the report.

Repeats go round the strategies (A B C D A B C D), so that a machine that grows warm, or busy, slows
all of them alike. What is meant to run is listed in ``bench.json`` before anything starts; the report
is made of that list, so that runs which an older bench left in the same folder stay out of it.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from mpi_train import report
from mpi_train import world as worlds
from mpi_train.bench.plan import BenchConfig, Job, available, num_cores, plan
from mpi_train.bench.process import run_logged, tail
from mpi_train.config import parse
from mpi_train.data.shards import ShardSet
from mpi_train.earlier import FILES
from mpi_train.errors import DataError, JobError, UsageError
from mpi_train.live.status import FILE as STATUS_FILE
from mpi_train.records import RunRecord, read_run
from mpi_train.report import terminal, wording
from mpi_train.report.collect import Attempt, write_attempts
from mpi_train.report.summary import sized

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


def main(jobs: Path, argv: Sequence[str] | None = None) -> None:
    """Runs ``jobs/bench.py``.

    Args:
        jobs: Folder of the strategies' scripts.
        argv: Its flags; those of the process when None.

    Raises:
        UsageError: a flag that cannot work, or a folder that cannot be written.
        DataError: no shards of the data set.
        PlatformError: no mpiexec, no environment for what was asked for, or started as several processes.
        RunsFailedError: some runs failed; the report holds the others.
        KeyboardInterrupt: interrupted; the report holds what was finished.
    """
    worlds.alone(job="bench")
    config = parse(BenchConfig, argv, description="Compare the strategies.", prog="python jobs/bench.py")
    # Every run would find the same fault in the data; here it is said once.
    shards = ShardSet.open(config.data_dir, config.dataset)
    num_shards = len(shards.manifest.splits["train"].files)
    # kill and scancel end a bench as Ctrl-C does: its child with it, and a report of what there is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(quiet=config.quiet, highlight=False, markup=False, soft_wrap=True)
    config = available(config, jobs, console.print)
    Bench(config, plan(config, jobs, num_shards), console).run()


class Bench:
    """A bench in progress."""

    def __init__(self, config: BenchConfig, planned: Sequence[Job], console: Console) -> None:
        self.config = config
        self.out = config.out_dir
        self.jobs = planned
        self.attempts = [job.attempt for job in planned]
        self.console = console

    def run(self) -> None:
        """Makes all runs and writes the report. Raises as ``main`` does."""
        config = self.config
        self.console.print(
            f"bench: {config.model} on {config.dataset}, global batch {config.batch_size}, "
            f"epochs {config.epochs}, {config.dtype}; {', '.join(config.names)}; repeats {config.repeats}; "
            f"{config.num_workers} ranks or devices, {num_cores()} cores; results in {self.out}"
        )
        self._clear()
        try:
            self._run_all()
        except KeyboardInterrupt:
            self.console.print("interrupted: the report is made of the runs that were finished")
            self._report()
            raise
        self._report()
        failed = [attempt for attempt in self.attempts if attempt.failed]
        if failed:
            raise RunsFailedError(failed, self.out)

    def _clear(self) -> None:
        """Removes the older report and the records of runs to be made again; lists what is to come.

        A strategy that fails before it opens its folder would otherwise leave an older run's record.
        """
        try:
            for written in (report.PAGE, report.TEXT):
                (self.out / written).unlink(missing_ok=True)
            for attempt in self.attempts:
                folder = self.out / attempt.folder
                folder.mkdir(parents=True, exist_ok=True)
                for stale in (*FILES, STATUS_FILE, LOG_FILE):
                    (folder / stale).unlink(missing_ok=True)
            write_attempts(self.out, self.attempts)
        except OSError as error:
            raise UsageError(
                f"--out: expected a folder that can be written. Received: {self.out} ({error.strerror})",
                remedy="--out with another folder",
            ) from error

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
                label = f"{job.attempt.strategy}, repeat {job.attempt.repeat}"

                def show(last_line: str, label: str = label) -> None:
                    progress.update(bar, description=f"{label}: {last_line}" if last_line else label)

                show("")
                self._run_one(number, job, show)
                progress.advance(bar)

    def _run_one(self, number: int, job: Job, show: Callable[[str], None]) -> None:
        folder = self.out / job.attempt.folder
        code = run_logged(job.words, folder / LOG_FILE, show)
        told = tail(folder / LOG_FILE, _TAIL_LINES)
        record: RunRecord | None = None
        if code == 0:
            try:
                record = read_run(folder / "run.json")
            except DataError as error:
                code, told = error.exit_code, [*told, str(error)]
        self.attempts[number] = dataclasses.replace(job.attempt, exit_code=code)
        write_attempts(self.out, self.attempts)
        total = len(self.jobs)
        self.console.print(f"[{number + 1:{len(str(total))}}/{total}] {_line(job.attempt, record, code)}")
        if record is None:
            self.console.print(f"  the end of {folder / LOG_FILE}:")
            self.console.print("\n".join(f"  | {line}" for line in told))

    def _report(self) -> None:
        if not any(attempt.exit_code == 0 for attempt in self.attempts):
            self.console.print("no run was finished, so there is no report")
            return
        # All runs of a bench do the same work, unless one was rolled back and has another learning rate.
        for summary in report.write([self.out], self.out):
            self.console.print()
            self.console.print(terminal.table(summary), soft_wrap=False)
            for line in (wording.caution(summary), *(wording.reading(row, summary) for row in summary.rows)):
                if line:
                    self.console.print(line)
        self.console.print(f"report: {self.out / report.PAGE}, and {self.out / report.TEXT}")


def _line(attempt: Attempt, record: RunRecord | None, code: int) -> str:
    """One finished run in one line."""
    size = sized(attempt.workers, attempt.unit)
    who = f"{attempt.strategy:<10} {size:<10} seed {attempt.seed}"
    if record is None:
        return f"{who}  FAILED with exit code {code}"
    stalled = sum(epoch.stalled for epoch in record.epochs)
    return (
        f"{who}  {wording.seconds(record.train_s):>9} s  {wording.rate(record.images_per_s):>8} images/s  "
        f"test accuracy {wording.accuracy(record.test_accuracy)}"
        + (f"  {wording.STALLED} {stalled} epochs stalled" if stalled else "")
    )
