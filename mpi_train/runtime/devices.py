"""Cores, threads and GPUs of this process, assigned before TensorFlow starts.

TensorFlow takes every core it can see, on every rank, so that the ranks of a node would compete for cores.
Each rank takes its share of the cores instead. TensorFlow reads the number of threads from environment
variables when it is first imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mpi_train.runtime.errors import PlatformError
from mpi_train.runtime.world import World


def share_of(masks: Sequence[frozenset[int]], local_rank: int) -> tuple[int, ...]:
    """Return the cores of one rank, given the affinity masks of all ranks on its node.

    A launcher that binds gives every rank a mask of its own, which is kept. Ranks whose masks overlap divide
    the cores evenly, in rank order. If there are more ranks than cores, all ranks share all cores.
    """
    mine = masks[local_rank]
    sharers = [rank for rank, mask in enumerate(masks) if mask & mine]
    cores = sorted(mine)
    if len(sharers) > len(cores):
        return tuple(cores)
    width = len(cores) // len(sharers)
    first = sharers.index(local_rank) * width
    return tuple(cores[first : first + width])


def claim_cores(world: World, threads: int | None) -> int:
    """Bind this rank to its share of the node's cores; set and return the number of TensorFlow's threads.

    Must be called before TensorFlow is imported. ``threads`` replaces one thread for each core of the share.
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
    return count


@contextmanager
def quiet_start() -> Iterator[None]:
    """Remove TensorFlow's messages about its own build from stderr.

    No setting reaches these lines: TensorFlow writes them before its logging starts, at the import and at the
    first operation. The lines go through grep, which lives on until it has passed on all other output, so
    that the last words of a crash are not lost.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    stderr = os.dup(2)
    noise = "^(WARNING: All log messages before absl|I[0-9]{4} |To enable the following instructions)"
    with subprocess.Popen(["grep", "-vE", noise], stdin=subprocess.PIPE, stdout=stderr) as grep:
        assert grep.stdin is not None
        os.dup2(grep.stdin.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)


@contextmanager
def lean_imports() -> Iterator[None]:
    """Keep Keras from importing matplotlib, a fifth of the import time of Keras and TensorFlow."""
    if "matplotlib" in sys.modules:
        yield
        return
    sys.modules["matplotlib"] = None  # type: ignore[assignment]  # an import fails, as if it were missing
    try:
        yield
    finally:
        del sys.modules["matplotlib"]


def start_tensorflow() -> None:
    """Make TensorFlow initialise its devices. Their settings cannot be changed afterwards."""
    import tensorflow as tf

    with quiet_start():
        tf.zeros(1)


def own_device(world: World, *, start: bool = True) -> str:
    """Return the device this rank computes on: the GPU of its local rank, or the CPU.

    Unless ``start`` is False, TensorFlow initialises its devices.

    Raises:
        PlatformError: There are GPUs, but fewer than ranks on this node.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    # A launcher such as Slurm's may show each rank a GPU of its own. Ranks that see the same GPUs take them
    # in rank order.
    seen = world.gather_all((world.hosts[world.rank], os.environ.get("CUDA_VISIBLE_DEVICES")))
    if gpus:
        sharers, mine = seen.count(seen[world.rank]), seen[: world.rank].count(seen[world.rank])
        if mine >= len(gpus):
            host = world.hosts[world.rank]
            raise PlatformError(
                f"expected one GPU a rank. Got: {len(gpus)} for {sharers} ranks on {host}",
                remedy="as many ranks a node as GPUs, or CUDA_VISIBLE_DEVICES= to train on the CPU",
            )
        tf.config.set_visible_devices(gpus[mine], "GPU")
        tf.config.experimental.set_memory_growth(gpus[mine], True)
    if start:
        start_tensorflow()
    return "/GPU:0" if gpus else "/CPU:0"


def local_devices(count: int | None) -> list[str]:
    """Return the ``count`` devices that one process trains on: GPUs, or else logical CPU devices.

    Must be called before TensorFlow initialises its devices. None means all GPUs, or one CPU device a core.

    Raises:
        PlatformError: There are fewer GPUs than ``count``.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus and count is not None and count > len(gpus):
        raise PlatformError(
            f"--devices: expected at most the {len(gpus)} GPUs of this machine. Got: {count}",
            remedy="fewer --devices, or CUDA_VISIBLE_DEVICES= to train on CPU devices",
        )
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    count = count or len(gpus) or len(os.sched_getaffinity(0))
    if not gpus:
        cpu = tf.config.list_physical_devices("CPU")[0]
        # A process that has trained before has its devices already.
        if len(tf.config.get_logical_device_configuration(cpu) or ()) < count:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    start_tensorflow()
    return [f"/{'GPU' if gpus else 'CPU'}:{number}" for number in range(count)]
