"""Options of the strategies that run as one process, and of the evaluation of their models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpi_train.runs.config import ProcessConfig, TrainConfig
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


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ProcessConfig):
    """Options of the command evaluate."""

    saved_model: Path = option(Path("results/mpi/model.keras"), "model that a run has left", "FILE")
    model: str | None = option(
        None, "package.module:function that makes the model, if Keras cannot load the file alone"
    )
    dataset: str = option("fashion_mnist", "data set that the shards must hold")
    data: Path | None = option(None, "folder of the shards (default: data/DATASET)", "DIR")
    split: Literal["train", "test"] = option("test", "part of the data set")

    @property
    def data_dir(self) -> Path:
        """Folder with ``manifest.json`` and the shards."""
        return self.data or Path("data") / self.dataset
