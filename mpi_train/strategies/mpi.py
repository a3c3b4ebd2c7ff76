"""Ranks over MPI: each trains on its own shard, and one all-reduce a step keeps them one model."""

from __future__ import annotations

from mpi_train import devices
from mpi_train.averaging import Gradients, Nothing, Weights
from mpi_train.collectives import mean_all_reduce
from mpi_train.config import MpiConfig
from mpi_train.flat import FlatModel
from mpi_train.records import RunRecord
from mpi_train.run import Run
from mpi_train.strategies import own_loop
from mpi_train.world import World


def train(config: MpiConfig, world: World, threads: int) -> RunRecord:
    """Trains on all ranks of ``world`` and writes the record."""
    with world.together():
        device = devices.own_device(world)

    def averaging(flat: FlatModel) -> Nothing:
        if world.size == 1:
            return Nothing()
        all_reduce = mean_all_reduce(world, flat.num_padded)
        return Gradients(all_reduce) if config.average == "gradients" else Weights(all_reduce, config.every)

    return own_loop.train(
        Run("mpi", config, world, threads),
        devices=[device],
        averaging=averaging,
        sync={"average": config.average, "every": config.every},
    )
