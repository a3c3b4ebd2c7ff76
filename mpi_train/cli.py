"""What every job script does around its work: join the ranks, read the flags, explain, exit with a code."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from typing import NoReturn

from mpi_train import devices
from mpi_train import world as worlds
from mpi_train.config import TrainConfig, parse
from mpi_train.errors import EXIT_DONE, JobError


def run_training(job: str, kind: type[TrainConfig], *, description: str, mpi: bool = False) -> NoReturn:
    """Runs a training job and exits.

    Args:
        job: Name of the script and of the module in ``mpi_train.strategies``.
        kind: Its configuration.
        description: For ``--help``.
        mpi: Whether it runs as ranks of an MPI world, or as one process.
    """

    def work() -> None:
        world = worlds.join() if mpi else worlds.alone(job=job)
        # --help prints; one rank speaks.
        with nullcontext() if world.is_root else redirect_stdout(io.StringIO()):
            config = parse(kind, description=description, prog=f"python jobs/{job}.py")
        share = devices.claim_cores(world, config.threads)
        # Imported last: it imports TensorFlow, which reads the number of threads then.
        with devices.quiet_start():
            strategy = importlib.import_module(f"mpi_train.strategies.{job}")
        strategy.train(config, world, share.threads)

    guarded(work)


def guarded(work: Callable[[], None]) -> NoReturn:
    """Runs ``work`` and exits: 0, or the code of the ``JobError`` it raised, explained by one rank.

    Every rank that gets here with an error exits with its code; errors that only one rank can see
    were made common before, by ``World.together``.
    """
    try:
        work()
    except JobError as error:
        if worlds.speaks():
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(EXIT_DONE)
