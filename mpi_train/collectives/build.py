"""Construction of the averaging policy that ``--collective`` and ``--average`` name."""

from __future__ import annotations

from collections.abc import Sequence
from pkgutil import resolve_name

from mpi_train.collectives.averaging import Averaging, Context, NoAveraging
from mpi_train.collectives.base import AllReduce, MeanAllReduce
from mpi_train.collectives.config import ExchangeConfig
from mpi_train.collectives.hierarchical import HierarchicalAllReduce, has_room
from mpi_train.collectives.plain import PlainAllReduce
from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.models.flat import FlatModel
from mpi_train.runtime.world import World


def mean_all_reduce(world: World, length: int) -> MeanAllReduce:
    """Make the usual all-reduce: through shared memory if all ranks are on one node, else MPI's own.

    Args:
        world: At least two ranks.
        length: Vector length, in float32 numbers.
    """
    if world.local_size == world.size and all(world.gather_all(has_room(world, length))):
        return HierarchicalAllReduce(world, length)
    return PlainAllReduce(world, length)


def averaging(
    config: ExchangeConfig,
    world: World,
    flat: FlatModel,
    *,
    seed: int,
    within_model: Sequence[AllReduce] = (),
) -> Averaging:
    """Make the averaging policy of the ranks, on all of them together.

    Args:
        config: Options of the exchange.
        world: The ranks.
        flat: The model.
        seed: Seed of the run.
        within_model: All-reduces inside the model, whose traffic counts too.

    Raises:
        PlatformError: these ranks cannot exchange in the requested way; on all of them.
    """
    if world.size == 1:
        return NoAveraging()
    entry = COLLECTIVES[config.collective]

    def exact(length: int) -> AllReduce:
        all_reduce: AllReduce = resolve_name(entry.all_reduce)(world, length)
        return all_reduce

    policy: Averaging = resolve_name(entry.factory)(Context(config, world, flat, seed, exact))
    policy.within_model = within_model
    return policy
