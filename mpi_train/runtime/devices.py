"""Cores, threads and GPUs of this process, settled before TensorFlow starts.

TensorFlow takes every core it can see, on every rank; four ranks on a node then fight over the same
cores. So each rank takes its share of them, and tells TensorFlow through its environment variables,
which are read when it is first imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpi_train.runtime.errors import PlatformError
from mpi_train.runtime.world import World

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class CpuShare:
    """What one rank may use of its node.

    Attributes:
        cores: Core numbers this rank is bound to, or may float over.
        threads: TensorFlow threads; at most ``len(cores)`` unless the user asked for more.
    """

    cores: tuple[int, ...]
    threads: int


def share_of(masks: Sequence[frozenset[int]], local_rank: int) -> tuple[int, ...]:
    """The cores of one rank, given the affinity masks of all ranks on its node.

    A launcher that binds gives every rank a mask of its own, which is kept. Ranks whose masks
    overlap divide them evenly, in rank order; where there are more ranks than cores, they stay shared.
    """
    mine = masks[local_rank]
    sharers = [rank for rank, mask in enumerate(masks) if mask & mine]
    cores = sorted(mine)
    if len(sharers) > len(cores):
        return tuple(cores)
    width = len(cores) // len(sharers)
    first = sharers.index(local_rank) * width
    return tuple(cores[first : first + width])


def claim_cores(world: World, threads: int | None) -> CpuShare:
    """Binds this rank to its share of the node's cores and sets TensorFlow's threads to match.

    To be called before TensorFlow is imported.

    Args:
        world: The ranks; those on one node share its cores.
        threads: Threads to use instead of one for each core of the share.
    """
    everyone = world.gather_all((world.hosts[world.rank], frozenset(os.sched_getaffinity(0))))
    local = [mask for host, mask in everyone if host == world.hosts[world.rank]]
    cores = share_of(local, world.local_rank)
    if world.local_size > 1:
        os.sched_setaffinity(0, cores)
    oversubscribed = world.local_size > len(set().union(*local))
    count = threads or (1 if oversubscribed else len(cores))
    for variable in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[variable] = str(count)
    return CpuShare(cores, count)


@contextmanager
def quiet_start() -> Iterator[None]:
    """Keeps what TensorFlow says about its own build, on every rank, out of the log.

    No setting reaches these lines: they are written before its logging starts, once at the import and
    once at the first operation. They go through a process that drops them and lives on until it has
    passed on all the rest, so that the last words of a crash are not lost.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    stderr = os.dup(2)
    noise = "^(WARNING: All log messages before absl|I[0-9]{4} |To enable the following instructions)"
    with subprocess.Popen(["grep", "-vE", noise], stdin=subprocess.PIPE, stdout=stderr) as passes_on:
        assert passes_on.stdin is not None
        os.dup2(passes_on.stdin.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)


@contextmanager
def lean_imports() -> Iterator[None]:
    """Keeps Keras from importing matplotlib, with which it draws galleries of images where it finds it.

    A fifth of what it takes to import Keras with TensorFlow, and 160 modules for each rank to find.
    """
    if "matplotlib" in sys.modules:
        yield
        return
    sys.modules["matplotlib"] = None  # type: ignore[assignment]  # an import of it fails, as if there were none
    try:
        yield
    finally:
        del sys.modules["matplotlib"]


def start_tensorflow() -> None:
    """Makes TensorFlow take up the devices as they are set now. They cannot be changed after this."""
    import tensorflow as tf

    with quiet_start():
        tf.zeros(1)


def run_two_at_once() -> None:
    """Has TensorFlow run two operations of a graph at once, though it has a single core.

    On one thread it follows a chain of operations to its end, and only then comes to what else became ready
    on the way. To be called before it takes up its devices.
    """
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(2)


def own_device(world: World, *, start: bool = True) -> str:
    """The device this rank computes on: the GPU of its local rank, or the CPU.

    Args:
        world: The ranks.
        start: Whether TensorFlow takes up its devices now, which some strategies want to do themselves.

    Raises:
        PlatformError: there are GPUs, but fewer than ranks on this node.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    # A launcher such as Slurm's may show each rank a GPU of its own; otherwise ranks that see the same
    # ones take them in rank order.
    seen = world.gather_all((world.hosts[world.rank], os.environ.get("CUDA_VISIBLE_DEVICES")))
    if not gpus:
        if start:
            start_tensorflow()
        return "/CPU:0"
    sharers, mine = seen.count(seen[world.rank]), seen[: world.rank].count(seen[world.rank])
    if mine >= len(gpus):
        raise PlatformError(
            f"expected one GPU a rank. Got: {len(gpus)} for {sharers} ranks on {world.hosts[world.rank]}",
            remedy="as many ranks a node as GPUs, or CUDA_VISIBLE_DEVICES= to train on the CPU",
        )
    tf.config.set_visible_devices(gpus[mine], "GPU")
    tf.config.experimental.set_memory_growth(gpus[mine], True)
    if start:
        start_tensorflow()
    return "/GPU:0"


def local_devices(count: int | None) -> list[str]:
    """The devices that one process trains over: its GPUs, else logical CPU devices.

    To be called before TensorFlow has placed anything.

    Args:
        count: How many, or None for all GPUs, or one CPU device a core.

    Raises:
        PlatformError: fewer GPUs than asked for.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if count is not None and count > len(gpus):
            raise PlatformError(
                f"--devices: expected at most the {len(gpus)} GPUs of this machine. Got: {count}",
                remedy="fewer --devices, or CUDA_VISIBLE_DEVICES= to train over CPU devices",
            )
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        start_tensorflow()
        return [f"/GPU:{i}" for i in range(count or len(gpus))]
    count = count or len(os.sched_getaffinity(0))
    one: tf.config.LogicalDeviceConfiguration = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [one] * count)
    start_tensorflow()
    return [f"/CPU:{i}" for i in range(count)]
