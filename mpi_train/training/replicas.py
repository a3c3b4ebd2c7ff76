"""Equality of replicas: made equal at the start, and checked while the run trains.

A data-parallel job whose ranks diverge in silence still prints falling losses. So digests of the weights are
compared over the ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from mpi_train.models.flat import FlatModel
from mpi_train.runtime.errors import RanksApartError
from mpi_train.runtime.files import digest
from mpi_train.runtime.world import World


def start_equal(world: World, variables: Iterable[tf.Variable]) -> None:
    """Overwrite weights, statistics and optimizer state on all ranks with those of the root."""
    for variable in variables:
        value = np.array(variable.numpy())
        world.broadcast(value)
        variable.assign(value)


def offset_seeds_by_rank(world: World, states: Sequence[tf.Variable]) -> None:
    """Give each rank its own seeds for dropout and other noise; those of the root stay."""
    for state in states:
        if not state.dtype.is_floating:
            state.assign(state + tf.cast(world.rank * 1_000_003, state.dtype))


def average_statistics(world: World, flat: FlatModel, num_examples: int) -> None:
    """Replace BatchNorm's moving statistics by their mean over the ranks, weighted by examples.

    The recursion of the statistics is linear in the data of a rank. So the average once an epoch, before the
    statistics are used, equals an average at every step.
    """
    statistics = flat.moving_statistics
    if world.size == 1 or not statistics:
        return
    values = mean_over_ranks(world, [variable.numpy() for variable in statistics], num_examples)
    for variable, value in zip(statistics, values, strict=True):
        variable.assign(value)


def mean_over_ranks(world: World, values: Sequence[np.ndarray], num_examples: int) -> list[np.ndarray]:
    """Average each array over the ranks, weighted by their number of examples."""
    mine = np.concatenate([[1.0], *(value.ravel() for value in values)]) * num_examples
    total = world.sum(mine)
    means = np.split(total[1:] / total[0], np.cumsum([value.size for value in values[:-1]], dtype=int))
    return [mean.reshape(value.shape).astype(value.dtype) for mean, value in zip(means, values, strict=False)]


def check_equal(world: World, arrays: Sequence[np.ndarray], *, when: str, name: str = "") -> None:
    """Compare a digest of ``arrays`` over all ranks.

    Args:
        world, arrays: The ranks, and weights of this one.
        when: Time of the check, for the message.
        name: Name of this rank in the message (default: its rank and host in ``world``).

    Raises:
        RanksApartError: digests differ. Raised on all ranks; names the ranks without the most common digest.
    """
    digests = world.gather_all((digest(arrays), name or world.name))
    common = Counter(theirs for theirs, _ in digests).most_common(1)[0][0]
    apart = [other for theirs, other in digests if theirs != common]
    if apart:
        raise RanksApartError(
            f"{when}: expected the same weights on the {world.size} ranks that hold them. "
            f"Got: other weights on {', '.join(apart)}",
            remedy="run make doctor on that host; the same MPI library and processor type on all nodes",
        )
