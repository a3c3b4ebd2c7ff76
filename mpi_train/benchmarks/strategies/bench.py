"""What a bench runs: its flags, and the list of runs that they come to."""

from __future__ import annotations

import dataclasses
import difflib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpi_train.report.collect import Attempt
from mpi_train.report.summary import sized
from mpi_train.runs.config import TrainConfig
from mpi_train.runtime import launch, machine
from mpi_train.runtime.errors import PlatformError, UsageError
from mpi_train.runtime.flags import as_flags, at_least, option


@dataclass(frozen=True)
class Launch:
    """How a strategy's script is started: on one process, or on ``unit``s whose number is given.

    A ``peer`` is of another framework, and runs in the environment that ``make peers`` makes.
    """

    script: str
    unit: str
    flags: tuple[str, ...] = ()
    peer: bool = False


STRATEGIES = {
    "baseline": Launch("baseline.py", "process"),
    "tuned": Launch("baseline.py", "process", ("--tuned",)),
    "mpi": Launch("mpi.py", "rank"),
    "mirrored": Launch("mirrored.py", "device"),
    "custom": Launch("custom.py", "device"),
    "custom_dataset": Launch("custom_dataset.py", "device"),
    "multiworker": Launch("multiworker.py", "rank"),
    "tpu": Launch("tpu.py", "process"),
    "pipeline": Launch("pipeline.py", "rank"),
    "federated": Launch("federated.py", "rank"),
    "ddp": Launch("ddp.py", "rank", peer=True),
}


@dataclass(frozen=True, kw_only=True)
class RunsConfig(TrainConfig):
    """What every bench takes: the training flags, which go to each of its runs."""

    resume: str = option("never", "never: a run that went on from a checkpoint could not be compared", "HOW")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume != "never":
            raise UsageError(f"--resume: a bench begins each run anew. Got: --resume {self.resume}")
        if self.trace:
            raise UsageError(
                "--trace: a bench times runs as they are without it",
                remedy="one job alone, such as make mpi ARGS=--trace",
            )
        if self.json:
            raise UsageError(
                "--json: a bench shows its runs itself. Got: --json",
                remedy="leave it out: the figures are in the run.json of each run",
            )


@dataclass(frozen=True, kw_only=True)
class BenchConfig(RunsConfig):
    """What ``jobs/bench.py`` takes beyond that."""

    strategies: str = option("all", f"comma list of {', '.join(STRATEGIES)}; or all")
    np: int | None = option(None, "ranks, or devices of one process (default: cores, 2 to 4)")
    repeats: int = option(3, "runs of each strategy; repeat k trains with seed SEED + k - 1")
    out: Path | None = option(None, "folder of the runs and the report (default: results/bench)", "DIR")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--repeats", self.repeats, 1)
        at_least("--np", self.num_workers, 1)
        if not self.names:
            raise UsageError(f"--strategies: expected some of {', '.join(STRATEGIES)}. Got: none")
        for name in self.names:
            if name not in STRATEGIES:
                near = difflib.get_close_matches(name, STRATEGIES, n=3)
                raise UsageError(
                    f"--strategies: expected some of {', '.join(STRATEGIES)}. Got: {name}."
                    + (f" Did you mean {' or '.join(near)}?" if near else "")
                )

    @property
    def names(self) -> list[str]:
        """The strategies asked for, each once."""
        if self.strategies == "all":
            return list(STRATEGIES)
        return list(dict.fromkeys(name.strip() for name in self.strategies.split(",") if name.strip()))

    @property
    def num_workers(self) -> int:
        if self.np is not None:
            return self.np
        # MirroredStrategy wants even parts of the batch.
        limit = machine.num_gpus() or max(2, num_cores())
        fitting = [count for count in (4, 3, 2) if count <= limit and self.batch_size % count == 0]
        return next(iter(fitting), 1)

    @property
    def out_dir(self) -> Path:
        return self.out if self.out is not None else Path("results/bench")


def peers_python(jobs: Path) -> Path:
    """The interpreter of the peers, in the clone that has the folder ``jobs``; it need not be there."""
    return jobs.parent / ".venv-peers/bin/python"


def available(config: BenchConfig, jobs: Path, say: Callable[[str], None]) -> BenchConfig:
    """The bench without what ``all`` would include, but this machine lacks; that is said.

    Args:
        config: What was asked for.
        jobs: Folder of the strategies' scripts.
        say: Takes a line for each strategy that is left out.

    Raises:
        PlatformError: one of them was asked for by name.
    """
    # The last thing that make peers writes.
    if not (peers_python(jobs).parents[1] / "installed").exists():
        why = "PyTorch is not installed (make peers)"
    elif machine.num_gpus():
        why = "it trains on CPUs, and the others on this machine's GPUs"
    else:
        return config
    lacking = [name for name in config.names if STRATEGIES[name].peer]
    if lacking and config.strategies != "all":
        raise PlatformError(f"--strategies: {', '.join(lacking)} cannot be compared here: {why}")
    for name in lacking:
        say(f"{name} is left out: {why}")
    kept = [name for name in config.names if name not in lacking]
    return dataclasses.replace(config, strategies=",".join(kept))


@dataclass(frozen=True)
class Job:
    """A run to make: its entry in ``bench.json``, its name on the terminal, and the words that start it.

    One whose attempt has ended is not made again.
    """

    attempt: Attempt
    label: str
    words: list[str]


def plan(config: BenchConfig, jobs: Path, num_shards: int = sys.maxsize) -> list[Job]:
    """The runs of a bench, in order; of data in ``num_shards``, which are the clients of ``federated``.

    Each repeat ends with the reference that parallel efficiency is counted against: the suite's own
    loop on one rank, with as many threads as each of the ``num_workers`` ranks has.
    """
    num_workers = config.num_workers
    planned = []
    for repeat in range(1, config.repeats + 1):
        for name in config.names:
            unit = STRATEGIES[name].unit
            workers = 1 if unit == "process" else num_workers
            if name == "federated":
                workers = min(workers, num_shards)
            planned.append(_job(config, jobs, name, workers=workers, repeat=repeat, folder=name))
        if num_workers > 1 and any(STRATEGIES[name].unit != "process" for name in config.names):
            threads = config.threads or max(1, num_cores() // num_workers)
            alone = dataclasses.replace(config, threads=threads)
            planned.append(_job(alone, jobs, "mpi", workers=1, repeat=repeat, folder="reference"))
    return planned


def _job(config: BenchConfig, jobs: Path, name: str, *, workers: int, repeat: int, folder: str) -> Job:
    place = f"{folder}/{repeat}"
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    # How the bench prints is not how its runs do, whose logs are read when one fails.
    seed = config.seed + repeat - 1
    flags = as_flags(TrainConfig(**{**shared, "seed": seed, "out": config.out_dir / place, "quiet": False}))
    flags += STRATEGIES[name].flags
    script, unit = os.path.relpath(jobs / STRATEGIES[name].script), STRATEGIES[name].unit
    python = os.path.relpath(peers_python(jobs)) if STRATEGIES[name].peer else sys.executable
    words = [python, script, *flags]
    if unit == "rank":
        words = launch.mpiexec(workers, words)
    elif unit == "device":
        words += ["--devices", str(workers)]
    return Job(
        Attempt(
            strategy=name,
            workers=workers,
            unit=unit,
            repeat=repeat,
            seed=seed,
            folder=place,
            command=as_typed(words),
        ),
        f"{name:<10} {sized(workers, unit):<10} seed {seed}",
        words,
    )


def as_typed(words: Sequence[str]) -> str:
    """``words`` as a user types them in an activated environment."""
    short = {sys.executable: "python"}
    if Path(words[0]).name == "mpiexec":
        short[words[0]] = "mpiexec"
    return shlex.join(short.get(word, word) for word in words)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
