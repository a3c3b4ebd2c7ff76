"""What a bench of collectives runs: each of them, at each rate of the nodes' links."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from mpi_train.benchmarks.network.cluster import check_rate
from mpi_train.benchmarks.strategies.bench import Job, RunsConfig, as_typed, num_cores
from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.report.collect import Attempt
from mpi_train.runs.config import TrainConfig, one_example_a_rank
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import as_flags, at_least, option, parse
from mpi_train.strategies.mpi.config import MpiConfig

PLAIN = "plain"
# Not auto and hierarchical: with one rank a node they are plain.
_DEFAULT = (
    PLAIN,
    f"{PLAIN}+average=gradients",
    f"{PLAIN}+every=8",
    *(name for name in COLLECTIVES if name not in (PLAIN, "auto", "hierarchical")),
)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(RunsConfig):
    """What ``jobs/bench_network.py`` takes beyond the training flags, which go to every run."""

    rates: str = option(
        "10gbit,1gbit,100mbit", "comma list of what each node can send and receive; none: no limit"
    )
    collectives: str = option(
        ",".join(_DEFAULT),
        "comma list of collectives of jobs/mpi.py, each with flags of that job after a +, less their dashes",
    )
    nodes: int = option(4, "nodes of the local cluster, each with one rank")
    target: float = option(0.88, "test accuracy to which the training is timed", "ACCURACY")
    keep: bool = option(False, "keep the runs in --out that the same command finished before")
    epochs: int = option(4, "passes over the training set")
    out: Path | None = option(
        None, "folder of the runs and the report (default: results/bench_network)", "DIR"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--nodes", self.nodes, 2)
        one_example_a_rank(self.batch_size, self.nodes)
        if not 0 < self.target < 1:
            raise UsageError(f"--target: expected an accuracy between 0 and 1. Got: {self.target:g}")
        for rate in self.rate_list or [""]:
            check_rate("--rates", rate)
        if not self.names:
            raise UsageError(f"--collectives: expected some of {', '.join(COLLECTIVES)}. Got: none")
        for name in self.names:
            flags_of(name)

    @property
    def rate_list(self) -> list[str]:
        """The rates asked for, each once."""
        return _listed(self.rates)

    @property
    def names(self) -> list[str]:
        """The collectives asked for, each once, with what is added to them."""
        return _listed(self.collectives)

    @property
    def out_dir(self) -> Path:
        return self.out if self.out is not None else Path("results/bench_network")


def _listed(text: str) -> list[str]:
    """What stands between commas or blanks, each once."""
    return list(dict.fromkeys(text.replace(",", " ").split()))


def flags_of(name: str) -> list[str]:
    """The flags of ``jobs/mpi.py`` that ``name`` stands for, such as ``plain+every=8``.

    Raises:
        UsageError: there are no such flags, or the job cannot work with them.
    """
    collective, *more = name.split("+")
    flags = ["--collective", collective]
    for setting in more:
        key, _, value = setting.partition("=")
        flags += [f"--{key}", *([value] if value else [])]
    shared = {field.name for field in dataclasses.fields(TrainConfig)}
    for flag in flags[2:]:
        if flag.startswith("--") and flag[2:].replace("-", "_") in shared:
            raise UsageError(
                f"--collectives: {flag} is the same for all runs. Got: {name}",
                remedy=f"{flag} beside --collectives",
            )
    try:
        parse(MpiConfig, flags, description="", prog="python jobs/mpi.py")
    except UsageError as error:
        raise UsageError(f"--collectives: {name}: {error.message}", remedy=error.remedy) from error
    return flags


def plan(config: NetworkConfig, jobs: Path) -> list[Job]:
    """The runs, in order: rate by rate.

    All have the same seed, and each rank its share of this machine's cores, which the nodes have in common.

    Args:
        config: What was asked for.
        jobs: Folder of the strategies' scripts.
    """
    cluster = os.path.relpath(jobs.parent / "slurm/local_cluster.sh")
    threads = config.threads or max(1, num_cores() // config.nodes)
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    planned = []
    for rate in config.rate_list:
        for name in config.names:
            folder = f"{rate}/{name}"
            out = config.out_dir / folder
            training = TrainConfig(**{**shared, "threads": threads, "out": out, "quiet": False})
            ranks = ["srun", f"--nodes={config.nodes}", "--ntasks-per-node=1", "--exclusive"]
            # As slurm/env.sh launches ranks, which end by themselves when one of them does.
            ranks += ["--kill-on-bad-exit=0", "--wait=5", "--export=ALL"]
            words = [*ranks, sys.executable, os.path.relpath(jobs / "mpi.py")]
            words += [*as_flags(training), *flags_of(name)]
            attempt = Attempt(
                strategy=name,
                workers=config.nodes,
                unit="rank",
                repeat=1,
                seed=config.seed,
                folder=folder,
                command=f"{cluster} rate {rate} && {as_typed(words)}",
            )
            planned.append(Job(attempt, f"{rate:<8} {name:<24}", words))
    return planned
