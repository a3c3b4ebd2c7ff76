"""Collectives by the name that ``--collective`` gives them, with their options; without TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import at_least, option


@dataclass(frozen=True, kw_only=True)
class PowerSGDOptions:
    """Options of ``--collective powersgd``."""

    powersgd_rank: int = option(4, "rank of the low-rank gradient approximation", "RANK", changes_result=True)

    def __post_init__(self) -> None:
        at_least("--powersgd-rank", self.powersgd_rank, 1)


@dataclass(frozen=True, kw_only=True)
class TopKOptions:
    """Options of ``--collective topk``."""

    topk_fraction: float = option(
        0.03, "fraction of gradient entries to send", "FRACTION", changes_result=True, formerly="--topk-part"
    )

    def __post_init__(self) -> None:
        if not 0 < self.topk_fraction <= 1:
            raise UsageError(f"--topk-fraction: expected more than 0, at most 1. Got: {self.topk_fraction:g}")


@dataclass(frozen=True, kw_only=True)
class DiLoCoOptions:
    """Options of ``--collective diloco``."""

    outer_rate: float = option(0.7, "learning rate of the outer optimizer", "RATE", changes_result=True)
    outer_momentum: float = option(
        0.9, "Nesterov momentum of the outer optimizer", "BETA", changes_result=True
    )

    def __post_init__(self) -> None:
        if not 0 < self.outer_rate < float("inf"):
            raise UsageError(f"--outer-rate: expected more than 0. Got: {self.outer_rate:g}")
        if not 0 <= self.outer_momentum < 1:
            raise UsageError(f"--outer-momentum: expected 0 to below 1. Got: {self.outer_momentum:g}")


_ROOM = "mpi_train.collectives"


@dataclass(frozen=True, kw_only=True)
class Collective:
    """Entry of one collective. A new collective is its module and its entry, and nothing else.

    Attributes:
        text: Description in a few words.
        averages: Values of ``--average`` that it supports, its default first.
        changes_result: True if training takes another course than with ``plain``, beyond rounding.
        every: Steps between two exchanges, unless ``--every`` says otherwise.
        local: True if ``--every`` may be above 1.
        by_layer: True if layers are exchanged during the backward pass.
        options: Dataclass of its own options, or None.
        all_reduce: Function ``module:name`` that makes its all-reduce from the world and a vector length.
        factory: Function ``module:name`` that makes its averaging policy from ``averaging.Context``.
        cost: Pattern of what an exchange moves, one of those that ``plan`` implements.
    """

    text: str
    averages: tuple[str, ...] = ("weights", "gradients", "weights+slots")
    changes_result: bool = False
    every: int = 1
    local: bool = False
    by_layer: bool = False
    options: type | None = None
    all_reduce: str = f"{_ROOM}.hierarchical:mean_all_reduce"
    factory: str = f"{_ROOM}.averaging:make"
    cost: str = "all-reduce"


_of_gradients = partial(Collective, averages=("gradients",), changes_result=True)
_of_weights = partial(Collective, averages=("weights",), changes_result=True)

COLLECTIVES = {
    "auto": Collective(text="hierarchical on one node, else plain", local=True),
    "plain": Collective(text="MPI's own all-reduce", local=True, all_reduce=f"{_ROOM}.plain:PlainAllReduce"),
    "hierarchical": Collective(
        text="shared memory within a node, then all-reduces between nodes",
        local=True,
        all_reduce=f"{_ROOM}.hierarchical:HierarchicalAllReduce",
        cost="hierarchical",
    ),
    "buckets": Collective(
        text="each layer's gradient as soon as it is computed",
        averages=("gradients",),
        by_layer=True,
        factory=f"{_ROOM}.buckets:Buckets",
        cost="bucketed all-reduces",
    ),
    "bfloat16": _of_gradients(
        text="gradients sent in 16 bits, added in 32",
        all_reduce=f"{_ROOM}.bfloat16:BFloat16AllReduce",
        cost="all-to-all",
    ),
    "powersgd": _of_gradients(
        text="low-rank approximation of the gradients",
        options=PowerSGDOptions,
        factory=f"{_ROOM}.powersgd:PowerSGD",
        cost="two all-reduces",
    ),
    "topk": _of_gradients(
        text="largest entries of the gradients",
        options=TopKOptions,
        factory=f"{_ROOM}.topk:make",
        cost="all-gather",
    ),
    "delayed": _of_weights(
        text="average of the weights one step late, overlapped with computation",
        factory=f"{_ROOM}.delayed:Delayed",
        cost="delayed all-reduce",
    ),
    "gossip": _of_weights(
        text="weights exchanged with one other rank per step",
        factory=f"{_ROOM}.gossip:Gossip",
        cost="neighbour",
    ),
    "diloco": _of_weights(
        text="outer optimizer with Nesterov momentum every --every steps",
        every=32,
        local=True,
        options=DiLoCoOptions,
        factory=f"{_ROOM}.diloco:DiLoCo",
    ),
}
