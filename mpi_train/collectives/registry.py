"""The ways in which ranks may exchange, by the name that ``--collective`` gives them; without TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """One of them.

    Attributes:
        text: What it does, in a few words.
        averages: What it can average, as ``--average`` has it; the first where that is not said.
        changes_result: Whether the training takes another course than with ``plain``, beyond rounding.
        every: Steps between two exchanges, where ``--every`` does not say.
        local: Whether ``--every`` may be above 1.
        parameters: Further settings of ``MpiConfig`` that it takes.
    """

    text: str
    averages: tuple[str, ...]
    changes_result: bool = False
    every: int = 1
    local: bool = False
    parameters: tuple[str, ...] = ()


_ANYTHING = ("weights", "gradients", "weights+slots")

WAYS = {
    "auto": Way("through shared memory on one node, else plain", _ANYTHING, local=True),
    "plain": Way("MPI's own all-reduce", _ANYTHING, local=True),
    "hierarchical": Way("shared memory within a node, then all-reduces between nodes", _ANYTHING, local=True),
    "buckets": Way("each layer's gradient as soon as it is there", ("gradients",)),
    "bfloat16": Way("16 bits on the wire, sums in 32", ("gradients",), changes_result=True),
    "powersgd": Way(
        "low-rank parts of the gradients", ("gradients",), changes_result=True, parameters=("powersgd_rank",)
    ),
    "topk": Way(
        "the largest parts of the gradients",
        ("gradients",),
        changes_result=True,
        parameters=("topk_fraction",),
    ),
    "delayed": Way("averages a step late, while the next computes", ("weights",), changes_result=True),
    "gossip": Way("with one other rank a step", ("weights",), changes_result=True),
    "diloco": Way(
        "every --every steps, with Nesterov momentum",
        ("weights",),
        changes_result=True,
        every=32,
        local=True,
        parameters=("outer_rate", "outer_momentum"),
    ),
}


def names(*, changes_result: bool) -> list[str]:
    """Those that do, or do not, change the result."""
    return [name for name, way in WAYS.items() if way.changes_result is changes_result]
