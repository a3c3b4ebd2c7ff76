"""What is looked at on every node before TensorFlow is imported, which takes seconds and half a gigabyte.

A job that cannot work says so at once, with one message, instead of half a minute later, or by being killed.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import numpy as np

from mpi_train import environment
from mpi_train.config import TrainConfig
from mpi_train.data.shards import ShardSet
from mpi_train.errors import PlatformError
from mpi_train.records import Recorder
from mpi_train.world import World

RANK_MIB = 600
"""What a rank takes beside its data: Python, TensorFlow, a small model, MPI (measured: 600 to 640)."""
SKEW_S = 10.0
"""Difference between the clocks of two nodes that makes their logs hard to read together."""


def check(config: TrainConfig, world: World) -> None:
    """Looks at data, output folder, memory, GPUs and clocks; on all ranks together.

    Raises:
        UsageError: the output folder cannot be written from the root's node.
        DataError: a node cannot read the shards' manifest.
        PlatformError: too little memory, or fewer GPUs than ranks.
    """
    with world.together():
        shards = ShardSet.open(config.data_dir, config.dataset)
        shape = shards.manifest.image_shape
        num_bytes = sum(shards.num_examples(split) for split in shards.manifest.splits) * math.prod(shape)
        check_memory(world, RANK_MIB + num_bytes / world.size / 2**20)
        check_gpus(world)
    Recorder(config.out or Path("results"), world).open()
    skew_s = clock_skew_s(world)
    if skew_s > SKEW_S and world.is_root:
        print(f"warning: the nodes' clocks differ by {skew_s:.0f} s: beware when you compare their logs")


def check_memory(world: World, rank_mib: float) -> None:
    """Raises ``PlatformError`` when this node has too little memory for its ranks."""
    free = free_mib()
    needed = rank_mib * world.local_size
    if free < needed:
        raise PlatformError(
            f"expected {needed:,.0f} MiB of free memory for {world.local_size} "
            f"{'rank' if world.local_size == 1 else 'ranks'} on {world.hosts[world.rank]}. "
            f"Received: {free:,.0f} MiB",
            remedy="fewer ranks a node, or more memory: sbatch --mem=...",
        )


def check_gpus(world: World) -> None:
    """Raises ``PlatformError`` when this node has GPUs, but fewer than ranks that share them."""
    count = environment.num_gpus()
    # Where a launcher shows each rank a GPU of its own, each sees one.
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if 0 < count < world.local_size and shown is None:
        raise PlatformError(
            f"expected one GPU a rank. Received: {count} for {world.local_size} ranks on "
            f"{world.hosts[world.rank]}",
            remedy="as many ranks a node as GPUs, or CUDA_VISIBLE_DEVICES= to train on the CPU",
        )


def free_mib() -> float:
    """Memory that this process's node, or its control group, has left."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = float(fields["MemAvailable"].split()[0]) / 1024
    group = Path("/sys/fs/cgroup")
    try:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        limit = (group / own / "memory.max").read_text().strip()
        used = int((group / own / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, (int(limit) - used) / 2**20)


def clock_skew_s(world: World) -> float:
    """Difference between the fastest and the slowest of the nodes' clocks, as far as a barrier can tell."""
    world.barrier()
    now = time.time()
    highest, lowest = world.maxima(np.array([now, -now]))
    return float(highest + lowest)
