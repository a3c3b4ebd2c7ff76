"""Times several pieces of work in turn, on all ranks, so that a machine that drifts slows all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpi_train.runtime.world import World

SAMPLE_S = 0.3
"""Seconds that one sample of a piece of work should take."""


@dataclass(frozen=True)
class Work:
    """A piece of work to time.

    Attributes:
        name: For tables.
        run: Does it as many times as it is told, and returns when all is done, on the device too.
        alone: Rank 0 does it while the others sleep.
    """

    name: str
    run: Callable[[int], None]
    alone: bool = False


def time_in_turn(
    works: Sequence[Work], world: World, *, repeats: int, sample_s: float = SAMPLE_S
) -> dict[str, list[float]]:
    """Takes ``repeats`` samples of each piece of work, in the order A B C A B C.

    Returns:
        For each name, seconds of doing it once, a value a sample; equal on all ranks, as the slowest
        rank counts.
    """
    counts = [_calibrate(work, world, sample_s) for work in works]
    samples: dict[str, list[float]] = {work.name: [] for work in works}
    for _ in range(repeats):
        for work, count in zip(works, counts, strict=True):
            samples[work.name].append(_time(work, world, count) / count)
    return samples


def _calibrate(work: Work, world: World, sample_s: float) -> int:
    """How many times the work fits into ``sample_s``. Ranks agree, as they share their timings."""
    count = 1
    _time(work, world, count)  # builds its graph, touches its memory
    while (elapsed := _time(work, world, count)) < sample_s / 4:
        count *= 4
    return max(1, round(count * sample_s / elapsed))


def _time(work: Work, world: World, count: int) -> float:
    """Seconds of doing the work ``count`` times, on the slowest rank."""
    world.barrier()
    start = time.perf_counter()
    if world.is_root or not work.alone:
        work.run(count)
    elapsed = time.perf_counter() - start
    if work.alone:
        rest_until_all_are_here(world)
    return world.maximum(elapsed)


def rest_until_all_are_here(world: World) -> None:
    """A barrier that leaves the cores to the ranks that are still at work; MPI's own would spin."""
    if world.comm is not None:
        request = world.comm.Ibarrier()
        while not request.Test():
            time.sleep(0.002)
