"""Which number of nodes, and which way to exchange."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mpi_train.benchmarks.scaling.predict import Training

ENOUGH = 0.8
"""Efficiency below which more nodes are said not to pay."""


@dataclass(frozen=True)
class Advice:
    """Of some ways to exchange.

    Attributes:
        fastest: The training that ends first.
        cheapest: The one that takes the fewest node-hours; of equals, the fastest.
        efficient: The fastest of those at least ``ENOUGH`` efficient, on as many nodes as that holds for all
            fewer too.
        falls_at: The first number of nodes at which that way falls below; None where it never does.
    """

    fastest: Training
    cheapest: Training
    efficient: Training
    falls_at: int | None


def advise(trainings: Mapping[str, Sequence[Training]], ways: Iterable[str]) -> Advice:
    """What to take of ``ways``."""
    lines = [trainings[way] for way in ways]
    rows = [row for line in lines for row in line]
    efficient = min((_last_efficient(line) for line in lines), key=lambda row: row.train_s)
    line = trainings[efficient.way]
    after = line.index(efficient) + 1
    return Advice(
        fastest=min(rows, key=lambda row: row.train_s),
        cheapest=min(rows, key=lambda row: (round(row.node_hours, 9), row.train_s)),
        efficient=efficient,
        falls_at=line[after].shape.nodes if after < len(line) else None,
    )


def _last_efficient(line: Sequence[Training]) -> Training:
    last = line[0]
    for row in line[1:]:
        if row.efficiency < ENOUGH:
            break
        last = row
    return last
