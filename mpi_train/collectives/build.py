"""Makes what ``--collective`` names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mpi_train.collectives.autotune import Choice, fastest
from mpi_train.collectives.averaging import AllReduce, Averaging, Gradients, Nothing, Weights, WeightsAndSlots
from mpi_train.collectives.base import MeanAllReduce
from mpi_train.collectives.bfloat16 import BFloat16AllReduce
from mpi_train.collectives.buckets import Buckets
from mpi_train.collectives.delayed import Delayed
from mpi_train.collectives.diloco import DiLoCo
from mpi_train.collectives.gossip import Gossip
from mpi_train.collectives.hierarchical import HierarchicalAllReduce, has_room
from mpi_train.collectives.plain import PlainAllReduce
from mpi_train.collectives.powersgd import PowerSGD
from mpi_train.collectives.topk import TopK
from mpi_train.models.flat import FlatModel
from mpi_train.runtime.world import World
from mpi_train.strategies.mpi.config import MpiConfig


def mean_all_reduce(world: World, length: int) -> MeanAllReduce:
    """The fastest way for these ranks: through shared memory where all are on one node, else by MPI.

    Args:
        world: At least two ranks.
        length: Of the buffer, in float32 numbers.
    """
    if world.local_size == world.size and all(world.gather_all(has_room(world, length))):
        return HierarchicalAllReduce(world, length)
    return PlainAllReduce(world, length)


EXACT: dict[str, Callable[[World, int], MeanAllReduce]] = {
    "auto": mean_all_reduce,
    "plain": PlainAllReduce,
    "hierarchical": HierarchicalAllReduce,
}
"""By name, what replaces a vector by its mean, but for rounding."""


def averaging(
    config: MpiConfig,
    world: World,
    flat: FlatModel,
    beside: Sequence[AllReduce] = (),
    tuned: Callable[[Choice], None] = lambda choice: None,
) -> Nothing:
    """What ``mpi`` averages with; on all ranks together.

    Args:
        config: How it is to.
        world: The ranks.
        flat: The model.
        beside: All-reduces within it, whose traffic counts too.
        tuned: Is told what was measured, and chosen, where that was asked for.

    Raises:
        PlatformError: these ranks cannot exchange in the way that was asked for; on all of them.
    """
    if world.size == 1:
        return Nothing()

    def exact(length: int) -> AllReduce:
        if not config.autotune:
            return EXACT.get(config.collective, mean_all_reduce)(world, length)
        all_reduce, choice = fastest(world, length)
        tuned(choice)
        return all_reduce

    kind = _averaging(config, world, flat, exact)
    kind.beside = beside
    return kind


def _averaging(
    config: MpiConfig, world: World, flat: FlatModel, exact: Callable[[int], AllReduce]
) -> Averaging:
    name, every, local_from = config.collective, config.every, config.post_local_from
    assert every is not None
    length = flat.num_padded
    if name == "diloco":
        return DiLoCo(exact(length), flat, every, config.outer_rate, config.outer_momentum)
    if name == "buckets":
        return Buckets(world, flat)
    if name == "delayed":
        return Delayed(exact(length), world, length)
    if name == "gossip":
        return Gossip(exact(length), world, length)
    if name == "bfloat16":
        return Gradients(BFloat16AllReduce(world, length))
    if name == "powersgd":
        return Gradients(PowerSGD(exact, flat, config.powersgd_rank, config.seed))
    if name == "topk":
        return Gradients(TopK(world, length, config.topk_fraction))
    if config.average == "weights+slots":
        return WeightsAndSlots(exact, every, local_from)
    if config.average == "gradients":
        return Gradients(exact(length))
    return Weights(exact(length), every, local_from)
