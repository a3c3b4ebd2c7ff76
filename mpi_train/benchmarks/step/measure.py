"""One training step on this machine: its parts timed in turn, against what the machine can do.

It trains on random images, as many and as large as Fashion-MNIST's; what they show decides no time.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import keras
import numpy as np
from rich.console import Console

from mpi_train.benchmarks.bare_all_reduce import BareAllReduce, sweep
from mpi_train.benchmarks.step import figures
from mpi_train.benchmarks.step.config import BenchStepConfig
from mpi_train.benchmarks.step.parts import PRODUCT_FLOP, Gradient, Product, Step, Update
from mpi_train.benchmarks.timing import Work, time_in_turn
from mpi_train.collectives.averaging import Averaging, Gradients, NoAveraging, Weights
from mpi_train.collectives.build import mean_all_reduce
from mpi_train.data.examples import Examples
from mpi_train.data.shards import balanced_range
from mpi_train.models import optimizers, zoo
from mpi_train.models.flat import FlatModel
from mpi_train.runs.config import one_example_a_rank
from mpi_train.runtime import devices, files, machine
from mpi_train.runtime.errors import unwritable
from mpi_train.runtime.flags import as_dict
from mpi_train.runtime.world import World
from mpi_train.training.steps import epoch_order, plan_steps
from mpi_train.training.trainer import Trainer

OUT_FILE = "bench_step.json"
IMAGE_SHAPE = (28, 28, 1)
NUM_CLASSES = 10
NUM_IMAGES = 60_000
"""Of all ranks together; one batch where that is more."""


def measure(config: BenchStepConfig, world: World, threads: int) -> None:
    """Times a step on all ranks of ``world``; rank 0 prints the tables, and writes the samples if asked to.

    Raises:
        UsageError: a batch, model, optimizer or output folder that cannot be used; on all ranks.
        PlatformError: fewer GPUs than ranks; on all ranks.
    """
    one_example_a_rank(config.batch_size, world.size)
    with world.together():
        _make_folder(config, world)
    with world.together():
        device = devices.own_device(world)
    bench = StepBench(config, world, device)
    console = Console(quiet=not world.is_root, highlight=False, markup=False)
    console.print("\n".join(bench.description(threads)), soft_wrap=True)
    samples = bench.run()
    for table in figures.tables(samples):
        console.print()
        console.print(table)
    with world.together():
        _write(config, world, threads, samples)


class StepBench:
    """The step that a config describes, ready to be timed.

    Args:
        config: What the step is.
        world: The ranks that take it.
        device: Where this rank computes.
    """

    def __init__(self, config: BenchStepConfig, world: World, device: str) -> None:
        self.config, self.world, self.device = config, world, device
        # Whole batches, so that all steps are alike.
        num_images = max(1, NUM_IMAGES // config.batch_size) * config.batch_size
        self.steps = plan_steps(num_images, config.batch_size, rank=world.rank, size=world.size)
        start, stop = balanced_range(num_images, world.size, world.rank)
        num_own = stop - start
        rng = np.random.default_rng([config.seed, world.rank])
        self.examples = Examples(
            images=rng.integers(0, 256, (num_own, *IMAGE_SHAPE), np.uint8),
            labels=rng.integers(0, NUM_CLASSES, num_own, np.uint8),
        )
        self.order = epoch_order(config.seed, 1, world.rank, num_own)
        self.trainer = self._trainer(lambda _: NoAveraging())

    def description(self, threads: int) -> list[str]:
        """What is timed, in lines for the user."""
        config, world = self.config, self.world
        ranks = f"{_count(world.size, 'rank')} x {_count(threads, 'thread')}"
        lines = [
            f"bench_step: {config.model} ({sum(self.trainer.flat.sizes):,} trainable weights), "
            f"global batch {config.batch_size}, {config.optimizer}, {config.dtype}, {ranks}"
            + (f", averaging {config.average}" if world.size > 1 else "")
            + f", {machine.cpu_model()}",
            f"{_count(config.repeats, 'sample')} of each part, taken in turn; random images, no data set",
        ]
        if _cores_are_shared(world):
            lines.append("Beware: more ranks than cores. They wait for each other in every part.")
        return lines

    def run(self) -> figures.Samples:
        """Takes all samples; the same on all ranks."""
        repeats, world = self.config.repeats, self.world
        gradient, step = self._gradient(), self._step(self.trainer)
        works = [
            Work(figures.GRADIENT, gradient),
            Work(figures.OPTIMIZER, Update(self.trainer)),
            Work(figures.STEP, step),
        ]
        if world.size > 1:
            works += [
                Work(figures.AVERAGED, self._step(self._trainer(self._averaging))),
                Work(figures.ALL_REDUCE, BareAllReduce(world, self.trainer.flat.num_padded * 4)),
                Work(figures.ALONE, step, alone=True),
            ]
        works.append(Work(figures.PRODUCT, Product(self.config.dtype)))
        return figures.Samples(
            world_size=world.size,
            parts_s=time_in_turn(works, world, repeats=repeats),
            gradient_flop=gradient.flop(),
            product_flop=PRODUCT_FLOP,
            all_reduce_s=sweep(world, repeats) if world.size > 1 else {},
        )

    def _model(self) -> keras.Model:
        config = self.config
        return zoo.build(config.model, IMAGE_SHAPE, NUM_CLASSES, seed=config.seed, dtype=config.dtype)

    def _trainer(self, averaging: Callable[[FlatModel], Averaging]) -> Trainer:
        flat = FlatModel(self._model(), self.device)
        optimizer = optimizers.build(self.config.optimizer, self.config.learning_rate)
        return Trainer(flat, optimizer, self.examples, averaging=averaging(flat), devices=[self.device])

    def _averaging(self, flat: FlatModel) -> Averaging:
        all_reduce = mean_all_reduce(self.world, flat.num_padded)
        return Gradients(all_reduce) if self.config.average == "gradients" else Weights(all_reduce)

    def _step(self, trainer: Trainer) -> Step:
        return Step(trainer, self.order, self.steps)

    def _gradient(self) -> Gradient:
        batch = -(-self.config.batch_size // self.world.size)
        images = np.resize(self.examples.images[: 2 * batch], (2, batch, *IMAGE_SHAPE))
        labels = np.resize(self.examples.labels, batch)
        return Gradient(self._model(), images.astype(np.float32) / 255, labels.astype(np.int32))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _cores_are_shared(world: World) -> bool:
    everyone = world.gather_all((world.hosts[world.rank], os.sched_getaffinity(0)))
    local = [cores for host, cores in everyone if host == world.hosts[world.rank]]
    return any(world.gather_all(len(set().union(*local)) < len(local)))


def _make_folder(config: BenchStepConfig, world: World) -> None:
    # Before the measurement, so that a slip costs no half minute.
    if config.out is not None and world.is_root:
        try:
            config.out.mkdir(parents=True, exist_ok=True)
            (config.out / OUT_FILE).unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(config.out, error) from error


def _write(config: BenchStepConfig, world: World, threads: int, samples: figures.Samples) -> None:
    where = machine.describe(world)
    if config.out is None or not world.is_root:
        return
    content = {
        "config": as_dict(config),
        "threads_per_rank": threads,
        **dataclasses.asdict(samples),
        "ratios": samples.ratios(),
        "shares": samples.shares(),
        "environment": where,
    }
    try:
        files.write_json(config.out / OUT_FILE, content)
    except OSError as error:
        raise unwritable(config.out, error) from error
