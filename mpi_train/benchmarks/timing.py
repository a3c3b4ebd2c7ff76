"""Timing in turn on all ranks, so that a drifting machine slows all work alike: steps, bare all-reduces."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Hashable, Mapping
from functools import partial
from typing import TypeVar

import keras
import numpy as np

from mpi_train.collectives import averaging
from mpi_train.collectives.config import ExchangeConfig
from mpi_train.collectives.plain import sum_in_place
from mpi_train.data.examples import Examples
from mpi_train.data.shards import balanced_range
from mpi_train.models import optimizers, zoo
from mpi_train.models.flat import FlatModel
from mpi_train.runs.config import StepConfig
from mpi_train.runtime.world import World
from mpi_train.training.steps import epoch_order, plan_steps
from mpi_train.training.trainer import Trainer

SAMPLE_S = 0.3
"""Target duration of one sample, in seconds; tests lower it."""
IMAGE_SHAPE = (28, 28, 1)
NUM_CLASSES = 10

Name = TypeVar("Name", bound=Hashable)
Work = Callable[[int], object]
"""Function that does a piece of work as many times as its argument says."""


def time_in_turn(
    works: Mapping[Name, Work],
    world: World,
    *,
    repeats: int,
    share: float = 1.0,
    alone: Container[Name] = (),
) -> dict[Name, list[float]]:
    """Take ``repeats`` samples of each piece of work, in the order A B C A B C.

    A sample takes about ``share`` times ``SAMPLE_S``. Work named in ``alone`` is done by rank 0 while the
    others sleep. Returns, for each name, the seconds of one execution on the slowest rank, one value a
    sample; equal on all ranks.
    """
    timers = {name: partial(_time, work, world, name in alone) for name, work in works.items()}
    counts = {name: _calibrate(timer, share * SAMPLE_S) for name, timer in timers.items()}
    samples: dict[Name, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, timer in timers.items():
            samples[name].append(timer(counts[name]) / counts[name])
    return samples


def _calibrate(timer: Callable[[int], float], sample_s: float) -> int:
    """Count the executions that fit into ``sample_s``; ranks share their timings and so agree."""
    count = 1
    timer(count)  # builds the graph, touches the memory
    while (elapsed := timer(count)) < sample_s / 4:
        count *= 4
    return max(1, round(count * sample_s / elapsed))


def _time(work: Work, world: World, alone: bool, count: int) -> float:
    """Return the seconds of ``count`` executions on the slowest rank."""
    world.barrier()
    elapsed = seconds_of(work, count) if world.is_root or not alone else 0.0
    if alone:
        sleep_until_all_arrive(world)
    return world.maximum(elapsed)


def seconds_of(work: Work, count: int = 1) -> float:
    """Return the seconds of ``count`` executions on this rank."""
    start = time.perf_counter()
    work(count)
    return time.perf_counter() - start


def sleep_until_all_arrive(world: World) -> None:
    """Wait at a barrier without using a core; MPI's own barrier would spin."""
    if world.comm is not None:
        request = world.comm.Ibarrier()
        while not request.Test():
            time.sleep(0.002)


class BareAllReduce:
    """Sums of ``num_bytes`` of float32 over all ranks, in place and from host memory."""

    def __init__(self, world: World, num_bytes: int) -> None:
        self._world, self._buffer = world, np.zeros(num_bytes // 4, np.float32)

    def __call__(self, count: int) -> None:
        for _ in range(count):
            sum_in_place(self._world, self._buffer)


def build_model(config: StepConfig) -> keras.Model:
    """Build the model that ``config`` names, for random images."""
    return zoo.build(config.model, IMAGE_SHAPE, NUM_CLASSES, seed=config.seed, dtype=config.dtype)


class TimedStep:
    """Training steps on random images of Fashion-MNIST's size, called with the number of steps to take.

    ``batch_size`` is the global batch of ``world``, and ``num_steps`` the length of an epoch.
    """

    def __init__(
        self,
        config: StepConfig,
        world: World,
        device: str,
        batch_size: int,
        exchange: ExchangeConfig | None = None,
        num_steps: int = 256,
    ) -> None:
        num_images = batch_size * num_steps
        start, stop = balanced_range(num_images, world.size, world.rank)
        rng, num_own = np.random.default_rng([config.seed, world.rank]), stop - start
        images = rng.integers(0, 256, (num_own, *IMAGE_SHAPE), np.uint8)
        examples = Examples(images=images, labels=rng.integers(0, NUM_CLASSES, num_own, np.uint8))
        flat = FlatModel(build_model(config), device)
        alone = averaging.Averaging()
        self._averaging = averaging.build(exchange, world, flat, seed=config.seed) if exchange else alone
        optimizer = optimizers.build(config.optimizer, config.learning_rate)
        self.trainer = Trainer(flat, optimizer, examples, averaging=self._averaging, devices=[device])
        self._averaging.begin_epoch(1)
        steps = plan_steps(num_images, batch_size, rank=world.rank, size=world.size)
        self._run = self.trainer.prepare(epoch_order(config.seed, 1, world.rank, num_own), steps)
        # The last step of an epoch, which runs in another graph, is left out.
        self._next, self._num_steps = 0, max(1, num_steps - 1)

    def __call__(self, count: int) -> int:
        """Take ``count`` steps, and return the bytes that this rank sent in them."""
        while count > 0:
            taken = min(count, self._num_steps - self._next)
            self._run(self._next, self._next + taken)
            self._next = (self._next + taken) % self._num_steps
            count -= taken
        self._averaging.finish()
        # The log of exchanges would grow without limit if it were not taken each time.
        return self._averaging.take_traffic(World()).sent_bytes
