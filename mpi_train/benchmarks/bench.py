"""Bench of strategies: each in a process of its own, in turn (A B C A B C), then the report.

Repeats take turns so that a machine that grows warm or busy slows all strategies alike.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpi_train.benchmarks import output
from mpi_train.benchmarks.config import words_of
from mpi_train.benchmarks.series import Job, Series, as_typed, num_cores
from mpi_train.data.shards import ShardSet
from mpi_train.report import pages, tables, text
from mpi_train.report.collect import Attempt
from mpi_train.report.summary import Summary
from mpi_train.runs.config import TrainConfig
from mpi_train.runtime import launch, machine
from mpi_train.runtime import world as worlds
from mpi_train.runtime.errors import PlatformError, UsageError
from mpi_train.runtime.flags import as_flags, at_least, option, parse
from mpi_train.strategies.registry import STRATEGIES, Strategy


@dataclass(frozen=True, kw_only=True)
class RunsConfig(TrainConfig):
    """Options of every bench: the training flags, which apply to each run."""

    resume: str = option("never", "never: a resumed run cannot be compared with the others", "HOW")

    def __post_init__(self) -> None:
        super().__post_init__()
        refused = {
            "resume": (self.resume != "never", "a bench starts each run anew"),
            "trace": (self.trace, "a bench measures runs without a timeline"),
            "json": (self.json, "a bench shows its runs itself; the figures are in the run.json of each run"),
        }
        for name, (given, reason) in refused.items():
            if given:
                raise UsageError(f"--{name}: {reason}. Got: {getattr(self, name)}", remedy="leave it out")

    def flags_of_run(self, **changes: object) -> list[str]:
        """Return the training flags of one run, with ``changes`` to some of them."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(TrainConfig)}
        # --quiet applies to the bench only: the log of a run is read when the run fails.
        return as_flags(TrainConfig(**{**shared, "quiet": False, **changes}))


@dataclass(frozen=True, kw_only=True)
class BenchConfig(RunsConfig):
    """Options of ``jobs/bench.py``."""

    strategies: str = option("all", lambda: f"comma list of {', '.join(STRATEGIES)}; or all")
    np: int | None = option(None, "ranks, or devices of one process (default: cores, 2 to 4)")
    repeats: int = option(3, "runs of each strategy; repeat k trains with seed SEED + k - 1")
    out: Path = option(Path("results/bench"), "folder of the runs and the report", "DIR")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--repeats", self.repeats, 1)
        at_least("--np", self.num_workers, 1)
        for name in self.names or ["none"]:
            if name not in STRATEGIES:
                near = difflib.get_close_matches(name, STRATEGIES, n=3)
                hint = f". Did you mean {' or '.join(near)}?" if near else ""
                raise UsageError(f"--strategies: expected some of {', '.join(STRATEGIES)}. Got: {name}{hint}")

    @property
    def names(self) -> list[str]:
        if self.strategies == "all":
            return [name for name, strategy in STRATEGIES.items() if strategy.bench]
        return words_of(self.strategies)

    @property
    def num_workers(self) -> int:
        if self.np is not None:
            return self.np
        # MirroredStrategy needs a batch that divides evenly.
        limit = machine.num_gpus() or max(2, num_cores())
        return next((n for n in (4, 3, 2) if n <= limit and self.batch_size % n == 0), 1)


def available(config: BenchConfig, say: Callable[[str], None]) -> BenchConfig:
    """Return the bench without strategies that cannot be compared here, and ``say`` why.

    Raises ``PlatformError`` if such a strategy was named in ``--strategies``.
    """
    kept = []
    for name in config.names:
        environment = STRATEGIES[name].environment
        # make peers writes this file last.
        if environment == ".venv":
            why = ""
        elif not (launch.CLONE / environment / "installed").exists():
            why = "PyTorch is not installed (make peers)"
        else:
            why = "it trains on CPUs, and the others on this machine's GPUs" if machine.num_gpus() else ""
        if not why:
            kept.append(name)
        elif config.strategies != "all":
            raise PlatformError(f"--strategies: {name} cannot be compared here: {why}")
        else:
            say(f"{name} is left out: {why}")
    return config if kept == config.names else dataclasses.replace(config, strategies=",".join(kept))


def plan(config: BenchConfig, num_shards: int = sys.maxsize) -> list[Job]:
    """List the runs of a bench in order; the clients of ``federated`` are the ``num_shards`` of the data set.

    Each repeat ends with the reference for parallel efficiency: the mpi strategy on one rank, with as many
    threads as each of the ``num_workers`` ranks has.
    """
    num_workers = config.num_workers
    alone = dataclasses.replace(config, threads=config.threads or max(1, num_cores() // num_workers))
    chosen = [STRATEGIES[name] for name in config.names]
    has_reference = num_workers > 1 and any(strategy.unit != "process" for strategy in chosen)
    planned = []
    for repeat in range(1, config.repeats + 1):
        for strategy in chosen:
            workers = 1 if strategy.unit == "process" else num_workers
            if strategy.name == "federated":
                workers = min(workers, num_shards)
            planned.append(_job(config, strategy, workers, repeat, strategy.name))
        if has_reference:
            planned.append(_job(alone, STRATEGIES["mpi"], 1, repeat, "reference"))
    return planned


def _job(config: BenchConfig, strategy: Strategy, workers: int, repeat: int, name: str) -> Job:
    folder, seed, unit = f"{name}/{repeat}", config.seed + repeat - 1, strategy.unit
    own = os.path.relpath(launch.CLONE / strategy.environment / "bin/python")
    words = launch.command(strategy.job, sys.executable if strategy.environment == ".venv" else own)
    words += [*config.flags_of_run(seed=seed, out=config.out / folder), *strategy.flags]
    if unit == "rank":
        words = launch.mpiexec(workers, words)
    elif unit == "device":
        words += ["--devices", str(workers)]
    attempt = Attempt(
        strategy=strategy.name, workers=workers, unit=unit, repeat=repeat, seed=seed, folder=folder,
        command=as_typed(words),
    )  # fmt: skip
    return Job(attempt, words)


class Bench(Series):
    """Bench of strategies in progress."""

    def report(self) -> list[Summary]:
        """Write and show the report."""
        summaries = super().report()
        # All runs of a bench do the same work, unless one was rolled back and has another learning rate.
        for summary in summaries:
            output.show(self.console, [tables.comparison(summary, text.title(summary))])
            readings = (text.reading(row, summary) for row in summary.rows)
            self.console.print(*filter(None, (text.caution(summary), *readings)), sep="\n")
        self.console.print(f"report: {self.out / pages.PAGE}, and {self.out / pages.TEXT}")
        return summaries


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``jobs/bench.py`` with the flags ``argv``, or those of the process if None.

    Raises ``UsageError``, ``DataError`` without shards, ``PlatformError``, and as ``Series.run``.
    """
    worlds.alone(job="bench")
    config = parse(BenchConfig, argv, description="Compare the strategies.", prog=launch.typed("bench"))
    # Every run would find the same fault in the data; here it is reported once.
    shards = ShardSet.open(config.data_dir, config.dataset)
    console = output.console(quiet=config.quiet)
    config = available(config, console.print)
    planned = plan(config, num_shards=len(shards.manifest.splits["train"].files))
    console.print(
        f"bench: {config.model} on {config.dataset}, global batch {config.batch_size}, "
        f"epochs {config.epochs}, {config.dtype}; {', '.join(config.names)}; repeats {config.repeats}; "
        f"{config.num_workers} ranks or devices, {num_cores()} cores; results in {config.out}"
    )
    Bench(config.out, planned, console).run()
