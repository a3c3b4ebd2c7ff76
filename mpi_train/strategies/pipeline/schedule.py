"""Schedule of a pipeline stage: the order of the forward and backward passes of its micro-batches."""

from __future__ import annotations

from typing import Literal, TypeAlias

Action: TypeAlias = tuple[Literal["forward", "backward"], int]
"""A pass through one stage: its direction, and the number of the micro-batch."""


def one_forward_one_backward(stage: int, num_stages: int, num_micro_batches: int) -> list[Action]:
    """Return the schedule 1F1B with a flush after each step (Narayanan et al. 2021, arXiv:2104.04473, 2.2).

    A stage runs as many forward passes as there are stages after it, then one forward and one backward pass
    in turn. So it holds the activations of ``in_flight`` micro-batches. All forward passes first would take
    the same time and hold those of the whole step.
    """
    first = in_flight(stage, num_stages, num_micro_batches) - 1
    order: list[Action] = [("forward", i) for i in range(first)]
    for i in range(num_micro_batches):
        if first + i < num_micro_batches:
            order.append(("forward", first + i))
        order.append(("backward", i))
    return order


def in_flight(stage: int, num_stages: int, num_micro_batches: int) -> int:
    """Return the largest number of micro-batches between their forward and backward pass in a stage."""
    return min(num_stages - stage, num_micro_batches)


def bubble(num_stages: int, num_micro_batches: int) -> float:
    """Return the idle fraction of a step if all stages are equally fast and messages take no time.

    Huang et al. 2019, arXiv:1811.06965, section 2.3.
    """
    return (num_stages - 1) / (num_micro_batches + num_stages - 1)
