"""What every job script does around its work: join the ranks, read the flags, explain, exit with a code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

from mpi_train import world as worlds
from mpi_train.config import TrainConfig, parse
from mpi_train.errors import EXIT_DONE, JobError
from mpi_train.world import World

Config = TypeVar("Config", bound=TrainConfig)


def run_training(
    kind: type[Config], train: Callable[[Config, World], object], *, job: str, description: str, mpi: bool
) -> NoReturn:
    """Runs a training job and exits.

    Args:
        kind: Its configuration.
        train: The strategy: configuration and world in, everything else written to ``--out``.
        job: Name of the script, without ``.py``.
        description: For ``--help``.
        mpi: Whether it runs as ranks of an MPI world, or as one process.
    """
    guarded(lambda: _run(kind, train, job=job, description=description, mpi=mpi))


def _run(
    kind: type[Config], train: Callable[[Config, World], object], *, job: str, description: str, mpi: bool
) -> None:
    world = worlds.join() if mpi else worlds.alone(job=job)
    if not world.is_root:
        # --help prints before anything can be agreed on; one rank speaks.
        sys.stdout = open(os.devnull, "w")
    config = parse(kind, description=description, prog=f"python jobs/{job}.py")
    train(config, world)


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
