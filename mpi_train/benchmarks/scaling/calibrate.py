"""Calibration on one and two ranks: steps, all-reduces, and the spread of single steps."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import tensorflow as tf
from rich.console import Console

from mpi_train.benchmarks import timing
from mpi_train.benchmarks.config import MeasureConfig
from mpi_train.benchmarks.scaling import calibration as fits
from mpi_train.benchmarks.scaling.calibration import Calibration, Contention
from mpi_train.benchmarks.timing import BareAllReduce, TimedStep, Work
from mpi_train.collectives.buckets import BUCKET_BYTES, grouped
from mpi_train.collectives.config import ExchangeConfig
from mpi_train.runtime.errors import JobError
from mpi_train.runtime.world import World

T = TypeVar("T")

_NUM_SINGLE, _NUM_PAUSED = 200, 9
"""Numbers of steps, and of all-reduces after a pause, that are timed one by one."""


def while_others_sleep(world: World, works: bool, work: Callable[[World], T]) -> T:
    """Let the ranks that ``works`` do ``work`` in a world of theirs, while the others use no core.

    Returns the result of the first of them, and raises a ``JobError`` of any of them, on all ranks.
    """
    some, found = world.split(int(works)), []
    with world.together():
        try:
            found = [work(some)] if works else []
        finally:
            timing.sleep_until_all_arrive(world)
    return next(each[0] for each in world.gather_all(found) if each)


def calibrate(
    config: MeasureConfig, world: World, device: str, threads: int, collectives: Sequence[str], to: Console
) -> Calibration:
    """Measure on rank 0 and, if there is one, a second rank, while the others sleep; on all ranks together.

    Times whole steps with ``collectives``, which exchange at every step, and prints the progress ``to``.
    """
    # Each timed step has graphs of its own, and TensorFlow would warn of retracing.
    tf.get_logger().setLevel("ERROR")
    # A rank on another node if there is one, because more ranks will need the network between nodes.
    other = next((rank for rank, host in enumerate(world.hosts) if host != world.hosts[0]), 1)
    cores = timing.cores_of_node(world)

    def measure(pair: World) -> Calibration:
        return _Calibration(config, pair, device, to).measure(collectives, threads, cores)

    return while_others_sleep(world, world.rank in (0, other), measure)


class _Calibration:
    """Measurements of two ranks, or of one."""

    def __init__(self, config: MeasureConfig, pair: World, device: str, to: Console) -> None:
        self.config, self.pair, self.device, self.to = config, pair, device, to
        self.own_batch = max(1, config.batch_size // 2)
        self.local = {batch: self._step(batch) for batch in fits.batches_of(config.batch_size)}
        self.flat = self.local[self.own_batch].trainer.flat
        self.model_bytes = 4 * self.flat.num_padded

    def _step(self, own_batch: int, exchange: ExchangeConfig | None = None) -> TimedStep:
        return TimedStep(self.config, self.pair, self.device, own_batch * self.pair.size, exchange)

    def measure(self, collectives: Sequence[str], threads: int, cores: set[int]) -> Calibration:
        config, pair = self.config, self.pair
        # Nodes that are namespaces of one machine share its kernel, under host names of their own.
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        one_machine = pair.size > 1 and len(set(pair.gather_all(boot_id))) == 1
        self.to.print(f"measuring a step alone, with {', '.join(map(str, self.local))} examples a rank")
        alone_s = self._medians([Work(str(batch), step, alone=True) for batch, step in self.local.items()])
        uncontended = contended = None
        averaged: dict[str, TimedStep] = {}
        if pair.size > 1:
            for collective in collectives:
                self.to.print(f"measuring a step with {collective}")
                try:
                    with pair.together():
                        exchange = ExchangeConfig(collective=collective)
                        averaged[collective] = self._step(self.own_batch, exchange)
                except JobError:
                    continue  # not possible on these ranks, so its own step does not enter the prediction
            self.to.print("measuring two ranks at once, and all-reduces between them")
            # Ranks that are bound to cores have these only.
            own = set().union(*pair.gather_all(os.sched_getaffinity(0)))
            uncontended = self._contention(averaged, ranks_per_core=2 / len(own))
        payload = {collective: step.sent_bytes(8) for collective, step in averaged.items()}
        if one_machine:
            self.to.print("measuring two ranks on one core, as if there were more ranks than cores")
            with on_one_core(min(map(min, pair.gather_all(cores)))):
                contended = self._contention(averaged, ranks_per_core=2.0)
        return Calibration(
            step={name: getattr(config, name) for name in ("model", "batch_size", "optimizer", "dtype")},
            model_bytes=self.model_bytes,
            num_buckets=len(grouped([4 * size for size in self.flat.sizes], BUCKET_BYTES)),
            hosts=pair.hosts,
            threads=threads,
            cores=len(pair.gather_all(cores)[0]),
            one_machine=one_machine,
            alone_s={int(batch): median_s for batch, median_s in alone_s.items()},
            relative_s=self._relative(),
            uncontended=uncontended,
            contended=contended,
            payload=payload,
        )

    def _medians(self, works: Sequence[Work]) -> dict[str, float]:
        times = timing.time_in_turn(works, self.pair, repeats=self.config.repeats, share=0.5)
        return {name: statistics.median(samples) for name, samples in times.items()}

    def _contention(self, averaged: dict[str, TimedStep], *, ranks_per_core: float) -> Contention:
        """Time steps and all-reduces of both ranks at once."""
        sizes = [4096, *(self.model_bytes * part // 64 * 4 for part in (1, 4, 16, 32))]
        median_s = self._medians([
            *(Work(f"compute {batch}", step) for batch, step in self.local.items()),
            *(Work(f"all-reduce {size}", BareAllReduce(self.pair, size)) for size in sizes),
            *(Work(f"step {collective}", step) for collective, step in averaged.items()),
        ])  # fmt: skip
        all_reduce_s = {size: median_s[f"all-reduce {size}"] for size in sizes}
        paused_s = {sizes[-2]: self._paused(sizes[-2], all_reduce_s[sizes[-2]])}
        network = fits.fit_network(all_reduce_s, paused_s)
        return Contention(
            ranks_per_core=ranks_per_core,
            compute_s={batch: median_s[f"compute {batch}"] for batch in self.local},
            all_reduce_s=all_reduce_s,
            paused_s=paused_s,
            network=network,
            fit_error=fits.fit_error(network, all_reduce_s, self.model_bytes // 16),
            step_s={collective: median_s[f"step {collective}"] for collective in averaged},
        )

    def _paused(self, num_bytes: int, pause_s: float) -> float:
        """Return the median seconds of an all-reduce after a pause of ``pause_s``, at least 10 ms."""
        reduce, seconds = BareAllReduce(self.pair, num_bytes), []
        for _ in range(_NUM_PAUSED):
            time.sleep(max(0.01, pause_s))
            self.pair.barrier()
            seconds.append(timing.seconds_of(reduce))
        return self.pair.maximum(statistics.median(seconds))

    def _relative(self) -> list[float]:
        """Return percentiles of the times of single steps on all ranks, relative to their median."""
        self.pair.barrier()
        seconds = np.array([timing.seconds_of(self.local[self.own_batch]) for _ in range(_NUM_SINGLE)])
        everyone = np.concatenate(self.pair.gather_all(seconds))
        percentiles = np.quantile(everyone / np.median(everyone), np.linspace(0, 1, 101))
        return [float(value) for value in percentiles.round(4)]


@contextmanager
def on_one_core(core: int) -> Iterator[None]:
    """Bind all threads of this process to ``core`` for the duration of a block."""
    tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    before = {task: os.sched_getaffinity(task) for task in tasks}
    for task in tasks:
        os.sched_setaffinity(task, {core})
    try:
        yield
    finally:
        for task, cores in before.items():
            os.sched_setaffinity(task, cores)
