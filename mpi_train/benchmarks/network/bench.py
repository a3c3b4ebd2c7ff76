"""Bench of the collectives of ``jobs/mpi.py`` on the local cluster, at each rate of its links."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mpi_train.benchmarks import output
from mpi_train.benchmarks.bench import RunsConfig
from mpi_train.benchmarks.config import words_of
from mpi_train.benchmarks.network import report
from mpi_train.benchmarks.series import Job, RunsFailedError, Series, as_typed, num_cores
from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.data.shards import ShardSet
from mpi_train.report.collect import BENCH_FILE, Attempt, read_attempts
from mpi_train.runs.config import TrainConfig, one_example_a_rank
from mpi_train.runs.record import read_run
from mpi_train.runtime import launch
from mpi_train.runtime import world as worlds
from mpi_train.runtime.errors import DataError, PlatformError, UsageError
from mpi_train.runtime.flags import at_least, flag_of, option, parse
from mpi_train.strategies.mpi.config import MpiConfig

PLAIN = "plain"
SCRIPT = launch.CLONE / "slurm/local_cluster.sh"
_LIMIT_S = 60.0
_RATE = re.compile(r"[1-9][0-9]{0,4}[mg]bit|none")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(RunsConfig):
    """Options of ``jobs/bench_network.py``; the training flags apply to every run."""

    rates: str = option("10gbit,1gbit,100mbit", "comma list of limits of the links; none: no limit")
    collectives: str = option(
        "all",
        "comma list of collectives of jobs/mpi.py, each with flags of that job after a +, without dashes, "
        "such as plain+every=8; all: those that differ on nodes with one rank each",
    )
    nodes: int = option(4, "nodes of the local cluster, each with one rank")
    target: float = option(0.88, "test accuracy up to which the training is timed", "ACCURACY")
    keep: bool = option(False, "keep the runs in --out that the same command has finished")
    epochs: int = option(4, "passes over the training set")
    out: Path = option(Path("results/bench_network"), "folder of the runs and the report", "DIR")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--nodes", self.nodes, 2)
        one_example_a_rank(self.batch_size, self.nodes)
        if not 0 < self.target < 1:
            raise UsageError(f"--target: expected an accuracy between 0 and 1. Got: {self.target:g}")
        for rate in self.rate_list or ["nothing"]:
            if not _RATE.fullmatch(rate):
                expected = "rates such as 10gbit, 1gbit and 100mbit, or none for no limit"
                raise UsageError(f"--rates: expected {expected}. Got: {rate}")
        if not self.names:
            raise UsageError(f"--collectives: expected some of {', '.join(COLLECTIVES)}. Got: none")
        for name in self.names:
            flags_of(name)

    @property
    def rate_list(self) -> list[str]:
        return words_of(self.rates)

    @property
    def names(self) -> list[str]:
        if self.collectives != "all":
            return words_of(self.collectives)
        # With one rank a node, auto and hierarchical are plain.
        others = [name for name in COLLECTIVES if name not in (PLAIN, "auto", "hierarchical")]
        return [PLAIN, f"{PLAIN}+average=gradients", f"{PLAIN}+every=8", *others]


def flags_of(name: str) -> list[str]:
    """Return the flags of ``jobs/mpi.py`` for an entry such as ``plain+every=8``, or raise ``UsageError``."""
    shared = {flag_of(field.name) for field in dataclasses.fields(TrainConfig)}
    collective, *settings = name.split("+")
    flags = ["--collective", collective]
    for key, equals, value in (f"--{setting}".partition("=") for setting in settings):
        flags += [key, value] if equals else [key]
        if key in shared:
            raise UsageError(
                f"--collectives: {key} must be the same in all runs. Got: {name}",
                remedy=f"{key} beside --collectives",
            )
    try:
        parse(MpiConfig, flags, description="", prog=launch.typed("mpi"))
    except UsageError as error:
        raise UsageError(f"--collectives: {name}: {error.message}", remedy=error.remedy) from error
    return flags


def plan(config: NetworkConfig) -> dict[str, list[Job]]:
    """List the runs at each rate, with the same seed, and an equal share of the cores for each rank."""
    script = os.path.relpath(SCRIPT)
    threads = config.threads or max(1, num_cores() // config.nodes)
    # As slurm/env.sh starts ranks, which end by themselves when one of them does.
    start = ["srun", f"--nodes={config.nodes}", "--ntasks-per-node=1", "--exclusive"]
    start += ["--kill-on-bad-exit=0", "--wait=5", "--export=ALL", *launch.command("mpi")]

    def job(rate: str, name: str) -> Job:
        flags = config.flags_of_run(threads=threads, out=config.out / rate / name)
        words = [*start, *flags, *flags_of(name)]
        attempt = Attempt(
            strategy=name, workers=config.nodes, unit="rank", repeat=1, seed=config.seed, folder=name,
            command=f"{script} rate {rate} && {as_typed(words)}",
        )  # fmt: skip
        return Job(attempt, words)

    return {rate: [job(rate, name) for name in config.names] for rate in config.rate_list}


def kept(planned: Sequence[Job], out: Path) -> list[Job]:
    """Return ``planned`` with exit code 0 for the runs in ``out`` that the same command has finished."""
    finished = set()
    for attempt in read_attempts(out) if (out / BENCH_FILE).exists() else ():
        if attempt.exit_code == 0:
            with suppress(DataError):
                read_run(out / attempt.folder / "run.json")
                finished.add(attempt)
    done = [
        dataclasses.replace(job, attempt=dataclasses.replace(job.attempt, exit_code=0)) for job in planned
    ]
    return [new if new.attempt in finished else job for new, job in zip(done, planned, strict=True)]


def check_cluster(num_nodes: int) -> None:
    """Raise ``PlatformError`` unless the cluster runs with ``num_nodes`` nodes and the user is root."""
    if os.geteuid() != 0:
        raise PlatformError(
            f"expected root, because limiting the links of the nodes needs root. Got: user {os.geteuid()}",
            remedy="the same command as root, or jobs/mpi.py on a slow network",
        )
    done, remedy = _call("status"), f"as root: make slurm-up NODES={num_nodes}"
    num_found = len(re.findall(r"^node-", done.stdout, re.MULTILINE))
    if num_found < num_nodes:
        expected = f"expected the local Slurm cluster with {num_nodes} nodes"
        raise PlatformError(f"{expected}. Got: {num_found or 'none'}", remedy=remedy)
    if done.returncode:
        raise PlatformError(f"expected healthy daemons and nodes. Got:\n{done.stdout}", remedy=remedy)


def set_rate(rate: str) -> None:
    """Limit what each node can send and receive to ``rate``, or ``none``; raises ``PlatformError``."""
    done = _call("rate", rate)
    if done.returncode:
        raise PlatformError(f"the links of the nodes cannot be limited to {rate}: {done.stderr.strip()}")


def _call(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        # In a session of its own, so that Ctrl-C does not stop the script between two nodes.
        return subprocess.run(
            [SCRIPT, *words], capture_output=True, text=True, start_new_session=True, timeout=_LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        raise PlatformError(
            f"expected {SCRIPT} {words[0]} to end within {_LIMIT_S:g} s. Got: no answer",
            remedy="as root: make slurm-down, then make slurm-up",
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``jobs/bench_network.py`` with the flags ``argv``, or those of the process if None.

    Raises ``UsageError``, ``DataError`` without shards, ``PlatformError``, and as ``Series.run``.
    """
    worlds.alone(job="bench_network")
    text = "Compare the collectives on nodes with slow links."
    config = parse(NetworkConfig, argv, description=text, prog=launch.typed("bench_network"))
    ShardSet.open(config.data_dir, config.dataset)
    check_cluster(config.nodes)
    console, out = output.console(quiet=config.quiet), config.out
    console.print(
        f"bench-network: {config.model} on {config.dataset}, global batch {config.batch_size}, epochs "
        f"{config.epochs}; {config.nodes} nodes with one rank each, which share {num_cores()} cores; "
        f"{', '.join(config.rate_list)}; {', '.join(config.names)}; results in {out}"
    )
    # Each rate has a report of its own: in a common one, other rates would count as repeats.
    benches, failed = {}, []
    for rate, jobs in plan(config).items():
        benches[rate] = Series(out / rate, kept(jobs, out / rate) if config.keep else jobs, console)
        benches[rate].clear()
    output.make_folder(out, [report.TEXT])
    before = _call("rate").stdout.strip()
    try:
        try:
            for rate, bench in benches.items():
                set_rate(rate)
                console.print(f"links: {rate}")
                try:
                    bench.run()
                except RunsFailedError as error:
                    failed.append(error)
        finally:
            set_rate(before)
    finally:
        attempts = {rate: bench.attempts for rate, bench in benches.items()}
        if any(attempt.exit_code == 0 for own in attempts.values() for attempt in own):
            output.show(console, report.write(out, attempts, config.target, PLAIN))
            console.print(f"report: {out / report.TEXT}, and report.html in the folder of each rate")
    if failed:
        raise failed[0]
