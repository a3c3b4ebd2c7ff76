"""Options of the strategies that run as one process."""

from __future__ import annotations

from dataclasses import dataclass

from mpi_train.runs.config import TrainConfig
from mpi_train.runtime.flags import at_least, option


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(TrainConfig):
    """Options of the baseline strategy."""

    tuned: bool = option(False, "32 steps per execution, the fastest Keras fit; recorded as strategy tuned")


@dataclass(frozen=True, kw_only=True)
class DevicesConfig(TrainConfig):
    """Options of strategies over the devices of one process."""

    devices: int | None = option(
        None,
        "number of GPUs, or of logical CPU devices (default: all GPUs, else one a core)",
        changes_result=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.devices is not None:
            at_least("--devices", self.devices, 1)
