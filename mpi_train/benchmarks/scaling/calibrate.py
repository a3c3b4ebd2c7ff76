"""Calibration on one and two ranks: steps, all-reduces, and the spread of single steps."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from rich.console import Console

from mpi_train.benchmarks import timing
from mpi_train.benchmarks.config import MeasureConfig
from mpi_train.benchmarks.scaling import calibration as fits
from mpi_train.benchmarks.scaling.calibration import Calibration, Contention
from mpi_train.benchmarks.timing import BareAllReduce, Name, TimedStep, Work
from mpi_train.collectives.buckets import BUCKET_BYTES, grouped
from mpi_train.collectives.config import ExchangeConfig
from mpi_train.runtime import machine
from mpi_train.runtime.errors import JobError
from mpi_train.runtime.world import World

T = TypeVar("T")
_Steps = Mapping[Any, TimedStep]

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
    """Measure on rank 0 and a second rank, while the others sleep; on all ranks together.

    Times whole steps with ``collectives``, which exchange at every step, and prints the progress ``to``.
    """
    # Each timed step has graphs of its own, and TensorFlow would warn of retracing.
    tf.get_logger().setLevel("ERROR")
    # A rank on another node if there is one, because more ranks will need the network between nodes.
    other = next((rank for rank, host in enumerate(world.hosts) if host != world.hosts[0]), 1)
    cores = machine.cores_of_node(world)

    def measure(pair: World) -> Calibration:
        own_batch, timed_step = config.batch_size // 2, partial(TimedStep, config, pair, device)
        local = {batch: timed_step(2 * batch) for batch in fits.batches_of(config.batch_size)}
        flat = local[own_batch].trainer.flat
        to.print(f"measuring a step alone, with {', '.join(map(str, local))} examples a rank")
        alone_s = _medians(local, pair, config, alone=local)
        averaged: dict[str, TimedStep] = {}
        for collective in collectives:
            to.print(f"measuring a step with {collective}")
            # One that is not possible on these ranks is left out: its own step is not in the prediction.
            with suppress(JobError):
                with pair.together():
                    step = timed_step(2 * own_batch, ExchangeConfig(collective=collective))
                averaged[collective] = step
        to.print("measuring two ranks at once, and all-reduces between them")
        # Ranks that are bound to cores have these only.
        own_cores = set().union(*pair.gather_all(os.sched_getaffinity(0)))
        contention = partial(_contention, config, pair, local, averaged, 4 * flat.num_padded)
        uncontended, contended = contention(2 / len(own_cores)), None
        payload = {collective: round(step(8) / 8) for collective, step in averaged.items()}
        # Nodes that are namespaces of one machine share its kernel, under host names of their own.
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
        one_machine = len(set(pair.gather_all(boot_id))) == 1
        if one_machine:
            to.print("measuring two ranks on one core, as if there were more ranks than cores")
            with on_one_core(min(map(min, pair.gather_all(cores)))):
                contended = contention(2.0)
        pair.barrier()
        singles = np.array([timing.seconds_of(local[own_batch]) for _ in range(_NUM_SINGLE)])
        everyone = np.concatenate(pair.gather_all(singles))
        return Calibration(
            step={name: getattr(config, name) for name in ("model", "batch_size", "optimizer", "dtype")},
            model_bytes=4 * flat.num_padded,
            num_buckets=len(grouped([4 * size for size in flat.sizes], BUCKET_BYTES)),
            hosts=pair.hosts,
            threads=threads,
            cores=len(pair.gather_all(cores)[0]),
            one_machine=one_machine,
            alone_s=alone_s,
            relative_s=np.percentile(everyone / np.median(everyone), range(101)).round(4).tolist(),
            uncontended=uncontended,
            contended=contended,
            payload=payload,
        )

    return while_others_sleep(world, world.rank in (0, other), measure)


def _medians(
    works: Mapping[Name, Work], pair: World, config: MeasureConfig, alone: Container[Name] = ()
) -> dict[Name, float]:
    times = timing.time_in_turn(works, pair, repeats=config.repeats, share=0.5, alone=alone)
    return {name: statistics.median(samples) for name, samples in times.items()}


def _contention(
    config: MeasureConfig, pair: World, local: _Steps, averaged: _Steps, model_bytes: int, per_core: float
) -> Contention:
    """Time steps and all-reduces of both ranks at once, ``per_core`` ranks on a core."""
    sizes = [4096, *(model_bytes * part // 64 * 4 for part in (1, 4, 16, 32))]
    reduces = {size: BareAllReduce(pair, size) for size in sizes}
    works: list[Work] = [*local.values(), *reduces.values(), *averaged.values()]
    median_s = _medians({work: work for work in works}, pair, config)
    all_reduce_s = {size: median_s[reduce] for size, reduce in reduces.items()}
    # Again after pauses, as a link may pass a burst at once.
    num_bytes, paused = sizes[-2], []
    for _ in range(_NUM_PAUSED):
        time.sleep(max(0.01, all_reduce_s[num_bytes]))
        pair.barrier()
        paused.append(timing.seconds_of(reduces[num_bytes]))
    paused_s = {num_bytes: pair.maximum(statistics.median(paused))}
    network = fits.fit_network(all_reduce_s, paused_s)
    return Contention(
        ranks_per_core=per_core,
        compute_s={batch: median_s[step] for batch, step in local.items()},
        all_reduce_s=all_reduce_s,
        paused_s=paused_s,
        network=network,
        fit_error=fits.fit_error(network, all_reduce_s, model_bytes // 16),
        step_s={collective: median_s[step] for collective, step in averaged.items()},
    )


@contextmanager
def on_one_core(core: int) -> Iterator[None]:
    """Bind all threads of this process to ``core`` for the duration of a block."""

    def bind(cores: set[int]) -> None:
        for task in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)

    before = os.sched_getaffinity(0)
    bind({core})
    try:
        yield
    finally:
        bind(before)
