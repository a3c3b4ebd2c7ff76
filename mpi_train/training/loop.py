"""The loop over chunks of steps: the host gets its turn between chunks, about every half second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mpi_train.collectives.averaging import Nothing
from mpi_train.collectives.traffic import Traffic
from mpi_train.monitor import timeline
from mpi_train.runtime.world import World
from mpi_train.training.steps import Steps
from mpi_train.training.totals import EpochTotals, RankTimes

CHUNK_S = 0.5
"""Seconds that a chunk of steps should take."""


@dataclass(frozen=True)
class Chunk:
    """Steps ``first`` to ``stop`` of an epoch, as one rank saw them.

    Attributes:
        elapsed_s: Duration of the steps.
        loss: Mean over their examples.
        finite: True if the loss and the weights are.
        count: Number of examples.
        exchange_s: Part of ``elapsed_s`` in exchanges with other ranks, waiting included; NaN if unknown.
    """

    first: int
    stop: int
    elapsed_s: float
    loss: float
    finite: bool
    count: int = 0
    exchange_s: float = math.nan


class ChunkCallback:
    """Callback between chunks of steps. This one lets them run."""

    def limit(self, first: int, stop: int) -> int:
        """Return the step at which a chunk from step ``first`` must end, at most ``stop``."""
        return stop

    def after(self, chunk: Chunk, world: World) -> tuple[float, bool]:
        """Act on a finished chunk, on all ranks together.

        Returns:
            Seconds of the chunk on the slowest rank, and True to pause: the same on all ranks.
        """
        return world.maximum(chunk.elapsed_s), False

    def pause(self, step: int, so_far: EpochTotals) -> None:
        """Act on a pause before the end of the epoch, on all ranks together. May raise."""


def run_chunks(
    run_steps: Callable[[int, int], tuple[float, float]],
    steps: Steps,
    world: World,
    callback: ChunkCallback,
    *,
    weights: Callable[[], Sequence[np.ndarray]],
    averaging: Nothing | None = None,
    first: int = 0,
    counts: bool = True,
) -> EpochTotals:
    """Run the steps of one epoch in chunks, from step ``first`` on, on all ranks together.

    Args:
        run_steps: Function that trains the steps between two numbers. It returns the sums of the loss and of
            the correct predictions over this rank's examples.
        steps: Layout of the rank's examples in steps.
        world: The ranks.
        callback: Called between chunks.
        weights: Function that returns this rank's weights, to check them for NaN.
        averaging: Records of the exchanges between ranks; None if there are none.
        counts: True if this rank's examples count in the sums over all ranks.
    """
    meter = _Meter(world, averaging)
    exchange_s = averaging.exchange_s if averaging is not None else Nothing().exchange_s
    length = 8
    with timeline.phase("host"):
        while first < len(steps):
            stop = callback.limit(first, min(first + length, len(steps)))
            exchanged_s = exchange_s()
            start = time.perf_counter()
            with timeline.phase("compute", first, stop):
                loss, correct = run_steps(first, stop)
                if averaging is not None:
                    averaging.finish()
            elapsed = time.perf_counter() - start
            exchanged_s = exchange_s() - exchanged_s
            count = steps[first:stop].num_examples
            meter.add(elapsed, *((loss, correct, count) if counts else ()))
            finite = bool(np.isfinite(loss)) and all(np.isfinite(array).all() for array in weights())
            mean_loss, counted = loss / max(1, count), count if counts else 0
            slowest_s, pause = callback.after(
                Chunk(first, stop, elapsed, mean_loss, finite, counted, exchanged_s), world
            )
            if pause and stop < len(steps):
                with timeline.phase("checkpoint"):
                    callback.pause(stop, meter.totals())
                    meter.start()
            length = max(1, int((stop - first) * CHUNK_S / slowest_s))
            first = stop
    return meter.totals()


class _Meter:
    """Sums of an epoch's loss, correct predictions and times. Its clock stops while the callback runs."""

    def __init__(self, world: World, averaging: Nothing | None) -> None:
        self._world, self._averaging = world, averaging
        self._sums = np.zeros(3)
        self._graph_s = self._train_s = 0.0
        self._traffic = Traffic()
        if averaging is not None:
            averaging.take_traffic(world)  # discards what happened before this epoch
        self.start()

    def start(self) -> None:
        """Start the clock on all ranks together."""
        self._world.barrier()
        self._begin = time.perf_counter()

    def add(self, graph_s: float, loss: float = 0.0, correct: float = 0.0, count: int = 0) -> None:
        """Add a chunk."""
        self._sums += (loss, correct, count)
        self._graph_s += graph_s

    def totals(self) -> EpochTotals:
        """Stop the clock and return the totals so far over all ranks, on all ranks together."""
        self._train_s += time.perf_counter() - self._begin
        world = self._world
        by_rank: list[RankTimes] = []
        if self._averaging is not None:
            self._traffic += self._averaging.take_traffic(world)
            by_rank = world.gather_all(
                RankTimes(
                    compute_s=self._graph_s - self._traffic.moving_s - self._traffic.waiting_s,
                    moving_s=self._traffic.moving_s,
                    waiting_s=self._traffic.waiting_s,
                    host_s=self._train_s - self._graph_s,
                    sent_bytes=self._traffic.sent_bytes,
                    hidden_s=self._traffic.hidden_s,
                )
            )
        loss, correct, count = world.sum(self._sums)
        return EpochTotals(
            loss=float(loss),
            correct=float(correct),
            count=int(count),
            train_s=world.maximum(self._train_s),
            by_rank=by_rank,
        )
