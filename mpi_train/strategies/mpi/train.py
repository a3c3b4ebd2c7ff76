"""Training over MPI ranks: each trains on its own shard, and one all-reduce a step keeps them one model."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from mpi_train.collectives import averaging
from mpi_train.collectives.base import AllReduce
from mpi_train.collectives.hierarchical import mean_all_reduce
from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.models.flat import FlatModel
from mpi_train.models.optimizers import LearningRate
from mpi_train.runs.record import RunRecord
from mpi_train.runs.run import Run
from mpi_train.runtime import devices
from mpi_train.runtime.world import World
from mpi_train.strategies import custom_loop
from mpi_train.strategies.mpi.config import MpiConfig
from mpi_train.training.sync_batchnorm import synchronised


def train(config: MpiConfig, world: World, threads: int) -> RunRecord:
    """Train on all ranks of ``world`` and write the record."""
    with world.together():
        if COLLECTIVES[config.collective].by_layer and threads == 1:
            # On one thread TensorFlow follows a chain of operations to its end before it starts others.
            tf.config.threading.set_inter_op_parallelism_threads(2)
        device = devices.own_device(world)

    run = Run("mpi", config, world, threads)
    within_model: list[AllReduce] = []

    def make_averaging(flat: FlatModel) -> averaging.Averaging:
        policy = averaging.build(config, world, flat, seed=config.seed)
        policy.within_model = within_model
        return policy

    def mean_within_model(length: int) -> AllReduce:
        within_model.append(mean_all_reduce(world, length))
        return within_model[-1]

    def synchronise(model: keras.Model) -> keras.Model:
        return synchronised(model, mean_within_model if world.size > 1 else None)

    return custom_loop.train(
        run,
        # A device that is named several times computes its parts one after another.
        devices=[device] * config.accumulate,
        averaging=make_averaging,
        sync={
            **{name: getattr(config, name) for name in ("average", "every", "collective")},
            **config.exchange,
            **_uncommon(config),
        },
        rate=LearningRate(config.rate_factor, config.warmup_epochs),
        adapt=synchronise if config.sync_batchnorm else lambda model: model,
    )


def _uncommon(config: MpiConfig) -> dict[str, Any]:
    """Return further options for the record, if they differ from their defaults."""
    names = ("post_local_from", "accumulate", "lr_scaling", "warmup_epochs", "sync_batchnorm")
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return {name: getattr(config, name) for name in names if getattr(config, name) != defaults[name]}
