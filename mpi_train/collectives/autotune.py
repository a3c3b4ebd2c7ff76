"""Which all-reduce is the fastest for these ranks and this model: by trying each of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from mpi_train.collectives.base import MeanAllReduce
from mpi_train.collectives.clearly import clearly_fastest
from mpi_train.collectives.hierarchical import HierarchicalAllReduce, has_room
from mpi_train.collectives.plain import PlainAllReduce
from mpi_train.runtime.world import World

ROUNDS = 15
LIMIT_S = 2.0
"""After which no further round is begun."""
_CHUNKS = (1 << 16, 1 << 18, 1 << 20)


@dataclass(frozen=True)
class Choice:
    """What was measured, and what follows.

    Attributes:
        name: Of the fastest.
        median_s: Seconds of one all-reduce, of the slowest rank, by name; the first would be taken without
            measuring.
    """

    name: str
    median_s: dict[str, float]

    def __str__(self) -> str:
        times = ", ".join(f"{name} {1e3 * seconds:.3f} ms" for name, seconds in self.median_s.items())
        return f"{times}: {self.name}"


def fastest(world: World, length: int) -> tuple[MeanAllReduce, Choice]:
    """Tries all that give the exact mean, in turn; on all ranks together.

    Args:
        world: At least two ranks.
        length: Of the vector, in float32 numbers.
    """
    ways: dict[str, Callable[[], MeanAllReduce]] = {}
    # Where each rank has a node to itself the two levels are one.
    if max(world.gather_all(world.local_size)) > 1 and all(world.gather_all(has_room(world, length))):
        ways["hierarchical"] = lambda: HierarchicalAllReduce(world, length)
    ways["plain"] = lambda: PlainAllReduce(world, length)
    for num_bytes in _CHUNKS:
        if num_bytes < 4 * length:
            name = f"plain in chunks of {num_bytes >> 10} KiB"
            ways[name] = lambda num_bytes=num_bytes: PlainAllReduce(world, length, num_bytes // 4)  # type: ignore[misc]
    # What auto takes comes first.
    if world.local_size != world.size:
        ways = {"plain": ways.pop("plain"), **ways}
    tried = {name: make() for name, make in ways.items()}
    choice = _choice(_durations(tried, world, length))
    chosen = tried.pop(choice.name)
    for other in tried.values():
        other.free()
    return chosen, choice


def _durations(ways: dict[str, MeanAllReduce], world: World, length: int) -> dict[str, list[float]]:
    # As a step does it: what TensorFlow does with the result counts too.
    vector = tf.ones([length])
    calls = {name: tf.function(way.__call__, autograph=False) for name, way in ways.items()}
    durations: dict[str, list[float]] = {name: [] for name in ways}
    begin = time.perf_counter()
    for number in range(1 + ROUNDS):
        for name, call in calls.items():
            world.barrier()
            start = time.perf_counter()
            call(vector)
            elapsed_s = world.maximum(time.perf_counter() - start)
            if number:  # the first touches memory and makes connections
                durations[name].append(elapsed_s)
        if number and world.maximum(time.perf_counter() - begin) > LIMIT_S:
            break
    return durations


def _choice(durations: dict[str, list[float]]) -> Choice:
    median_s = {name: statistics.median(values) for name, values in durations.items()}
    return Choice(clearly_fastest(median_s), median_s)
