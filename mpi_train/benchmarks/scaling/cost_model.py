"""What exchanging costs: formulas alone, of Hockney's model of a network.

A message of b bytes takes alpha + b * beta: latency, and seconds a byte (Hockney 1994, "The communication
challenge for MPP"). A rank can send and receive at once. The all-reduces are those of Thakur,
Rabenseifner, Gropp 2005, "Optimization of Collective Communication Operations in MPICH"; the ring is that
of Patarasuk, Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations". What
adding costs is in the measured beta, which is that of an all-reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Network:
    """Attributes:
    latency_s: Of a message.
    seconds_per_byte: Of one that is long, sent and received at once.
    burst_bytes: What a rank sends at once after a pause, before that rate holds: networks of the cloud, and
        ``tc tbf``, give a link a bucket that fills at its rate while nothing is sent.
    """

    latency_s: float
    seconds_per_byte: float
    burst_bytes: float = 0.0

    def after_pause(self, moved: Moved, pause_s: float) -> float:
        """Seconds in which ``moved`` moves between nodes, after ``pause_s`` in which nothing did."""
        saved_s = min(self.burst_bytes * self.seconds_per_byte, pause_s)
        return moved.rounds * self.latency_s + max(0.0, moved.num_bytes * self.seconds_per_byte - saved_s)


@dataclass(frozen=True)
class Moved:
    """What one exchange comes to.

    Attributes:
        rounds: Messages one after another, between nodes.
        num_bytes: What leaves a node, one way.
        rounds_within, bytes_within: The same within a node, by rank.
    """

    rounds: float
    num_bytes: float
    rounds_within: float = 0
    bytes_within: float = 0

    def times(self, count: int) -> Moved:
        """``count`` of them, one after another."""
        return Moved(
            count * self.rounds, count * self.num_bytes, count * self.rounds_within, count * self.bytes_within
        )


@dataclass(frozen=True)
class Shape:
    """``nodes`` with ``per_node`` ranks each, in the order of the ranks."""

    nodes: int
    per_node: int = 1

    @property
    def ranks(self) -> int:
        return self.nodes * self.per_node


def ring(num_bytes: float, shape: Shape) -> Moved:
    """A reduce-scatter and an all-gather, round the ring; of a node's ranks one sends to the next node."""
    size = shape.ranks
    rounds, sent = 2 * (size - 1), 2 * num_bytes * (size - 1) / size
    return Moved(rounds, sent) if shape.nodes > 1 else Moved(0, 0, rounds, sent)


def recursive_doubling(num_bytes: float, shape: Shape) -> Moved:
    """The whole vector to and from ranks at distance 1, 2, 4, …."""
    rounds, extra = _doublings(shape.nodes)
    rounds_within, extra_within = _doublings(shape.per_node)
    return Moved(
        rounds + extra,
        num_bytes * shape.per_node * (rounds + extra),
        rounds_within + extra_within,
        num_bytes * (rounds_within + extra_within),
    )


def halving_doubling(num_bytes: float, shape: Shape) -> Moved:
    """Rabenseifner's: a reduce-scatter by halves and an all-gather by doubling, near ranks first."""
    rounds, extra = _doublings(shape.nodes)
    rounds_within, extra_within = _doublings(shape.per_node)
    return Moved(
        2 * rounds + extra,
        2 * num_bytes * _all_but_one(2**rounds) + num_bytes * extra,
        2 * rounds_within + extra_within,
        2 * num_bytes * _all_but_one(2**rounds_within) + num_bytes * extra_within,
    )


ALL_REDUCES: dict[str, Callable[[float, Shape], Moved]] = {
    "ring": ring,
    "recursive doubling": recursive_doubling,
    "halving and doubling": halving_doubling,
}


def hierarchical(num_bytes: float, shape: Shape) -> Moved:
    """Within the node a reduce-scatter, halving and doubling between the nodes, then an all-gather.

    All ranks of a node lead a part each, so that the node's link carries the vector once.
    """
    if shape.nodes == 1:
        return ring(num_bytes, shape)
    across = halving_doubling(num_bytes, Shape(shape.nodes))
    return Moved(
        across.rounds,
        across.num_bytes,
        2 * min(1, shape.per_node - 1),
        2 * num_bytes * _all_but_one(shape.per_node),
    )


def all_gather(num_bytes: float, shape: Shape) -> Moved:
    """``num_bytes`` of each rank to every other, by doubling."""
    rounds, extra = _doublings(shape.nodes)
    rounds_within, extra_within = _doublings(shape.per_node)
    return Moved(
        rounds + extra,
        num_bytes * shape.per_node * (shape.nodes - 1),
        rounds_within + extra_within,
        num_bytes * (shape.ranks - 1) - num_bytes * (shape.nodes - 1),
    )


def parts(num_bytes: float, shape: Shape) -> Moved:
    """An all-to-all of parts, which are added up, and an all-gather of the sums, round a ring."""
    size, per_node = shape.ranks, shape.per_node
    if shape.nodes == 1:
        return ring(num_bytes, shape)
    # To each rank of other nodes a part of its own; back, each part once into each node.
    outward = num_bytes * per_node * (size - per_node) / size
    return Moved(2 * (size - 1), outward + num_bytes * (size - 1) / size)


def neighbour(num_bytes: float, shape: Shape) -> Moved:
    """One message to one other rank, which is on another node if there is one."""
    if shape.nodes == 1:
        return Moved(0, 0, min(1, shape.per_node - 1), num_bytes * min(1, shape.per_node - 1))
    return Moved(1, num_bytes * shape.per_node)


def expected_maximum(samples: Sequence[float], count: int) -> float:
    """The mean of the largest of ``count`` draws from ``samples``.

    Exactly that of the samples' own distribution: the i-th smallest of N is the largest of ``count`` draws
    with probability (i/N)^count - ((i-1)/N)^count. It never exceeds the largest that was measured.
    """
    ordered = sorted(samples)
    edges = [(i / len(ordered)) ** count for i in range(len(ordered) + 1)]
    return sum(value * (high - low) for value, low, high in zip(ordered, edges, edges[1:], strict=False))


def _doublings(size: int) -> tuple[int, int]:
    """Rounds of the largest power of two in ``size``, and those in which ranks beyond it join and leave."""
    rounds = size.bit_length() - 1
    return rounds, 0 if size == 2**rounds else 2


def _all_but_one(size: int) -> float:
    return (size - 1) / size
