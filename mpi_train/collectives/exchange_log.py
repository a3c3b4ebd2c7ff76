"""Log of a collective's exchanges, from which every figure about them is computed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, TypeVar

import numpy as np

from mpi_train.monitor import timeline
from mpi_train.runtime.watchdog import activity
from mpi_train.runtime.world import World

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Traffic:
    """Times and bytes of one rank's exchanges with other ranks.

    Attributes:
        moving_s: Seconds in which bytes moved and the step stood still.
        waiting_s: Seconds before that, for ranks that had not arrived.
        sent_bytes: Bytes that this rank sent.
        hidden_s: Seconds in which bytes moved while the rank computed.
    """

    moving_s: float = 0.0
    waiting_s: float = 0.0
    sent_bytes: int = 0
    hidden_s: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


class ExchangeLog:
    """Log of the calls in which a step stands still to exchange with other ranks.

    A collective wraps the function that a step calls by ``call``, and what is done within it by ``part``.
    From these come the traffic, the activity that the watchdog reports, and the spans of the timeline.

    Attributes:
        bytes_per_call: Bytes that this rank sends in one call, the sum over its parts.
        total_s: Seconds in all calls so far, waiting included.
    """

    def __init__(self) -> None:
        self.bytes_per_call = 0
        self.total_s = 0.0
        self._durations: list[float] = []

    def call(self, function: Function) -> Function:
        """Return ``function`` with its calls logged."""
        clock, durations = time.perf_counter, self._durations

        def logged(*args: Any) -> Any:
            start = clock()
            activity.calls += 1
            activity.inside = True
            try:
                result = function(*args)
            except Exception as error:
                # Under MPI this ends all ranks. TensorFlow would bury the error in its own tracebacks.
                sys.excepthook(type(error), error, error.__traceback__)
                raise
            activity.inside = False
            duration = clock() - start
            durations.append(duration)
            self.total_s += duration
            return result

        return logged  # type: ignore[return-value]

    def part(self, kind: str, function: Function, *, num_bytes: int = 0, **how: Any) -> Function:
        """Return ``function``, one part of a call, with its calls logged; arguments as of ``traced``."""
        self.bytes_per_call += num_bytes
        return timeline.traced(kind, function, num_bytes=num_bytes, **how)

    def take_durations(self) -> np.ndarray:
        """Return and forget the seconds of each call since this was last called, waiting included."""
        durations = np.array(self._durations, np.float64)
        self._durations.clear()
        return durations

    def take_traffic(self, world: World) -> Traffic:
        """Return the traffic since this was last called, on all ranks of ``world`` together."""
        durations = self.take_durations()
        moving_s = float(shortest(durations, world).sum())
        return Traffic(moving_s, float(durations.sum()) - moving_s, len(durations) * self.bytes_per_call)


def shortest(durations: np.ndarray, world: World) -> np.ndarray:
    """Return the seconds in which bytes moved, of exchanges that took ``durations`` on this rank.

    The last rank to arrive waits for nobody: the shortest of the ranks' durations is what the exchange itself
    took, and the rest is waiting. So no clocks are compared. On all ranks together.
    """
    return np.asarray(np.min(world.gather_all(durations), axis=0))
