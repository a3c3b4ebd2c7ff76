"""What exchanging with other ranks comes to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_train.runtime.world import World


@dataclass(frozen=True)
class Traffic:
    """What exchanging with other ranks has come to on one rank.

    Attributes:
        moving_s: While bytes moved and the step stood still.
        waiting_s: Before that, for ranks that were not yet there.
        sent_bytes: What this rank sent.
        hidden_s: While bytes moved and the step went on.
    """

    moving_s: float = 0.0
    waiting_s: float = 0.0
    sent_bytes: int = 0
    hidden_s: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.moving_s + other.moving_s,
            self.waiting_s + other.waiting_s,
            self.sent_bytes + other.sent_bytes,
            self.hidden_s + other.hidden_s,
        )


def moving_s(durations: np.ndarray, world: World) -> np.ndarray:
    """Of the seconds that each exchange took on this rank, those in which bytes moved: float64 (n,).

    No clocks are compared: the rank that comes last to an all-reduce waits for nobody, so that the
    shortest of the ranks' durations is what moving the bytes took, and the rest is waiting. On all ranks
    together.
    """
    return np.asarray(np.min(world.gather_all(durations), axis=0))
