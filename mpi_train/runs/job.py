"""The frame of every command: join the ranks, read the flags, explain errors, exit with a code."""

from __future__ import annotations

import io
import pkgutil
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from typing import NoReturn

from mpi_train.monitor.progress import Progress
from mpi_train.runs import coordinator, preflight
from mpi_train.runs.config import JobConfig, RanksConfig, TrainConfig
from mpi_train.runtime import devices, launch, watchdog
from mpi_train.runtime import world as worlds
from mpi_train.runtime.errors import JobError
from mpi_train.runtime.flags import Config, parse


def read_flags(kind: type[Config], argv: Sequence[str] | None = None, *, text: str, prog: str) -> Config:
    """Read a ``kind`` from the flags ``argv`` as ``parse`` does; only one rank prints the help."""
    with nullcontext() if worlds.speaks() else redirect_stdout(io.StringIO()):
        return parse(kind, argv, description=text, prog=prog)


def run_job(
    name: str,
    kind: type[JobConfig],
    function: str,
    *,
    text: str,
    mpi: bool = False,
    argv: Sequence[str] | None = None,
) -> None:
    """Run a job that needs TensorFlow.

    Args:
        name, kind, text: Name of the command, dataclass of its options, description for ``--help``.
        function: Function ``module:name`` that does the work, called with the config, the world and the
            number of threads. A string, because its module imports TensorFlow, which must wait.
        mpi: True if it runs as ranks of an MPI world, False if it is one process.
        argv: Flags; those of the process if None.
    """
    world = worlds.join() if mpi else worlds.alone(job=name)
    config = read_flags(kind, argv, text=text, prog=launch.typed(name))
    if isinstance(config, TrainConfig):
        coordinator.listen()
        if isinstance(config, RanksConfig):
            watchdog.start(world, config.stall_timeout)
        if preflight.is_finished(config, world):
            ended = f"this job had finished before it was requeued: {config.out}/run.json"
            Progress(speaks=world.is_root, style=config.style).say(ended)
            return
        preflight.check(config, world)
    threads = devices.claim_cores(world, config.threads)
    # TensorFlow reads the number of threads when it is imported, so it is imported after that is set.
    with devices.quiet_start(), devices.lean_imports(), world.together():
        run = pkgutil.resolve_name(function)
    run(config, world, threads)


def guarded(work: Callable[[], None]) -> NoReturn:
    """Run ``work`` and exit with 0, or with the code of the ``JobError`` it raised, printed by one rank.

    Every rank that arrives here with an error exits with its code. Errors that only one rank can see were
    raised on all ranks before, by ``World.together``.
    """
    try:
        work()
    except JobError as error:
        if worlds.speaks():
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
