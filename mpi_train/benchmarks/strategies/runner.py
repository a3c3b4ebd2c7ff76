"""The strategies one after another, each a process of its own, then the report.

Repeats go round the strategies (A B C D A B C D), so that a machine that grows warm, or busy, slows
all of them alike.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mpi_train.benchmarks.series import Series
from mpi_train.benchmarks.strategies.bench import BenchConfig, available, num_cores, plan
from mpi_train.data.shards import ShardSet
from mpi_train.report import pages, tables, text
from mpi_train.runtime import world as worlds
from mpi_train.runtime.flags import parse


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
    console = start_console(quiet=config.quiet)
    config = available(config, jobs, console.print)
    planned = plan(config, jobs, num_shards)
    console.print(
        f"bench: {config.model} on {config.dataset}, global batch {config.batch_size}, "
        f"epochs {config.epochs}, {config.dtype}; {', '.join(config.names)}; repeats {config.repeats}; "
        f"{config.num_workers} ranks or devices, {num_cores()} cores; results in {config.out_dir}"
    )
    Bench(config.out_dir, planned, console).run()


def start_console(*, quiet: bool) -> Console:
    """Where a bench shows its runs, and the beginning of the time in which it can be interrupted."""
    # kill and scancel end a bench as Ctrl-C does: its child with it, and a report of what there is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return Console(quiet=quiet, highlight=False, markup=False, soft_wrap=True)


class Bench(Series):
    """A bench of strategies in progress."""

    reports = (pages.PAGE, pages.TEXT)

    def report(self) -> None:
        # All runs of a bench do the same work, unless one was rolled back and has another learning rate.
        for summary in pages.write([self.out], self.out):
            self.console.print()
            self.console.print(tables.comparison(summary, text.title(summary)).terminal(), soft_wrap=False)
            for line in (text.caution(summary), *(text.reading(row, summary) for row in summary.rows)):
                if line:
                    self.console.print(line)
        self.console.print(f"report: {self.out / pages.PAGE}, and {self.out / pages.TEXT}")
