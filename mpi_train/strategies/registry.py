"""Registry of strategies: everything that names, starts, submits, compares or reports them reads it.

To add a strategy, write its module and its config, and register it here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

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
        command: Command that starts it, if that is not its name.
        flags: Flags that the command needs to start it.
        environment: Folder of the virtual environment that has its packages.
        bench: True if ``make bench`` runs it by default.
    """

    name: str
    text: str
    config: type[TrainConfig]
    train: str
    command: str = ""
    flags: tuple[str, ...] = ()
    environment: str = ".venv"
    bench: bool = True

    @property
    def job(self) -> str:
        """Name of the command, and of the script in ``jobs/``."""
        return self.command or self.name

    @property
    def unit(self) -> Unit:
        """Kind of worker that it is scaled by: one process, MPI ranks, or devices of one process."""
        if issubclass(self.config, RanksConfig):
            return "rank"
        return "device" if issubclass(self.config, DevicesConfig) else "process"


STRATEGIES: dict[str, Strategy] = {}
"""All strategies by name, in the order in which they are shown."""


def commands() -> dict[str, Strategy]:
    """Return the strategies that are commands of their own, by the name of the command."""
    return {name: strategy for name, strategy in STRATEGIES.items() if strategy.job == name}


def _register(name: str, text: str, config: type[TrainConfig], train: str, **others: Any) -> None:
    train = f"mpi_train.strategies.{train}"
    STRATEGIES[name] = Strategy(name=name, text=text, config=config, train=train, **others)


_register(
    "baseline", "Keras fit in one process, on all its cores", BaselineConfig, "keras_fit:train_baseline"
)
_register(
    "tuned",
    "Keras fit in one process with 32 steps per execution",
    BaselineConfig,
    "keras_fit:train_baseline",
    command="baseline",
    flags=("--tuned",),
)
_register(
    "mpi",
    "data parallelism over MPI ranks, averaged by an all-reduce at every step",
    MpiConfig,
    "mpi.train:train",
)
_register(
    "mirrored",
    "Keras fit under MirroredStrategy, over GPUs or logical CPU devices",
    DevicesConfig,
    "keras_fit:train_mirrored",
)
_register(
    "custom",
    "data parallelism written by hand, over the same devices",
    DevicesConfig,
    "custom_loop:train_custom",
)
_register(
    "custom_dataset",
    "strategy.run over a distributed dataset, over the same devices",
    DevicesConfig,
    "tf_distribute:train_custom_dataset",
)
_register(
    "multiworker",
    "MultiWorkerMirroredStrategy over MPI ranks",
    RanksConfig,
    "tf_distribute:train_multiworker",
)
_register("tpu", "TPUStrategy on a TPU, or the best device there is", TrainConfig, "tf_distribute:train_tpu")
_register(
    "pipeline",
    "pipeline parallelism: each rank trains a stage of the model",
    PipelineConfig,
    "pipeline.train:train",
)
_register(
    "federated",
    "federated averaging over MPI ranks; a client is a shard",
    FederatedConfig,
    "federated.train:train",
)
_register(
    "ddp",
    "PyTorch's DistributedDataParallel over gloo, as a yardstick",
    RanksConfig,
    "pytorch.train:train",
    environment=".venv-peers",
)
