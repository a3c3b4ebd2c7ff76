"""Checks of every node before TensorFlow is loaded: a job that cannot work ends at once, with one message."""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from mpi_train.data.shards import ShardSet
from mpi_train.runs.config import TrainConfig
from mpi_train.runs.folder import RunFolder
from mpi_train.runs.record import read_run
from mpi_train.runtime.errors import DataError, PlatformError
from mpi_train.runtime.world import World

RANK_MIB = 600
"""Memory of a rank without its data: Python, TensorFlow, a small model, MPI (measured: 600 to 640 MiB)."""
SKEW_S = 10.0
"""Difference between the clocks of two nodes that makes their logs hard to compare."""


def check(config: TrainConfig, world: World) -> None:
    """Check data, output folder, memory and clocks; on all ranks together.

    Raises:
        UsageError: The root cannot write to the output folder.
        DataError: A node cannot read the manifest of the shards.
        PlatformError: A node has too little memory.
    """
    with world.together():
        shards = ShardSet.open(config.data_dir, config.dataset)
        num_examples = sum(shards.num_examples(split) for split in shards.manifest.splits)
        num_bytes = num_examples * math.prod(shards.manifest.image_shape)
        check_memory(world, RANK_MIB + num_bytes / world.size / 2**20)
    RunFolder(config.out or Path("results"), world).open()
    skew_s = clock_skew_s(world)
    if skew_s > SKEW_S and world.is_root:
        text = f"the clocks of the nodes differ by {skew_s:.0f} s; their logs are hard to compare"
        print(f"warning: {text}", file=sys.stderr, flush=True)


def is_finished(config: TrainConfig, world: World) -> bool:
    """Return True for a Slurm job that was queued again although it had written its record."""
    finished = False
    if world.is_root and config.out is not None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        with suppress(DataError):
            environment = read_run(config.out / "run.json").environment
            finished = environment.get("slurm_job_id") == os.environ.get("SLURM_JOB_ID")
    return world.gather_all(finished)[0]


def check_memory(world: World, rank_mib: float) -> None:
    """Raise ``PlatformError`` if this node has too little memory for its ranks of ``rank_mib`` each."""
    free, needed = free_mib(), rank_mib * world.local_size
    if free < needed:
        ranks = "1 rank" if world.local_size == 1 else f"{world.local_size} ranks"
        raise PlatformError(
            f"expected {needed:,.0f} MiB of free memory for {ranks} on {world.hosts[world.rank]}. "
            f"Got: {free:,.0f} MiB",
            remedy="fewer ranks a node, or more memory: sbatch --mem=...",
        )


def free_mib() -> float:
    """Measure the free memory of this node, or of the control groups of this process if that is less."""
    free = float(_fields(Path("/proc/meminfo"))["MemAvailable:"]) / 1024
    root = Path("/sys/fs/cgroup")
    own = Path()
    with suppress(OSError):
        own = Path(Path("/proc/self/cgroup").read_text().strip().rpartition("::/")[2])
    for group in (root / own, *(root / own).parents[: len(own.parts)]):
        with suppress(OSError, ValueError):  # a limit of "max" is none
            limit = int((group / "memory.max").read_text())
            used = int((group / "memory.current").read_text())
            # Linux frees the cache of files when memory is needed.
            stat = _fields(group / "memory.stat")
            used -= int(stat["inactive_file"]) + int(stat["active_file"])
            free = min(free, (limit - used) / 2**20)
    return free


def _fields(path: Path) -> dict[str, str]:
    """Read the second word of each line, by the first word."""
    return {words[0]: words[1] for words in map(str.split, path.read_text().splitlines()) if len(words) > 1}


def clock_skew_s(world: World) -> float:
    """Measure the difference between the fastest and the slowest clock, to the precision of a barrier."""
    world.barrier()
    return float(world.maxima(np.array([1, -1]) * time.time()).sum())
