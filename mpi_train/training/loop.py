"""The loop over chunks of steps: the host gets its turn between chunks, about every half second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from mpi_train.collectives.averaging import Averaging, NoAveraging
from mpi_train.collectives.exchange_log import Traffic
from mpi_train.monitor import timeline
from mpi_train.runtime.world import World
from mpi_train.training.totals import EpochTotals, RankTimes

CHUNK_S = 0.5
"""Seconds that a chunk of steps should take."""

RunSteps: TypeAlias = Callable[[int, int], tuple[float, float, int]]
"""Function that trains the steps between two numbers. It returns the sums of the loss and of the correct
predictions over this rank's examples in them, and the number of examples that it counts for all ranks."""


@dataclass(frozen=True)
class Chunk:
    """Steps ``first`` to ``stop`` of an epoch, as one rank saw them.

    Attributes:
        elapsed_s: Duration of the steps.
        loss, count: Mean over their examples, and number of examples.
        finite: True if the loss and the weights are.
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
    run_steps: RunSteps,
    num_steps: int,
    world: World,
    callback: ChunkCallback,
    *,
    weights: Callable[[], Sequence[np.ndarray]],
    averaging: Averaging | None = None,
    first: int = 0,
) -> EpochTotals:
    """Run the steps of one epoch in chunks, from step ``first`` on, on all ranks together.

    Args:
        run_steps, num_steps: Function that trains some of the steps, and number of all.
        world, callback: The ranks, and the callback between chunks.
        weights: Function that returns this rank's weights, to check them for NaN.
        averaging: Records of the exchanges between ranks; None if there are none.
        first: Number of finished steps.
    """
    meter = _Meter(world, averaging)
    exchange_s = averaging.exchange_s if averaging is not None else NoAveraging().exchange_s
    length = 8
    with timeline.phase("host"):
        while first < num_steps:
            stop = callback.limit(first, min(first + length, num_steps))
            exchanged_s = exchange_s()
            start = time.perf_counter()
            with timeline.phase("compute", first, stop):
                loss, correct, count = run_steps(first, stop)
                if averaging is not None:
                    averaging.finish()
            elapsed = time.perf_counter() - start
            exchanged_s = exchange_s() - exchanged_s
            meter.sums += (loss, correct, count)
            meter.graph_s += elapsed
            finite = bool(np.isfinite(loss)) and all(np.isfinite(array).all() for array in weights())
            chunk = Chunk(first, stop, elapsed, loss / max(1, count), finite, count, exchanged_s)
            slowest_s, pause = callback.after(chunk, world)
            if pause and stop < num_steps:
                with timeline.phase("checkpoint"):
                    callback.pause(stop, meter.totals())
                    meter.start()
            length = max(1, int((stop - first) * CHUNK_S / slowest_s))
            first = stop
    return meter.totals()


class _Meter:
    """Sums of an epoch's loss, correct predictions, examples and times. The clock stops for a pause."""

    def __init__(self, world: World, averaging: Averaging | None) -> None:
        self._world, self._averaging = world, averaging
        self.sums = np.zeros(3)
        self.graph_s = self._train_s = 0.0
        self._traffic = Traffic()
        if averaging is not None:
            averaging.take_traffic(world)  # discards what happened before this epoch
        self.start()

    def start(self) -> None:
        """Start the clock on all ranks together."""
        self._world.barrier()
        self._begin = time.perf_counter()

    def totals(self) -> EpochTotals:
        """Stop the clock and return the totals so far over all ranks, on all ranks together."""
        self._train_s += time.perf_counter() - self._begin
        world = self._world
        by_rank: list[RankTimes] = []
        if self._averaging is not None:
            self._traffic = sent = self._traffic + self._averaging.take_traffic(world)
            compute_s, host_s = self.graph_s - sent.moving_s - sent.waiting_s, self._train_s - self.graph_s
            by_rank = world.gather_all(
                RankTimes(compute_s, sent.moving_s, sent.waiting_s, host_s, sent.sent_bytes, sent.hidden_s)
            )
        loss, correct, count = world.sum(self.sums).tolist()
        train_s = world.maximum(self._train_s)
        return EpochTotals(loss=loss, correct=correct, count=int(count), train_s=train_s, by_rank=by_rank)
