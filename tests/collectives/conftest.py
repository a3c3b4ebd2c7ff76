"""Small trainings over the ranks of a test, and the check that a collective gives the mean."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from mpi_train.collectives.averaging import Averaging, Context
from mpi_train.collectives.base import AllReduce
from mpi_train.collectives.config import ExchangeConfig
from mpi_train.collectives.hierarchical import mean_all_reduce
from mpi_train.data.shards import ShardSet
from mpi_train.models import optimizers, zoo
from mpi_train.models.flat import FlatModel
from mpi_train.runtime.world import World
from mpi_train.training.replicas import check_equal
from mpi_train.training.steps import Steps, epoch_order, plan_steps
from mpi_train.training.totals import EpochTotals
from mpi_train.training.trainer import Trainer


class Small:
    """Trains on 509 examples in batches of 48, each rank on its part.

    Args:
        world: The ranks.
        shards: The examples.

    Attributes:
        steps: Of an epoch: 11.
    """

    def __init__(self, world: World, shards: ShardSet) -> None:
        self._world, self._shards = world, shards
        self.steps: Steps = plan_steps(509, 48, rank=world.rank, size=world.size)

    def trainer(
        self, averaging: Callable[[FlatModel], Averaging], *, model: str = "mlp", optimizer: str = "sgd"
    ) -> Trainer:
        """A trainer whose exchange ``averaging`` makes."""
        flat = FlatModel(zoo.build(model, (28, 28, 1), 10, seed=3, dtype="float32"))
        return Trainer(
            flat,
            optimizers.build(optimizer, {"sgd": 0.1, "adam": 0.002}[optimizer]),
            self._shards.read("train", self._world.rank, self._world.size),
            averaging=averaging(flat),
        )

    def order(self, trainer: Trainer, epoch: int = 1) -> np.ndarray:
        return epoch_order(1, epoch, self._world.rank, len(trainer.examples))

    def train(self, trainer: Trainer, epochs: range = range(1, 2)) -> EpochTotals:
        """Trains these epochs; what the last one came to."""
        for epoch in epochs:
            trainer.averaging.begin_epoch(epoch)
            totals = trainer.train_epoch(self.order(trainer, epoch), self.steps, self._world)
        return totals


@pytest.fixture
def small(world: World, tiny: ShardSet) -> Small:
    return Small(world, tiny)


@pytest.fixture
def context(world: World) -> Callable[..., Context]:
    """Context of a collective, for a model and options of the exchange."""

    def make(flat: FlatModel, **settings: Any) -> Context:
        return Context(ExchangeConfig(**settings), world, flat, 1, partial(mean_all_reduce, world))

    return make


@pytest.fixture
def check_mean(world: World) -> Callable[[AllReduce, int], None]:
    def check(reduce: AllReduce, length: int) -> None:
        """Holds a collective to the mean, in the same bits on all ranks."""
        for call in range(5):
            vectors = [
                np.random.default_rng([call, rank]).random(length, np.float32) for rank in range(world.size)
            ]
            mean = reduce.mean(vectors[world.rank])
            assert np.allclose(mean, np.mean(vectors, axis=0), rtol=1e-6)
            check_equal(world, [mean], when=f"call {call}")

    return check
