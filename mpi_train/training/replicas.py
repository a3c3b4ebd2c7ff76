"""Ranks that train one model must hold one model: made equal at the start, and checked ever after.

A data-parallel job whose ranks silently train apart still prints falling losses. So equality is
proven while it runs, by comparing digests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from mpi_train.models.flat import FlatModel
from mpi_train.runtime.digest import digest
from mpi_train.runtime.errors import RanksApartError
from mpi_train.runtime.world import World


def start_equal(world: World, variables: Iterable[tf.Variable]) -> None:
    """Overwrites ``variables`` (weights, statistics, optimizer state) on all ranks with the root's."""
    for variable in variables:
        value = np.array(variable.numpy())
        world.broadcast(value)
        variable.assign(value)


def part_seeds(world: World, states: Sequence[tf.Variable]) -> None:
    """Gives each rank seeds of its own for dropout and the like; the root's stay as they are."""
    for state in states:
        if not state.dtype.is_floating:
            state.assign(state + tf.cast(world.rank * 1_000_003, state.dtype))


def average_statistics(world: World, flat: FlatModel, num_examples: int) -> None:
    """Replaces BatchNorm's moving statistics by their mean over the ranks, weighted by examples.

    They follow the data of a rank by a recursion that is linear, so that averaging them once an
    epoch, before they are used, gives what averaging them at every step would.
    """
    statistics = flat.moving_statistics
    if world.size == 1 or not statistics:
        return
    values = mean_over_ranks(world, [variable.numpy() for variable in statistics], num_examples)
    for variable, value in zip(statistics, values, strict=True):
        variable.assign(value)


def mean_over_ranks(world: World, values: Sequence[np.ndarray], num_examples: int) -> list[np.ndarray]:
    """The mean of each array over the ranks, weighted by their examples."""
    mine = np.concatenate([[1.0], *(value.ravel() for value in values)]) * num_examples
    total = world.sum(mine)
    mean = total[1:] / total[0]
    ends = np.cumsum([value.size for value in values])
    return [
        mean[end - value.size : end].reshape(value.shape).astype(value.dtype)
        for value, end in zip(values, ends, strict=True)
    ]


def check_equal(world: World, arrays: Sequence[np.ndarray], *, when: str, part: int = 0) -> None:
    """Compares a digest of ``arrays`` over all ranks, or over those with the same ``part`` of the model.

    Raises:
        RanksApartError: they differ. On all ranks; names those that differ from the most common digest.
    """
    everyone = world.gather_all((part, digest(arrays)))
    common = {
        number: Counter(theirs for other, theirs in everyone if other == number).most_common(1)[0][0]
        for number, _ in everyone
    }
    apart = [
        f"rank {rank} on {world.hosts[rank]}"
        for rank, (number, theirs) in enumerate(everyone)
        if theirs != common[number]
    ]
    if not apart:
        return
    raise RanksApartError(
        f"{when}: expected the same weights on all {world.size} ranks. "
        f"Got: other weights on {', '.join(apart)}",
        remedy="run make doctor on that host; the same MPI library and the same processor type on all nodes",
    )
