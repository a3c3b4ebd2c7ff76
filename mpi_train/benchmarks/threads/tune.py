"""How many TensorFlow threads make a rank's step the fastest: each number is tried by a process of its own.

TensorFlow takes up its threads once, when it starts. So this comes before, and a child process for each
number times some steps on the cores that the rank has; MPI is not known to it. All ranks try the
same number at once, as they share memory and power in the run too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from mpi_train.collectives.clearly import clearly_fastest
from mpi_train.data.shards import ShardSet
from mpi_train.monitor.progress import Progress
from mpi_train.runtime.errors import PlatformError
from mpi_train.runtime.world import World
from mpi_train.strategies.mpi.config import MpiConfig

MAX_TRIED = 4
_LIMIT_S = 120
_LAUNCHERS = ("PMI", "PMIX", "OMPI", "HYDRA", "MPI_", "SLURM")


def candidates(most: int) -> list[int]:
    """Numbers of threads to try on ``most`` cores: all of them, half, a quarter, ..."""
    return [count for power in range(MAX_TRIED) if (count := most >> power)]


def tuned_threads(config: MpiConfig, world: World, most: int) -> int:
    """The number of threads with the shortest step, on the slowest rank; on all ranks together.

    Args:
        config: What is trained.
        world: The ranks.
        most: What this rank would take without measuring.

    Raises:
        DataError: the shards cannot be read; on all ranks.
        PlatformError: a step could not be timed; on all ranks.
    """
    say = Progress(speaks=world.is_root, style=config.style).say
    with world.together():
        shape = ShardSet.open(config.data_dir, config.dataset).manifest.image_shape
    tried = candidates(min(world.gather_all(most)))
    if len(tried) == 1:
        say(f"autotune: {tried[0]} thread a rank, as there is no core for more")
        return tried[0]
    batch_size = -(-config.batch_size // world.size)
    step_s: dict[int, float] = {}
    for threads in tried:
        mine = float("nan")
        with world.together():
            mine = _step_s(config, batch_size, threads, shape)
        step_s[threads] = world.maximum(mine)
    best = clearly_fastest(step_s)
    times = ", ".join(f"{threads}: {1e3 * seconds:.2f} ms" for threads, seconds in step_s.items())
    say(f"autotune: a step on one rank by its number of threads: {times}; {best} it is")
    return best


def _step_s(config: MpiConfig, batch_size: int, threads: int, image_shape: Sequence[int]) -> float:
    words = [
        sys.executable, "-m", "mpi_train.benchmarks.threads.one_step", "--model", config.model,
        "--batch-size", str(batch_size), "--dtype", config.dtype,
        "--image-shape", *map(str, (*image_shape, 1)[:3]),
    ]  # fmt: skip
    environ = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHERS)}
    counts = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    environ |= dict.fromkeys(counts, str(threads)) | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(
            words, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_S
        )
        if done.returncode == 0:
            return float(done.stdout.splitlines()[-1])  # the user's own model may print, too
        problem = " ".join(done.stderr.strip().splitlines()[-1:])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        problem = str(error)
    raise PlatformError(
        f"--autotune: a step with {threads} {'thread' if threads == 1 else 'threads'} could not be timed: "
        f"{problem}",
        remedy="--threads with a number, which is then not tuned",
    )
