"""The collectives of ``jobs/mpi.py`` one after another on the local cluster, at each rate of its links."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mpi_train.benchmarks.network import report as network
from mpi_train.benchmarks.network.cluster import LocalCluster
from mpi_train.benchmarks.network.config import PLAIN, NetworkConfig, plan
from mpi_train.benchmarks.series import Series
from mpi_train.benchmarks.strategies.bench import Job, num_cores
from mpi_train.benchmarks.strategies.runner import start_console
from mpi_train.data.shards import ShardSet
from mpi_train.report import pages
from mpi_train.report.collect import BENCH_FILE, Attempt, read_attempts, write_attempts
from mpi_train.runs.record import read_run
from mpi_train.runtime import world as worlds
from mpi_train.runtime.errors import DataError
from mpi_train.runtime.flags import parse


def main(jobs: Path, argv: Sequence[str] | None = None) -> None:
    """Runs ``jobs/bench_network.py``.

    Args:
        jobs: Folder of the strategies' scripts, beside the one with the cluster's.
        argv: Its flags; those of the process when None.

    Raises:
        UsageError: a flag that cannot work, or a folder that cannot be written.
        DataError: no shards of the data set.
        PlatformError: no local cluster of so many nodes, or nobody who may change it.
        RunsFailedError: some runs failed; the report holds the others.
        KeyboardInterrupt: interrupted; the report holds what was finished.
    """
    worlds.alone(job="bench_network")
    config = parse(
        NetworkConfig,
        argv,
        description="Compare the collectives on nodes whose links are made slow.",
        prog="python jobs/bench_network.py",
    )
    ShardSet.open(config.data_dir, config.dataset)
    cluster = LocalCluster(jobs.parent / "slurm/local_cluster.sh", config.nodes)
    console = start_console(quiet=config.quiet)
    console.print(
        f"bench-network: {config.model} on {config.dataset}, global batch {config.batch_size}, epochs "
        f"{config.epochs}; {config.nodes} nodes with one rank each, which share {num_cores()} cores; "
        f"{', '.join(config.rate_list)}; {', '.join(config.names)}; results in {config.out_dir}"
    )
    with cluster.rate_kept():
        NetworkBench(config, plan(config, jobs), cluster, console).run()


class NetworkBench(Series):
    """A bench of collectives in progress.

    The runs of each rate are listed in a folder of their own, in which they have a report like any other:
    in a common one, runs at different rates would be taken for repeats.
    """

    reports = network.FILES

    def __init__(
        self, config: NetworkConfig, planned: Sequence[Job], cluster: LocalCluster, console: Console
    ) -> None:
        super().__init__(config.out_dir, kept(planned, config.out_dir) if config.keep else planned, console)
        self._config, self._cluster = config, cluster

    def prepare(self, job: Job) -> None:
        self._cluster.rate = rate_of(job.attempt)

    def list_attempts(self) -> None:
        for rate in self._config.rate_list:
            own = [attempt for attempt in self.attempts if rate_of(attempt) == rate]
            write_attempts(self.out / rate, [_within_rate(attempt) for attempt in own])

    def report(self) -> None:
        for rate in self._config.rate_list:
            if any(attempt.exit_code == 0 and rate_of(attempt) == rate for attempt in self.attempts):
                pages.write([self.out / rate], self.out / rate)
        comparison = network.compare(self.out, self.attempts, target=self._config.target, plain=PLAIN)
        for table in network.terminal(comparison):
            self.console.print()
            self.console.print(table, soft_wrap=False)
        network.write(comparison, self.out)
        self.console.print(f"report: {self.out / network.TEXT}, and report.html in the folder of each rate")


def rate_of(attempt: Attempt) -> str:
    """The rate of a run, by the folder that it is in."""
    return attempt.folder.split("/", 1)[0]


def _within_rate(attempt: Attempt) -> Attempt:
    return dataclasses.replace(attempt, folder=attempt.folder.split("/", 1)[1])


def kept(planned: Sequence[Job], out: Path) -> list[Job]:
    """``planned``, in which what the same command finished in ``out`` before need not be made again."""
    finished = set()
    for rate in {rate_of(job.attempt) for job in planned}:
        if (out / rate / BENCH_FILE).exists():
            finished |= {
                (f"{rate}/{attempt.folder}", attempt.command)
                for attempt in read_attempts(out / rate)
                if attempt.exit_code == 0
            }
    return [
        dataclasses.replace(job, attempt=dataclasses.replace(job.attempt, exit_code=0))
        if (job.attempt.folder, job.attempt.command) in finished and _is_read(out / job.attempt.folder)
        else job
        for job in planned
    ]


def _is_read(folder: Path) -> bool:
    try:
        read_run(folder / "run.json")
    except DataError:
        return False
    return True
