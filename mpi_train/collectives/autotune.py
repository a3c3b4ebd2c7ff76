"""Choice of the exact all-reduce by measuring."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import tensorflow as tf

from mpi_train.collectives.base import MeanAllReduce
from mpi_train.collectives.hierarchical import HierarchicalAllReduce, has_room
from mpi_train.collectives.plain import PlainAllReduce
from mpi_train.runtime.world import World

ROUNDS = 15
LIMIT_S = 2.0
"""Seconds after which no further round is begun."""
CLEARLY = 0.95
"""Fraction of the usual all-reduce's time that another one must stay below to be chosen."""


@dataclass(frozen=True)
class Choice:
    """Measured times, and the all-reduce that follows from them.

    Attributes:
        name: Name of the chosen one.
        median_s: Seconds of one all-reduce on the slowest rank, by name; the usual one comes first.
    """

    name: str
    median_s: dict[str, float]

    def __str__(self) -> str:
        times = ", ".join(f"{name} {1e3 * seconds:.3f} ms" for name, seconds in self.median_s.items())
        return f"{times}: {self.name}"


def fastest(world: World, length: int) -> tuple[MeanAllReduce, Choice]:
    """Measure the exact all-reduces in turn and return the fastest one, on all ranks together.

    Args:
        world: At least two ranks.
        length: Vector length, in float32 numbers.
    """
    tried: dict[str, MeanAllReduce] = {"plain": PlainAllReduce(world, length)}
    # If each rank has a node to itself the two levels are one.
    if max(world.gather_all(world.local_size)) > 1 and all(world.gather_all(has_room(world, length))):
        hierarchical = {"hierarchical": HierarchicalAllReduce(world, length)}
        tried = hierarchical | tried if world.local_size == world.size else tried | hierarchical
    choice = _choose(_measure(tried, world, length))
    chosen = tried.pop(choice.name)
    for other in tried.values():
        other.free()
    return chosen, choice


def _measure(tried: dict[str, MeanAllReduce], world: World, length: int) -> dict[str, list[float]]:
    # Inside a graph, as in a step: TensorFlow's handling of the result counts too.
    vector = tf.ones([length])
    calls = {name: tf.function(each.__call__, autograph=False) for name, each in tried.items()}
    durations: dict[str, list[float]] = {name: [] for name in tried}
    begin = time.perf_counter()
    for number in range(1 + ROUNDS):
        for name, call in calls.items():
            world.barrier()
            start = time.perf_counter()
            call(vector)
            elapsed_s = world.maximum(time.perf_counter() - start)
            if number:  # the first round touches memory and makes connections
                durations[name].append(elapsed_s)
        if number and world.maximum(time.perf_counter() - begin) > LIMIT_S:
            break
    return durations


def _choose(durations: dict[str, list[float]]) -> Choice:
    median_s = {name: statistics.median(values) for name, values in durations.items()}
    usual, best = next(iter(median_s)), min(median_s, key=lambda name: median_s[name])
    return Choice(best if median_s[best] < CLEARLY * median_s[usual] else usual, median_s)
