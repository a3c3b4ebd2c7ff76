"""Registry of strategies: everything that names, starts, submits, compares or reports them reads it.

To add a strategy, write its module and its config, and register it here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mpi_train.runs.config import RanksConfig, TrainConfig
from mpi_train.strategies.config import BaselineConfig, DevicesConfig
from mpi_train.strategies.federated.config import FederatedConfig
from mpi_train.strategies.mpi.config import MpiConfig
from mpi_train.strategies.pipeline.config import PipelineConfig

Unit = Literal["process", "rank", "device"]


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A way to train a model, and how to start it.

    Attributes:
        name: Name in records, reports and on the command line.
        text: One line of help.
        config: Dataclass of its options.
        train: Function ``module:name``, called with the config, the world and the number of threads. A
            string, because the module imports TensorFlow.
        unit: Kind of worker that it is scaled by: one process, MPI ranks, or devices of one process.
        command: Command that starts it, if that is not its name.
        flags: Flags that the command needs to start it.
        environment: Folder of the virtual environment that has its packages.
        bench: True if ``make bench`` runs it by default.
    """

    name: str
    text: str
    config: type[TrainConfig]
    train: str
    unit: Unit
    command: str = ""
    flags: tuple[str, ...] = ()
    environment: str = ".venv"
    bench: bool = True

    @property
    def job(self) -> str:
        """Name of the command, and of the script in ``jobs/``."""
        return self.command or self.name


STRATEGIES: dict[str, Strategy] = {}
"""All strategies by name, in the order in which they are shown."""


def register(strategy: Strategy) -> None:
    """Add ``strategy``, or replace the one of the same name."""
    STRATEGIES[strategy.name] = strategy


def commands() -> dict[str, Strategy]:
    """Return the strategies that are commands of their own, by the name of the command."""
    return {name: strategy for name, strategy in STRATEGIES.items() if strategy.job == name}


for _strategy in (
    Strategy(
        name="baseline",
        text="Keras fit in one process, on all its cores",
        config=BaselineConfig,
        train="mpi_train.strategies.keras_fit:train_baseline",
        unit="process",
    ),
    Strategy(
        name="tuned",
        text="Keras fit in one process with 32 steps per execution",
        config=BaselineConfig,
        train="mpi_train.strategies.keras_fit:train_baseline",
        unit="process",
        command="baseline",
        flags=("--tuned",),
    ),
    Strategy(
        name="mpi",
        text="data parallelism over MPI ranks, averaged by an all-reduce at every step",
        config=MpiConfig,
        train="mpi_train.strategies.mpi.train:train",
        unit="rank",
    ),
    Strategy(
        name="mirrored",
        text="Keras fit under MirroredStrategy, over GPUs or logical CPU devices",
        config=DevicesConfig,
        train="mpi_train.strategies.keras_fit:train_mirrored",
        unit="device",
    ),
    Strategy(
        name="custom",
        text="data parallelism written by hand, over the same devices",
        config=DevicesConfig,
        train="mpi_train.strategies.custom_loop:train_custom",
        unit="device",
    ),
    Strategy(
        name="custom_dataset",
        text="strategy.run over a distributed dataset, over the same devices",
        config=DevicesConfig,
        train="mpi_train.strategies.tf_distribute:train_custom_dataset",
        unit="device",
    ),
    Strategy(
        name="multiworker",
        text="MultiWorkerMirroredStrategy over MPI ranks",
        config=RanksConfig,
        train="mpi_train.strategies.tf_distribute:train_multiworker",
        unit="rank",
    ),
    Strategy(
        name="tpu",
        text="TPUStrategy on a TPU, or the best device there is",
        config=TrainConfig,
        train="mpi_train.strategies.tf_distribute:train_tpu",
        unit="process",
    ),
    Strategy(
        name="pipeline",
        text="pipeline parallelism: each rank trains a stage of the model",
        config=PipelineConfig,
        train="mpi_train.strategies.pipeline.train:train",
        unit="rank",
    ),
    Strategy(
        name="federated",
        text="federated averaging over MPI ranks; a client is a shard",
        config=FederatedConfig,
        train="mpi_train.strategies.federated.train:train",
        unit="rank",
    ),
    Strategy(
        name="ddp",
        text="PyTorch's DistributedDataParallel over gloo, as a yardstick",
        config=RanksConfig,
        train="mpi_train.strategies.pytorch.train:train",
        unit="rank",
        environment=".venv-peers",
    ),
):
    register(_strategy)
