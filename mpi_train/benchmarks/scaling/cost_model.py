"""Cost of collectives: formulas in Hockney's model of a network.

A message of b bytes takes alpha + b * beta: a latency, and seconds a byte (Hockney 1994, "The communication
challenge for MPP"). A rank can send and receive at once. The all-reduces are those of Thakur, Rabenseifner,
Gropp 2005, "Optimization of Collective Communication Operations in MPICH"; the ring is that of Patarasuk,
Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations". The measured beta contains
the cost of the additions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Network:
    """Network between nodes.

    After a pause, ``burst_bytes`` can be sent at once before the rate applies: cloud networks and ``tc tbf``
    give a link a bucket that fills at its rate while nothing is sent.
    """

    latency_s: float
    seconds_per_byte: float
    burst_bytes: float = 0.0

    def saved_s(self, pause_s: float) -> float:
        """Return the seconds that a pause of ``pause_s`` without traffic saves."""
        return min(self.burst_bytes * self.seconds_per_byte, pause_s)

    def after_pause(self, transfer: Transfer, pause_s: float) -> float:
        """Return the seconds that ``transfer`` takes between nodes, after ``pause_s`` without traffic."""
        sending_s = max(0.0, transfer.num_bytes * self.seconds_per_byte - self.saved_s(pause_s))
        return transfer.rounds * self.latency_s + sending_s


class Transfer(NamedTuple):
    """Consecutive messages between nodes and bytes that leave a node; the same for a rank within its node."""

    rounds: float
    num_bytes: float
    rounds_within: float = 0
    bytes_within: float = 0


@dataclass(frozen=True)
class Shape:
    """Layout of the ranks: ``nodes`` with ``per_node`` consecutive ranks each."""

    nodes: int
    per_node: int = 1

    @property
    def ranks(self) -> int:
        return self.nodes * self.per_node


Formula = Callable[[float, Shape], Transfer]
"""Function of the bytes of a rank's vector and of the layout."""


def ring(num_bytes: float, shape: Shape) -> Transfer:
    """Reduce-scatter and all-gather around the ring; one rank of a node sends to the next node."""
    rounds, sent = 2 * (shape.ranks - 1), 2 * num_bytes * _all_but_one(shape.ranks)
    return Transfer(rounds, sent) if shape.nodes > 1 else Transfer(0, 0, rounds, sent)


def recursive_doubling(num_bytes: float, shape: Shape) -> Transfer:
    """Exchange the whole vector with ranks at distance 1, 2, 4, ...."""
    across, within = sum(_doublings(shape.nodes)), sum(_doublings(shape.per_node))
    return Transfer(across, num_bytes * shape.per_node * across, within, num_bytes * within)


def halving_doubling(num_bytes: float, shape: Shape) -> Transfer:
    """Rabenseifner's reduce-scatter by halves and all-gather by doubling, near ranks first."""
    found: list[float] = []
    for rounds, extra in (_doublings(shape.nodes), _doublings(shape.per_node)):
        found += [2 * rounds + extra, num_bytes * (2 * _all_but_one(2**rounds) + extra)]
    return Transfer(*found)


ALL_REDUCES: dict[str, Formula] = {
    "ring": ring,
    "recursive doubling": recursive_doubling,
    "halving and doubling": halving_doubling,
}


def hierarchical(num_bytes: float, shape: Shape) -> Transfer:
    """Reduce-scatter within nodes, halving and doubling of each rank's block across, all-gather within."""
    if shape.nodes == 1:
        return ring(num_bytes, shape)
    across = halving_doubling(num_bytes, Shape(shape.nodes))
    within = 2 * num_bytes * _all_but_one(shape.per_node)
    return Transfer(across.rounds, across.num_bytes, 2 * min(1, shape.per_node - 1), within)


def all_gather(num_bytes: float, shape: Shape) -> Transfer:
    """Send ``num_bytes`` of each rank to every other rank, by doubling."""
    across, within, others = sum(_doublings(shape.nodes)), sum(_doublings(shape.per_node)), shape.nodes - 1
    own, foreign = shape.ranks - 1 - others, shape.per_node * others
    return Transfer(across, num_bytes * foreign, within, num_bytes * own)


def all_to_all(num_bytes: float, shape: Shape) -> Transfer:
    """Send a block to every rank, and gather the sums around a ring, each once for a node."""
    if shape.nodes == 1:
        return ring(num_bytes, shape)
    outward = num_bytes * shape.per_node * _all_but_one(shape.nodes)
    return Transfer(2 * (shape.ranks - 1), outward + num_bytes * _all_but_one(shape.ranks))


def neighbour(num_bytes: float, shape: Shape) -> Transfer:
    """Send one message to one other rank, on another node if there is one."""
    if shape.nodes > 1:
        return Transfer(1, num_bytes * shape.per_node)
    within = min(1, shape.per_node - 1)
    return Transfer(0, 0, within, num_bytes * within)


@dataclass(frozen=True)
class Pattern:
    """Cost pattern of a collective, which ``cost`` in its registry entry names.

    Attributes:
        formula: Formula of an exchange; None for the fastest of ``ALL_REDUCES``, as MPI chooses.
        num_messages: Messages that the payload is split into; None for as many as there are buckets.
        overlap: Fraction of the computation of a step that can hide the communication.
    """

    formula: Formula | None = None
    num_messages: int | None = 1
    overlap: float = 0.0


PATTERNS = {
    "all-reduce": Pattern(),
    "two all-reduces": Pattern(num_messages=2),
    # Overlap with the backward pass, two thirds of a step, without the time up to the first gradient.
    "bucketed all-reduces": Pattern(num_messages=None, overlap=0.6),
    "delayed all-reduce": Pattern(overlap=1.0),
    "hierarchical": Pattern(hierarchical),
    "all-to-all": Pattern(all_to_all),
    "all-gather": Pattern(all_gather),
    "neighbour": Pattern(neighbour),
}


def expected_maximum(samples: Sequence[float], count: int) -> float:
    """Return the mean of the largest of ``count`` draws from ``samples``.

    The i-th smallest of N samples is the largest draw with probability (i/N)^count - ((i-1)/N)^count.
    """
    edges = (np.arange(len(samples) + 1) / len(samples)) ** count
    return float(np.sort(samples) @ np.diff(edges))


def _doublings(size: int) -> tuple[int, int]:
    """Return the rounds of the largest power of two, and those in which further ranks join and leave."""
    rounds = size.bit_length() - 1
    return rounds, 0 if size == 2**rounds else 2


def _all_but_one(size: int) -> float:
    return (size - 1) / size
