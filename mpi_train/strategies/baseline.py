"""One process, plain Keras ``fit``, all cores: what every other strategy is measured against."""

from __future__ import annotations

from contextlib import nullcontext

from mpi_train import devices
from mpi_train.config import TrainConfig
from mpi_train.records import RunRecord
from mpi_train.run import Run
from mpi_train.strategies import keras_fit
from mpi_train.world import World


def train(config: TrainConfig, world: World, threads: int) -> RunRecord:
    """Trains and writes the record."""
    devices.own_device(world)
    return keras_fit.train(
        Run("baseline", config, world, threads), scope=nullcontext, sync={"average": "none", "devices": 1}
    )
