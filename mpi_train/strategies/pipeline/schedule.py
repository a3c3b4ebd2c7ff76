"""In which order a stage of a pipeline takes its micro-batches forward and backward."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Action(NamedTuple):
    """A pass of one micro-batch through one stage."""

    direction: Literal["forward", "backward"]
    micro_batch: int


def one_forward_one_backward(stage: int, num_stages: int, num_micro_batches: int) -> list[Action]:
    """The order "1F1B", flushed at the end of a step: Narayanan et al. 2021, arXiv:2104.04473, section 2.2.

    A stage takes as many micro-batches forward as there are stages after it, then one forward and one
    backward in turn. So it holds the activations of ``in_flight`` micro-batches, where taking all of them
    forward first would make it hold those of the whole step; the time is the same.
    """
    first = in_flight(stage, num_stages, num_micro_batches) - 1
    order = [Action("forward", i) for i in range(first)]
    for i in range(num_micro_batches):
        if first + i < num_micro_batches:
            order.append(Action("forward", first + i))
        order.append(Action("backward", i))
    return order


def in_flight(stage: int, num_stages: int, num_micro_batches: int) -> int:
    """The most micro-batches that have gone forward through a stage and not yet backward."""
    return min(num_stages - stage, num_micro_batches)


def bubble(num_stages: int, num_micro_batches: int) -> float:
    """The part of a step in which a stage has nothing to do, were all equally fast and sending free.

    Huang et al. 2019, arXiv:1811.06965, section 2.3.
    """
    return (num_stages - 1) / (num_micro_batches + num_stages - 1)
