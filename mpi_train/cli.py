"""What every job script does around its work: join the ranks, read the flags, explain, exit with a code."""

from __future__ import annotations

import io
import pkgutil
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from typing import NoReturn

from mpi_train.benchmarks.threads.tune import tuned_threads
from mpi_train.monitor.progress import Progress
from mpi_train.runs import coordinator, preflight
from mpi_train.runs.config import JobConfig, MpiConfig, TrainConfig, WatchedConfig, parse
from mpi_train.runtime import devices, watchdog
from mpi_train.runtime import world as worlds
from mpi_train.runtime.errors import EXIT_DONE, JobError


def run_training(
    job: str, kind: type[TrainConfig | WatchedConfig], *, description: str, mpi: bool = False
) -> NoReturn:
    """Runs the strategy of the job's name and exits; arguments as for ``run_job``."""
    place = {"federated": "federated.train", "pipeline": "pipeline.train", "ddp": "pytorch.train"}.get(
        job, job
    )
    run_job(job, kind, f"mpi_train.strategies.{place}:train", description=description, mpi=mpi)


def run_job(
    job: str, kind: type[JobConfig], function: str, *, description: str, mpi: bool = False
) -> NoReturn:
    """Runs a job that needs TensorFlow and exits.

    Args:
        job: Name of the script.
        kind: Its configuration.
        function: What does its work, as ``module:name``, called with the config, the world and the
            number of threads. A name, as its module imports TensorFlow, which must wait.
        description: For ``--help``.
        mpi: Whether it runs as ranks of an MPI world, or as one process.
    """

    def work() -> None:
        world = worlds.join() if mpi else worlds.alone(job=job)
        # --help prints; one rank speaks.
        with nullcontext() if world.is_root else redirect_stdout(io.StringIO()):
            config = parse(kind, description=description, prog=f"python jobs/{job}.py")
        if isinstance(config, TrainConfig | WatchedConfig):
            coordinator.listen()
        if isinstance(config, WatchedConfig):
            watchdog.start(world, config.stall_timeout)
        if isinstance(config, TrainConfig):
            if preflight.is_finished(config, world):
                ended = f"this job had come to its end before it was queued again: {config.out}/run.json"
                Progress(speaks=world.is_root, style=config.style).say(ended)
                return
            preflight.check(config, world)
        share = devices.claim_cores(world, config.threads)
        if isinstance(config, MpiConfig) and config.autotune and config.threads is None:
            share = devices.claim_cores(world, tuned_threads(config, world, share.threads))
        # Imported last: it imports TensorFlow, which reads the number of threads then.
        with devices.quiet_start(), devices.lean_imports(), world.together():
            run = pkgutil.resolve_name(function)
        run(config, world, share.threads)

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
