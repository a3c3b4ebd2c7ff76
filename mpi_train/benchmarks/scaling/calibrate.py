"""Measures on one and two ranks what the model of cost needs: steps, all-reduces, and how ranks scatter."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import tensorflow as tf

from mpi_train.benchmarks.bare_all_reduce import BareAllReduce
from mpi_train.benchmarks.scaling.calibration import Calibration, Crowd, batches_of, fit_error, fit_network
from mpi_train.benchmarks.scaling.config import MeasureConfig
from mpi_train.benchmarks.step.measure import IMAGE_SHAPE, NUM_CLASSES
from mpi_train.benchmarks.timing import Work, rest_until_all_are_here, time_in_turn
from mpi_train.collectives import build
from mpi_train.collectives.averaging import NoAveraging
from mpi_train.collectives.buckets import BUCKET_BYTES, grouped
from mpi_train.data.examples import Examples
from mpi_train.models import optimizers, zoo
from mpi_train.models.flat import FlatModel
from mpi_train.runs.config import StepConfig
from mpi_train.runtime.errors import JobError
from mpi_train.runtime.world import World
from mpi_train.strategies.mpi.config import MpiConfig
from mpi_train.training.steps import epoch_order, plan_steps
from mpi_train.training.trainer import Trainer

T = TypeVar("T")

_SAMPLE_S = 0.15
_NUM_STEPS = 256
"""Of an epoch of images that are drawn; what they show decides no time."""
_NUM_SINGLE = 200
"""Steps that are timed one by one."""
_NUM_PAUSED = 9


class TimedStep:
    """Steps of one rank among ``world``, each with ``own_batch`` examples.

    Args:
        config: What a step is.
        world: The ranks that take it.
        device: Where this rank computes.
        own_batch: Examples of each rank.
        way: How ranks exchange; None for not at all.
    """

    def __init__(
        self, config: StepConfig, world: World, device: str, own_batch: int, way: str | None = None
    ) -> None:
        num_own = own_batch * _NUM_STEPS
        rng = np.random.default_rng([config.seed, world.rank])
        examples = Examples(
            images=rng.integers(0, 256, (num_own, *IMAGE_SHAPE), np.uint8),
            labels=rng.integers(0, NUM_CLASSES, num_own, np.uint8),
        )
        model = zoo.build(config.model, IMAGE_SHAPE, NUM_CLASSES, seed=config.seed, dtype=config.dtype)
        flat = FlatModel(model, device)
        self.model_bytes = 4 * flat.num_padded
        self.num_buckets = len(grouped([4 * size for size in flat.sizes], BUCKET_BYTES))
        averaging = (
            NoAveraging()
            if way is None
            else build.averaging(MpiConfig(collective=way), world, flat, seed=config.seed)
        )
        optimizer = optimizers.build(config.optimizer, config.learning_rate)
        self._trainer = Trainer(flat, optimizer, examples, averaging=averaging, devices=[device])
        steps = plan_steps(num_own * world.size, own_batch * world.size, rank=world.rank, size=world.size)
        order = epoch_order(config.seed, 1, world.rank, num_own)
        self._trainer.averaging.begin_epoch(1)
        self._run = self._trainer.prepare(order, steps)
        self._world, self._next = world, 0

    def __call__(self, count: int) -> None:
        """Takes the next ``count`` steps, epoch after epoch, but for their last ones, which may differ."""
        while count > 0:
            taken = min(count, _NUM_STEPS - 1 - self._next)
            self._run(self._next, self._next + taken)
            self._next = (self._next + taken) % (_NUM_STEPS - 1)
            count -= taken
        self._trainer.averaging.finish()

    def sent_bytes(self, num_steps: int) -> int:
        """Bytes that this rank sends in a step; on all ranks together."""
        self._trainer.averaging.take_traffic(self._world)
        self(num_steps)
        return round(self._trainer.averaging.take_traffic(self._world).sent_bytes / num_steps)

    def forget(self) -> None:
        """Drops what was counted, which would pile up."""
        self._trainer.averaging.take_traffic(self._world)


def calibrate(
    config: MeasureConfig,
    world: World,
    device: str,
    threads: int,
    ways: Sequence[str],
    say: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Measures on rank 0 and another of ``world``, if there is one; the rest sleep. On all ranks together.

    Args:
        config: What a step is.
        world: The ranks.
        device: Where this rank computes.
        threads: Of this rank.
        ways: How ranks exchange in the whole steps that are timed; those that exchange every step.
        say: Is told what is being measured.

    Returns:
        The same on all ranks.
    """
    # Each timed step is a trainer with graphs of its own, which TensorFlow takes for one that is traced anew.
    tf.get_logger().setLevel("ERROR")
    # On two nodes where there are two: the network between them is what more ranks will need.
    other = next((rank for rank, host in enumerate(world.hosts) if host != world.hosts[0]), 1)
    place = _place(world)
    return while_others_rest(
        world,
        world.rank in (0, other),
        lambda pair: _Calibration(config, pair, place, device, threads, say).measure(ways),
    )


def while_others_rest(world: World, works: bool, work: Callable[[World], T]) -> T:
    """Has some ranks do something, while the others take no core from them; on all ranks together.

    Args:
        world: All ranks.
        works: Whether this one does it.
        work: What is done, with the world of those that do it.

    Returns:
        What the first of them returned; the same on all ranks.

    Raises:
        JobError: what any of them raised; on all ranks.
    """
    some = world.split(int(works))
    found: tuple[T] | None = None
    problem: JobError | None = None
    if works:
        try:
            found = (work(some),)
        except JobError as error:
            problem = error
    rest_until_all_are_here(world)
    with world.together():
        if problem is not None:
            raise problem
    return next(each for each in world.gather_all(found) if each is not None)[0]


class _Calibration:
    def __init__(
        self,
        config: MeasureConfig,
        pair: World,
        place: _Place,
        device: str,
        threads: int,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.pair, self.place, self.device, self.threads = config, pair, place, device, threads
        self.say = say
        self.own_batch = max(1, config.batch_size // 2)

    def measure(self, ways: Sequence[str]) -> Calibration:
        config, pair = self.config, self.pair
        places = pair.gather_all(self.place)
        machines = {place.machine for place in places}
        cores = places[0].num_cores
        one_machine = pair.size > 1 and len(machines) == 1
        batches = batches_of(config.batch_size)
        self.say(f"a step alone, with {', '.join(map(str, batches))} examples a rank")
        local = {batch: TimedStep(config, pair, self.device, batch) for batch in batches}
        works = [Work(str(batch), step, alone=True) for batch, step in local.items()]
        alone_s = _medians(time_in_turn(works, pair, repeats=config.repeats, sample_s=_SAMPLE_S))
        roomy = crowded = None
        payload: dict[str, int] = {}
        if pair.size > 1:
            averaged = {}
            for way in ways:
                self.say(f"a step with {way}")
                try:
                    with pair.together():
                        averaged[way] = TimedStep(config, pair, self.device, self.own_batch, way)
                except JobError:
                    continue  # these ranks cannot exchange so; then it is not predicted from its own step
            self.say("two ranks at once, and all-reduces between them")
            # Ranks that the launcher, or we, bound have cores of their own, and the others' are not theirs.
            own = set().union(*pair.gather_all(os.sched_getaffinity(0)))
            roomy = self._crowd(local, averaged, ranks_per_core=2 / len(own))
            payload = {way: step.sent_bytes(8) for way, step in averaged.items()}
            if one_machine:
                self.say("two ranks on one core, as if there were more ranks than cores")
                with on_one_core(min(place.first_core for place in places)):
                    crowded = self._crowd(local, averaged, ranks_per_core=2.0)
        return Calibration(
            step={
                "model": config.model,
                "batch_size": config.batch_size,
                "optimizer": config.optimizer,
                "dtype": config.dtype,
            },
            model_bytes=local[batches[0]].model_bytes,
            num_buckets=local[batches[0]].num_buckets,
            hosts=pair.hosts,
            threads=self.threads,
            cores=cores,
            one_machine=one_machine,
            alone_s=alone_s,
            relative_s=self._relative(local[self.own_batch]),
            roomy=roomy,
            crowded=crowded,
            payload=payload,
        )

    def _crowd(
        self, local: dict[int, TimedStep], averaged: dict[str, TimedStep], *, ranks_per_core: float
    ) -> Crowd:
        pair, repeats = self.pair, self.config.repeats
        model_bytes = local[self.own_batch].model_bytes
        sizes = [4096, *(model_bytes * part // 64 * 4 for part in (1, 4, 16, 32))]
        works = [
            *(Work(f"compute {batch}", step) for batch, step in local.items()),
            *(Work(f"all-reduce {size}", BareAllReduce(pair, size)) for size in sizes),
            *(Work(f"step {way}", step) for way, step in averaged.items()),
        ]
        times = time_in_turn(works, pair, repeats=repeats, sample_s=_SAMPLE_S)
        for step in averaged.values():
            step.forget()

        def part(kind: str) -> dict[str, float]:
            return {
                name.removeprefix(kind): statistics.median(values)
                for name, values in times.items()
                if name.startswith(kind)
            }

        all_reduce_s = {int(size): seconds for size, seconds in part("all-reduce ").items()}
        paused_s = {sizes[-2]: self._paused(sizes[-2], all_reduce_s[sizes[-2]])}
        network = fit_network(all_reduce_s, paused_s)
        return Crowd(
            ranks_per_core=ranks_per_core,
            compute_s={int(batch): seconds for batch, seconds in part("compute ").items()},
            all_reduce_s=all_reduce_s,
            paused_s=paused_s,
            network=network,
            fit_error=fit_error(network, all_reduce_s, model_bytes // 16),
            step_s=part("step "),
        )

    def _paused(self, num_bytes: int, pause_s: float) -> float:
        """Median seconds of an all-reduce, each after a pause as long as it, or 10 ms if that is more."""
        reduce, seconds = BareAllReduce(self.pair, num_bytes), []
        for _ in range(_NUM_PAUSED):
            time.sleep(max(0.01, pause_s))
            self.pair.barrier()
            start = time.perf_counter()
            reduce(1)
            seconds.append(time.perf_counter() - start)
        return self.pair.maximum(statistics.median(seconds))

    def _relative(self, step: TimedStep) -> list[float]:
        seconds = []
        self.pair.barrier()
        for _ in range(_NUM_SINGLE):
            start = time.perf_counter()
            step(1)
            seconds.append(time.perf_counter() - start)
        everyone = np.concatenate(self.pair.gather_all(np.array(seconds)))
        relative = np.quantile(everyone / np.median(everyone), np.linspace(0, 1, 101))
        return [float(value) for value in np.round(relative, 4)]


@dataclass(frozen=True)
class _Place:
    machine: str
    num_cores: int
    first_core: int


def _place(world: World) -> _Place:
    """Which machine this rank is on, whatever its host is called, and the cores that ranks have there."""
    everyone = world.gather_all((world.hosts[world.rank], os.sched_getaffinity(0)))
    local = [cores for host, cores in everyone if host == world.hosts[world.rank]]
    # Nodes that are namespaces of one machine have its kernel.
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    cores = set().union(*local)
    return _Place(boot, len(cores), min(cores))


@contextmanager
def on_one_core(core: int) -> Iterator[None]:
    """Binds all threads of this process to ``core``, and lets them go again."""
    tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    before = {task: os.sched_getaffinity(task) for task in tasks}
    for task in tasks:
        os.sched_setaffinity(task, {core})
    try:
        yield
    finally:
        for task, cores in before.items():
            os.sched_setaffinity(task, cores)


def _medians(times: dict[str, list[float]]) -> dict[int, float]:
    return {int(name): statistics.median(values) for name, values in times.items()}
