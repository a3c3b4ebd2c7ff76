"""What is looked at on every node before TensorFlow is imported, which takes seconds and half a gigabyte.

A job that cannot work says so at once, with one message, instead of half a minute later, or by being killed.
"""

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
"""What a rank takes beside its data: Python, TensorFlow, a small model, MPI (measured: 600 to 640)."""
SKEW_S = 10.0
"""Difference between the clocks of two nodes that makes their logs hard to read together."""


def check(config: TrainConfig, world: World) -> None:
    """Looks at data, output folder, memory and clocks; on all ranks together.

    Raises:
        UsageError: the output folder cannot be written from the root's node.
        DataError: a node cannot read the shards' manifest.
        PlatformError: too little memory.
    """
    with world.together():
        shards = ShardSet.open(config.data_dir, config.dataset)
        shape = shards.manifest.image_shape
        num_bytes = sum(shards.num_examples(split) for split in shards.manifest.splits) * math.prod(shape)
        check_memory(world, RANK_MIB + num_bytes / world.size / 2**20)
    RunFolder(config.out or Path("results"), world).open()
    skew_s = clock_skew_s(world)
    if skew_s > SKEW_S and world.is_root:
        warning = f"warning: the nodes' clocks differ by {skew_s:.0f} s: beware when you compare their logs"
        print(warning, file=sys.stderr, flush=True)


def is_finished(config: TrainConfig, world: World) -> bool:
    """Whether this is a Slurm job that was queued again after it had written its record."""
    job = os.environ.get("SLURM_JOB_ID")
    finished = False
    if world.is_root and config.out is not None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        with suppress(DataError):
            finished = read_run(config.out / "run.json").environment.get("slurm_job_id") == job
    return world.gather_all(finished)[0]


def check_memory(world: World, rank_mib: float) -> None:
    """Raises ``PlatformError`` when this node has too little memory for its ranks."""
    free = free_mib()
    needed = rank_mib * world.local_size
    if free < needed:
        raise PlatformError(
            f"expected {needed:,.0f} MiB of free memory for {world.local_size} "
            f"{'rank' if world.local_size == 1 else 'ranks'} on {world.hosts[world.rank]}. "
            f"Got: {free:,.0f} MiB",
            remedy="fewer ranks a node, or more memory: sbatch --mem=...",
        )


def free_mib() -> float:
    """Memory that this process's node, or the control group of its job, has left."""
    free = float(_fields(Path("/proc/meminfo"))["MemAvailable:"]) / 1024
    root = Path("/sys/fs/cgroup")
    try:
        own = root / Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
    except OSError:
        return free
    for group in (own, *own.parents):
        if not group.is_relative_to(root):
            break
        try:
            limit = int((group / "memory.max").read_text())  # "max" where there is none
            stat = _fields(group / "memory.stat")
            used = int((group / "memory.current").read_text())
        except (OSError, ValueError):
            continue
        # What files have left in memory is given back when it is needed.
        used -= int(stat["inactive_file"]) + int(stat["active_file"])
        free = min(free, (limit - used) / 2**20)
    return free


def _fields(path: Path) -> dict[str, str]:
    """The second word of each line, by the first."""
    return {words[0]: words[1] for words in map(str.split, path.read_text().splitlines()) if len(words) > 1}


def clock_skew_s(world: World) -> float:
    """Difference between the fastest and the slowest of the nodes' clocks, as far as a barrier can tell."""
    world.barrier()
    now = time.time()
    highest, lowest = world.maxima(np.array([now, -now]))
    return float(highest + lowest)
