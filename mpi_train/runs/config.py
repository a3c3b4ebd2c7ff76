"""What a user can set for a training run: one frozen dataclass, the source of the command line.

Each field is a flag of the same name; its type, default and help are written once, here. Values are
checked when the object is made, so that a config which exists is one that can run.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from mpi_train.collectives.registry import WAYS, names
from mpi_train.runtime.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Dtype = Literal["float32", "bfloat16"]
Average = Literal["weights", "gradients", "weights+slots"]
Scaling = Literal["none", "linear", "sqrt"]
Collective = Literal[
    "auto", "plain", "hierarchical", "buckets",
    "bfloat16", "powersgd", "topk", "delayed", "gossip", "diloco",
]  # fmt: skip
"""The keys of ``collectives.catalogue.WAYS``."""
_REFERENCE_BATCH = 64
"""At which a learning rate is meant, where it is scaled with the batch."""
OnNan = Literal["stop", "rollback"]
Style = Literal["lines", "json", "quiet"]
NUM_MINIBATCHES = 4
"""In which a reinforcement learner takes a batch."""


def option(default: Any, text: str, metavar: str | None = None) -> Any:
    """A dataclass field that is also a flag: its default, and one line of help."""
    return dataclasses.field(default=default, metadata={"help": text, "metavar": metavar})


def _described(*, changes_result: bool) -> str:
    return "; ".join(f"{name}: {WAYS[name].text}" for name in names(changes_result=changes_result))


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What every job takes that needs TensorFlow."""

    learning_rate: float | None = option(None, "step size (default: the optimizer's own)")
    seed: int = option(1, "seed of the weights and of the order of the data")
    threads: int | None = option(None, "CPU threads of each process (default: its share of the cores)")

    def __post_init__(self) -> None:
        # The seeds of NumPy and Keras have 32 bits; a bench counts up from this one.
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"--seed: expected 0 to {2**31 - 1}. Got: {self.seed}")
        if self.threads is not None:
            at_least("--threads", self.threads, 1)
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"--learning-rate: expected a number above 0. Got: {self.learning_rate}")


@dataclass(frozen=True, kw_only=True)
class WatchedConfig(JobConfig):
    """What the jobs take beyond that whose ranks watch each other, and stop together when asked to."""

    stall_timeout: float = option(
        60.0, "seconds of silence after which a rank is given up; five times that in start-up", "SECONDS"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stall_timeout >= 5:
            raise UsageError(f"--stall-timeout: expected at least 5 seconds. Got: {self.stall_timeout:g}")


@dataclass(frozen=True, kw_only=True)
class ShownConfig(JobConfig):
    """What the jobs take beyond that which show how far they are, and where their time went."""

    quiet: bool = option(False, "print nothing but warnings and errors")
    json: bool = option(False, "print a JSON object a line, for programs")
    trace: bool = option(False, "write trace.json, the timeline of all ranks, for ui.perfetto.dev")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quiet and self.json:
            raise UsageError("--quiet, --json: expected one of them. Got: both")

    @property
    def style(self) -> Style:
        """As ``Progress`` has it."""
        return "quiet" if self.quiet else "json" if self.json else "lines"


@dataclass(frozen=True, kw_only=True)
class StepConfig(JobConfig):
    """What one step of training on a data set depends on."""

    model: str = option("cnn", "cnn, mlp, resnet, or package.module:function of your own")
    batch_size: int = option(64, "global batch: examples a step, over all ranks together")
    optimizer: str = option("adam", "any Keras optimizer, by name")
    dtype: Dtype = option("float32", "precision of the computation; weights stay float32")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--batch-size", self.batch_size, 1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(StepConfig, ShownConfig):
    """What every training job takes. Two runs are comparable when these agree."""

    dataset: str = option("fashion_mnist", "data set that the shards must hold")
    data: Path | None = option(None, "folder of the shards (default: data/DATASET)", "DIR")
    epochs: int = option(5, "passes over the training set")
    out: Path | None = option(None, "folder for run.json (default: results/STRATEGY)", "DIR")
    resume: str = option(
        "auto", "auto: go on with an interrupted run in --out; never; or a checkpoint", "HOW"
    )
    checkpoint_every: int = option(
        0, "steps of an epoch between two checkpoints, beside those at its end (0: by time alone)", "STEPS"
    )
    checkpoint_minutes: float = option(5.0, "minutes between two checkpoints, at most", "MINUTES")
    on_nan: OnNan = option("stop", "when the loss becomes NaN: stop, or roll back and halve the rate")
    tensorboard: Path | None = option(None, "folder for TensorBoard's logs, one below it for each run", "DIR")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--epochs", self.epochs, 1)
        at_least("--checkpoint-every", self.checkpoint_every, 0)
        if not self.checkpoint_minutes > 0:
            raise UsageError(f"--checkpoint-minutes: expected more than 0. Got: {self.checkpoint_minutes}")

    @property
    def data_dir(self) -> Path:
        """Folder that holds ``manifest.json``."""
        return self.data if self.data is not None else Path("data") / self.dataset


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(TrainConfig):
    """What ``jobs/baseline.py`` takes beyond that."""

    tuned: bool = option(False, "Keras fit at its best: 32 steps an execution; recorded as strategy tuned")


@dataclass(frozen=True, kw_only=True)
class RanksConfig(TrainConfig, WatchedConfig):
    """What the jobs take beyond that which run as ranks; ``jobs/multiworker.py`` takes no more."""


@dataclass(frozen=True, kw_only=True)
class MpiConfig(RanksConfig):
    """What ``jobs/mpi.py`` takes beyond that."""

    average: Average | None = option(
        None,
        "weights after an update, gradients before it, or weights and the optimizer's slots (default: "
        "weights; gradients with a --collective that is of those)",
    )
    collective: Collective = option(
        "auto",
        f"how ranks exchange. For speed alone: {_described(changes_result=False)}. These change the result: "
        f"{_described(changes_result=True)}",
    )
    every: int | None = option(
        None, "steps between two averages (not of gradients; above 1 is local SGD; default: 1; diloco: 32)"
    )
    post_local_from: int = option(
        1, "epoch from which on --every counts; before it every step is averaged (post-local SGD)", "EPOCH"
    )
    accumulate: int = option(
        1, "pieces in which a rank takes its part of a step, one after another, for less memory"
    )
    sync_batchnorm: bool = option(False, "BatchNorm over the global batch, where ranks take their own parts")
    lr_scaling: Scaling = option("none", "how the learning rate grows with the global batch, from 64 on")
    warmup_epochs: float = option(0.0, "epochs in which it rises there from its value for 64", "EPOCHS")
    powersgd_rank: int = option(4, "of the matrices that powersgd sends", "RANK")
    topk_part: float = option(0.03, "of the gradient's numbers that topk sends", "PART")
    outer_rate: float = option(0.7, "learning rate of diloco's outer optimizer", "RATE")
    outer_momentum: float = option(0.9, "its Nesterov momentum", "BETA")
    autotune: bool = option(
        False, "measure first which all-reduce and how many threads are fastest; the result stays what it is"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # What was not said becomes what is meant, so that nothing else has to know.
        way = WAYS[self.collective]
        if self.average is None:
            object.__setattr__(self, "average", way.averages[0])
        if self.every is None:
            object.__setattr__(self, "every", way.every)
        assert self.every is not None
        at_least("--every", self.every, 1)
        self._check_collective()
        at_least("--post-local-from", self.post_local_from, 1)
        at_least("--accumulate", self.accumulate, 1)
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise UsageError(
                f"--warmup-epochs: expected 0 to --epochs {self.epochs}. Got: {self.warmup_epochs:g}"
            )
        if self.warmup_epochs and self.lr_scaling == "none":
            raise UsageError(
                "--warmup-epochs: there is nothing to rise to without scaling",
                remedy="--lr-scaling linear, or leave --warmup-epochs out",
            )
        if self.post_local_from > 1 and self.every == 1:
            raise UsageError(
                f"--post-local-from: --every says how many steps are local from then on. "
                f"Got: --every 1 from epoch {self.post_local_from}",
                remedy="--every 8, for example",
            )
        if self.average == "gradients" and self.every != 1:
            raise UsageError(
                f"--every: gradients are averaged at every step. Got: --every {self.every}",
                remedy="--average weights, or leave --every out",
            )

    def _check_collective(self) -> None:
        way, name = WAYS[self.collective], self.collective
        if self.average not in way.averages:
            raise UsageError(
                f"--average: expected {' or '.join(way.averages)} with --collective {name}. "
                f"Got: {self.average}",
                remedy="leave --average out",
            )
        if self.every != 1 and not way.local:
            raise UsageError(
                f"--every: --collective {name} exchanges at every step. Got: --every {self.every}",
                remedy="leave --every out",
            )
        if name == "buckets" and (self.accumulate > 1 or self.sync_batchnorm):
            flag = "--accumulate" if self.accumulate > 1 else "--sync-batchnorm"
            raise UsageError(
                f"--collective buckets: layers are averaged while others are computed, which {flag} does not "
                f"allow",
                remedy=f"--collective plain, or leave {flag} out",
            )
        if name == "diloco" and self.post_local_from > 1:
            raise UsageError(
                f"--post-local-from: --collective diloco goes apart from the first epoch on. "
                f"Got: {self.post_local_from}",
                remedy="leave it out",
            )
        if self.autotune and name != "auto":
            raise UsageError(
                f"--autotune chooses the collective itself. Got: --collective {name}",
                remedy="leave one of them out",
            )
        at_least("--powersgd-rank", self.powersgd_rank, 1)
        if not 0 < self.topk_part <= 1:
            raise UsageError(f"--topk-part: expected more than 0, at most 1. Got: {self.topk_part:g}")
        if not 0 < self.outer_rate < float("inf"):
            raise UsageError(f"--outer-rate: expected more than 0. Got: {self.outer_rate:g}")
        if not 0 <= self.outer_momentum < 1:
            raise UsageError(f"--outer-momentum: expected 0 to below 1. Got: {self.outer_momentum:g}")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for other, its in WAYS.items():
            for setting in set(its.parameters) - set(way.parameters):
                if getattr(self, setting) != defaults[setting]:
                    flag = "--" + setting.replace("_", "-")
                    raise UsageError(
                        f"{flag} is of --collective {other}. Got: --collective {name}",
                        remedy=f"--collective {other}, or leave it out",
                    )

    @property
    def exchange(self) -> dict[str, Any]:
        """What of the exchange decides the result, beside what is averaged and how often."""
        if not WAYS[self.collective].changes_result:
            return {}
        parameters = WAYS[self.collective].parameters
        return {"collective": self.collective, **{name: getattr(self, name) for name in parameters}}

    @property
    def rate_factor(self) -> float:
        """What the learning rate is multiplied by for its batch (Goyal et al. 2017, arXiv:1706.02677)."""
        power = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}[self.lr_scaling]
        return float((self.batch_size / _REFERENCE_BATCH) ** power)


@dataclass(frozen=True, kw_only=True)
class PipelineConfig(RanksConfig):
    """What ``jobs/pipeline.py`` takes beyond that."""

    stages: int | None = option(
        None, "into which the model is cut; further ranks make copies of it (default: as many as fit)"
    )
    micro_batches: int = option(4, "parts in which a step's examples flow through the stages")
    cut: str | None = option(
        None, "layers that stages end with, with commas (default: so that they take the same time)", "LAYERS"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stages is not None:
            at_least("--stages", self.stages, 1)
        at_least("--micro-batches", self.micro_batches, 1)


@dataclass(frozen=True, kw_only=True)
class FederatedConfig(RanksConfig):
    """What ``jobs/federated.py`` takes beyond that."""

    batch_size: int = option(64, "examples of a step of one client")
    epochs: int = option(5, "rounds: in each, the clients train and their models are averaged")
    fraction: float = option(1.0, "part of the clients that is drawn for a round", "PART")
    local_epochs: int = option(1, "passes of a client over its data in a round")
    proximal: float = option(0.0, "FedProx: how strongly clients are held to the server's model", "MU")
    server_momentum: float = option(0.0, "FedAvgM: momentum of the server's step", "BETA")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--local-epochs", self.local_epochs, 1)
        if not 0 < self.fraction <= 1:
            raise UsageError(f"--fraction: expected more than 0, at most 1. Got: {self.fraction:g}")
        if not 0 <= self.proximal < float("inf"):
            raise UsageError(f"--proximal: expected 0 or more. Got: {self.proximal:g}")
        if not 0 <= self.server_momentum < 1:
            raise UsageError(f"--server-momentum: expected 0 to below 1. Got: {self.server_momentum:g}")


@dataclass(frozen=True, kw_only=True)
class ReinforcementConfig(WatchedConfig, ShownConfig):
    """What ``jobs/reinforcement.py`` takes."""

    num_envs: int = option(64, "environments, over all ranks together")
    batch_size: int = option(16384, "steps of the environments between two updates, over all ranks together")
    updates: int = option(50, "times that the policy is improved")
    learning_rate: float = option(0.01, "step size of Adam at the start; it falls evenly to 0")
    seed: int = option(1, "seed of the weights, the environments and the choice of actions")
    out: Path = option(Path("results/reinforcement"), "folder for reinforcement.json and reward.png", "DIR")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--num-envs", self.num_envs, 1)
        at_least("--updates", self.updates, 1)
        # Each environment takes as many steps as the others, and as many in each minibatch.
        whole = NUM_MINIBATCHES * self.num_envs
        if self.batch_size < 1 or self.batch_size % whole:
            raise UsageError(
                f"--batch-size: expected a multiple of {whole}, which is one step of each environment for "
                f"each of {NUM_MINIBATCHES} minibatches. Got: {self.batch_size}",
                remedy=f"--batch-size {max(1, -(-self.batch_size // whole)) * whole}, or other --num-envs",
            )

    @property
    def num_steps(self) -> int:
        """Steps of each environment between two updates."""
        return self.batch_size // self.num_envs


@dataclass(frozen=True, kw_only=True)
class DevicesConfig(TrainConfig):
    """What the strategies over the devices of one process take beyond that."""

    devices: int | None = option(None, "GPUs, or logical CPU devices (default: all GPUs, else one a core)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.devices is not None:
            at_least("--devices", self.devices, 1)


def at_least(flag: str, value: int, smallest: int) -> None:
    """Raises ``UsageError`` when ``value`` is below ``smallest``."""
    if value < smallest:
        raise UsageError(f"{flag}: expected at least {smallest}. Got: {value}")


def one_example_a_rank(batch_size: int, num_ranks: int) -> None:
    """Raises ``UsageError`` when a global batch does not go round."""
    if batch_size < num_ranks:
        raise UsageError(
            f"--batch-size is the global batch: expected at least one example for each of the "
            f"{num_ranks} ranks. Got: {batch_size}"
        )


def one_environment_a_rank(num_envs: int, num_ranks: int) -> None:
    """Raises ``UsageError`` when the environments do not go round."""
    if num_envs < num_ranks:
        raise UsageError(
            f"--num-envs counts the environments of all ranks: expected at least one for each of the "
            f"{num_ranks} ranks. Got: {num_envs}",
            remedy=f"--num-envs {num_ranks}, or fewer ranks",
        )


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each flag's default; where that is none, the help says what is done instead."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ``UsageError`` instead of printing, and knows the near names.

    Raising matters under MPI, where every rank parses the same words but one alone may speak.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **kwargs)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=3, cutoff=0.7)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(
                f"unknown argument. Got: {' '.join(unknown)}.{hint}", remedy=f"{self.prog} --help"
            )
        return parsed

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, remedy=f"{self.prog} --help")


Config = TypeVar("Config", bound="DataclassInstance")


def add_options(parser: argparse._ActionsContainer, kind: type[DataclassInstance]) -> None:
    """Adds one flag to ``parser`` for each field of ``kind``, a dataclass of ``option`` fields."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        flag = "--" + field.name.replace("_", "-")
        if hints[field.name] is bool:
            parser.add_argument(flag, action="store_true", help=field.metadata["help"])
            continue
        value_type, choices = _value_type(hints[field.name])
        parser.add_argument(
            flag,
            default=field.default,
            type=value_type,
            choices=choices,
            metavar=field.metadata["metavar"] if choices is None else None,
            help=field.metadata["help"],
        )


def _value_type(hint: Any) -> tuple[Any, tuple[str, ...] | None]:
    """The callable that reads a flag of type ``hint`` from text, and its choices if it has any."""
    if typing.get_origin(hint) is not Literal:
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        hint = inner[0] if inner else hint
    return (str, typing.get_args(hint)) if typing.get_origin(hint) is Literal else (hint, None)


def parse(kind: type[Config], argv: Sequence[str] | None = None, *, description: str, prog: str) -> Config:
    """Reads a ``kind`` from the command line.

    Raises:
        UsageError: an unknown flag, or a value outside its range.
        SystemExit: after ``--help``.
    """
    parser = Parser(prog=prog, description=description)
    add_options(parser, kind)
    return kind(**vars(parser.parse_args(sys.argv[1:] if argv is None else argv)))


def as_flags(config: DataclassInstance) -> list[str]:
    """The command line that makes an equal config: only what differs from the defaults."""
    flags: list[str] = []
    usual = type(config)()  # some defaults follow from other settings
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != getattr(usual, field.name):
            flag = "--" + field.name.replace("_", "-")
            flags += [flag] if value is True else [flag, str(value)]
    return flags


def as_dict(config: DataclassInstance) -> dict[str, Any]:
    """The config as JSON can hold it."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}
