"""Command table: ``python -m mpi_train NAME ...`` and ``python jobs/NAME.py ...`` are the same command."""

from __future__ import annotations

import difflib
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from mpi_train.benchmarks.config import BenchStepConfig, ScalingConfig
from mpi_train.runs.config import JobConfig
from mpi_train.runs.job import guarded, run_job
from mpi_train.runtime import world as worlds
from mpi_train.runtime.errors import UsageError
from mpi_train.strategies import registry


@dataclass(frozen=True)
class Command:
    """A command that is not a strategy.

    Attributes:
        text: One line of help.
        function: Function ``module:name``. Without a ``config`` it is called with the flags.
        config: Dataclass of the options of a measurement that runs as MPI ranks with TensorFlow; the function
            is then called with it, the world and the number of threads.
    """

    text: str
    function: str
    config: type[JobConfig] | None = None


COMMANDS: dict[str, Command] = {
    "prepare_data": Command("cut a data set into HDF5 shards", "mpi_train.data.prepare:main"),
    "bench": Command("run the strategies in turn and compare them", "mpi_train.benchmarks.bench:main"),
    "bench_step": Command(
        "take one training step apart", "mpi_train.benchmarks.step.measure:measure", BenchStepConfig
    ),
    "bench_network": Command("compare collectives on slow links", "mpi_train.benchmarks.network.bench:main"),
    "scaling": Command(
        "measure steps on 1, 2, 4, ... ranks", "mpi_train.benchmarks.scaling.measure:measure", ScalingConfig
    ),
    "plan": Command("predict training on more nodes, and advise", "mpi_train.benchmarks.scaling.plan:main"),
    "report": Command("write the report of finished runs", "mpi_train.report.command:main"),
    "watch": Command("show runs while they train", "mpi_train.monitor.watch_table:main"),
    "doctor": Command("check what this machine has and lacks", "mpi_train.cluster.doctor:main"),
    "submit": Command("submit a command to Slurm", "mpi_train.cluster.submit:main"),
}


def main(name: str | None = None, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its code.

    Args:
        name: Name of the command; the first word of the command line if None.
        argv: Flags of the command; the rest of the command line if None.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if name is None:
        name, words = (words[0], words[1:]) if words else ("--help", [])
    guarded(partial(_run, name, words))


def _run(name: str, argv: Sequence[str]) -> None:
    commands = _commands(argv)
    if name in ("--help", "-h"):
        if worlds.speaks():
            print(_help())
    elif name in commands:
        commands[name]()
    else:
        near = difflib.get_close_matches(name, commands, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"expected a command. Got: {name}.{hint}", remedy="python -m mpi_train --help")


def _commands(argv: Sequence[str]) -> Mapping[str, Callable[[], None]]:
    """Return a function that runs each command with the flags ``argv``, by the name of the command."""
    strategies = {
        name: partial(
            run_job,
            name,
            strategy.config,
            strategy.train,
            text=strategy.text,
            mpi=strategy.unit == "rank",
            argv=argv,
        )
        for name, strategy in registry.commands().items()
    }
    return {**strategies, **{name: partial(_run_command, name, argv) for name in COMMANDS}}


def _run_command(name: str, argv: Sequence[str]) -> None:
    command = COMMANDS[name]
    if command.config is None:
        pkgutil.resolve_name(command.function)(argv)
    else:
        run_job(name, command.config, command.function, text=command.text, mpi=True, argv=argv)


def _help() -> str:
    strategies = {name: strategy.text for name, strategy in registry.commands().items()}
    others = {name: command.text for name, command in COMMANDS.items()}

    def listed(texts: Mapping[str, str]) -> str:
        return "\n".join(f"  {name:<16}{text}" for name, text in texts.items())

    return (
        f"usage: python -m mpi_train COMMAND [flags]; COMMAND --help lists its flags\n\n"
        f"training:\n{listed(strategies)}\n\nother commands:\n{listed(others)}"
    )
