"""Custom data parallelism in one process: each batch split by hand over the devices, gradients summed.

The weights live on the first device. In every step each device reads them, takes its part of the
batch, and returns the gradient of its part; the sum is applied once. All of it is one graph.
"""

from __future__ import annotations

from mpi_train.collectives.averaging import Nothing
from mpi_train.runs.config import DevicesConfig
from mpi_train.runs.record import RunRecord
from mpi_train.runs.run import Run
from mpi_train.runtime import devices
from mpi_train.runtime.world import World
from mpi_train.strategies import custom_loop


def train(config: DevicesConfig, world: World, threads: int) -> RunRecord:
    """Trains over the devices of this process and writes the record."""
    names = devices.local_devices(config.devices)
    return custom_loop.train(
        Run("custom", config, world, threads),
        devices=names,
        averaging=lambda _: Nothing(),
        sync={"average": "gradients", "every": 1, "devices": len(names)},
    )
