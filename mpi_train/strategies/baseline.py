"""One process, Keras ``fit``, all cores: what every other strategy is measured against.

As a user writes it, or ``--tuned``: one visit to Python for many steps.
"""

from __future__ import annotations

from contextlib import nullcontext

from mpi_train.runs.config import BaselineConfig
from mpi_train.runs.record import RunRecord
from mpi_train.runs.run import Run
from mpi_train.runtime import devices
from mpi_train.runtime.world import World
from mpi_train.strategies import keras_fit

STEPS_PER_EXECUTION = 32
"""Of ``--tuned``: one visit to Python for so many steps."""


def train(config: BaselineConfig, world: World, threads: int) -> RunRecord:
    """Trains and writes the record."""
    devices.own_device(world)
    return keras_fit.train(
        Run("tuned" if config.tuned else "baseline", config, world, threads),
        scope=nullcontext,
        sync={"average": "none", "devices": 1},
        steps_per_execution=STEPS_PER_EXECUTION if config.tuned else 1,
    )
