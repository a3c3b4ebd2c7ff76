"""Step bench: the parts of a training step, timed in turn and compared with the limits of the machine."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mpi_train.benchmarks import output, timing
from mpi_train.benchmarks.config import BenchStepConfig
from mpi_train.benchmarks.step import workloads
from mpi_train.benchmarks.timing import BareAllReduce, TimedStep, Work
from mpi_train.collectives.config import ExchangeConfig
from mpi_train.report.summary import sized
from mpi_train.report.tables import Table
from mpi_train.runs.config import one_example_a_rank
from mpi_train.runtime import machine
from mpi_train.runtime.flags import as_dict
from mpi_train.runtime.world import World

OUT_FILE = "bench_step.json"
NUM_IMAGES = 60_000
"""Images of all ranks together, as in Fashion-MNIST; at least one batch."""
SIZES = tuple(4**power * 1024 for power in range(1, 9))
"""Sizes of the bare all-reduces in bytes, 4 KiB to 64 MiB."""
GRADIENT, OPTIMIZER, STEP, PRODUCT = "gradient", "optimizer", "step", "matrix product"
AVERAGED, ALL_REDUCE, ALONE = "step, averaged", "all-reduce", "step, alone"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples of all parts, of the bare all-reduces by bytes, and operations on one rank.

    Samples of one number were taken one after another, and ratios are taken within them.
    """

    world_size: int
    parts_s: dict[str, list[float]]
    gradient_flop: int
    product_flop: int
    all_reduce_s: dict[int, list[float]]

    def ratios(self) -> dict[str, list[float]]:
        """Return ratios of the parts, one value a sample.

        A step over its gradient and update shows the overhead of the loop. Weak scaling is the examples/s of
        all ranks over those of one rank alone on the machine, with the same share of the batch; the bound is
        that of ranks that do not average. The last ratio is the time that averaging adds to a step, over that
        of a bare all-reduce of as many bytes.
        """
        size, s = self.world_size, {name: np.array(values) for name, values in self.parts_s.items()}
        found = {
            "step / gradient": s[STEP] / s[GRADIENT],
            "step / (gradient + optimizer)": s[STEP] / (s[GRADIENT] + s[OPTIMIZER]),
        }
        if size > 1:
            found[f"weak scaling: {size} x alone / averaged"] = size * s[ALONE] / s[AVERAGED]
            found[f"weak scaling at most: {size} x alone / step"] = size * s[ALONE] / s[STEP]
            found["averaging: (averaged - step) / all-reduce"] = (s[AVERAGED] - s[STEP]) / s[ALL_REDUCE]
        return {name: values.tolist() for name, values in found.items()}

    def rates(self) -> dict[str, tuple[int, np.ndarray]]:
        """Return operations and operations/s of the parts on one rank, one rate a sample.

        The operations of a step are those of its gradient.
        """
        flop = {PRODUCT: self.product_flop, GRADIENT: self.gradient_flop, STEP: self.gradient_flop}
        return {name: (count, count / np.array(self.parts_s[name])) for name, count in flop.items()}

    def shares(self) -> dict[str, list[float]]:
        """Return these rates relative to that of the matrix product, one value a sample."""
        rates = self.rates()
        return {name: (rate / rates[PRODUCT][1]).tolist() for name, (_, rate) in rates.items()}


def bandwidths(num_bytes: int, seconds: float, num_ranks: int) -> tuple[float, float]:
    """Return the algorithm and the bus bandwidth of an all-reduce, in GB/s (10^9 bytes).

    Defined by doc/PERFORMANCE.md of github.com/NVIDIA/nccl-tests; the latter can be compared with a link's.
    """
    algorithm = num_bytes / seconds / 1e9
    return algorithm, algorithm * 2 * (num_ranks - 1) / num_ranks


def tables(samples: Samples) -> list[Table]:
    """Return tables of at most 80 columns: medians, each with the smallest and the largest sample."""

    def cells(values: Sequence[float], shown: str, factor: float = 1.0) -> list[str]:
        found = (statistics.median(values), min(values), max(values))
        median, low, high = (shown.format(factor * value) for value in found)
        return [median, f"{low} to {high}"]

    shares, span = samples.shares(), "min to max"
    times = [[name, *cells(values, "{:,.1f}", 1e6)] for name, values in samples.parts_s.items()]
    ratios = [[name, *cells(values, "{:.2f}x")] for name, values in samples.ratios().items()]
    flops = [
        [name, f"{flop / 1e6:,.1f}", *cells(rate.tolist(), "{:,.1f}", 1e-9), *cells(shares[name], "{:.0%}")]
        for name, (flop, rate) in samples.rates().items()
    ]
    bare = []
    for num_bytes, values in samples.all_reduce_s.items():
        both = bandwidths(num_bytes, statistics.median(values), samples.world_size)
        bare.append([f"{num_bytes:,}", *cells(values, "{:,.1f}", 1e6), *(f"{rate:.2f}" for rate in both)])
    found = [
        Table(columns=("Time of one, slowest rank", "µs", span), rows=times),
        Table(columns=("Ratio within a sample", "median", span), rows=ratios),
        Table(columns=("Rate of one rank", "MFLOP", "GFLOP/s", span, "share", span), rows=flops),
        Table(columns=("Bare all-reduce, bytes", "µs", span, "algbw GB/s", "busbw GB/s"), rows=bare),
    ]
    return [table for table in found if table.rows]


def measure(config: BenchStepConfig, world: World, threads: int) -> None:
    """Time a step on all ranks of ``world``; rank 0 prints the tables, and writes the samples with ``--out``.

    Raises ``UsageError`` for bad options and ``PlatformError`` for too few GPUs, on all ranks.
    """
    one_example_a_rank(config.batch_size, world.size)
    console, device = output.begin(world, config.out, (OUT_FILE,))
    # Whole batches, so that all steps are alike.
    num_steps = max(1, NUM_IMAGES // config.batch_size)
    timed_step = partial(TimedStep, config, world, device, config.batch_size, num_steps=num_steps)
    step = timed_step()
    console.print(_description(config, world, threads, sum(step.trainer.flat.sizes)))
    batch, rng = -(-config.batch_size // world.size), np.random.default_rng(config.seed)
    images = rng.random((2, batch, *timing.IMAGE_SHAPE), np.float32)
    labels = rng.integers(0, timing.NUM_CLASSES, batch, np.int32)
    gradient = workloads.gradient(timing.build_model(config), images, labels)
    product = workloads.product(config.dtype)
    works: dict[str, Work] = {GRADIENT: gradient, OPTIMIZER: workloads.update(step.trainer), STEP: step}
    if world.size > 1:
        works[AVERAGED] = timed_step(ExchangeConfig(average=config.average))
        works[ALL_REDUCE] = BareAllReduce(world, step.trainer.flat.num_padded * 4)
        works[ALONE] = step
    works[PRODUCT] = product
    time_in_turn = partial(timing.time_in_turn, world=world, repeats=config.repeats)
    parts_s = time_in_turn(works, alone={ALONE})
    reduces = {size: BareAllReduce(world, size) for size in SIZES if world.size > 1}
    samples = Samples(
        world_size=world.size, parts_s=parts_s, gradient_flop=gradient.flop(), product_flop=product.flop(),
        all_reduce_s=time_in_turn(reduces, share=1 / 6),
    )  # fmt: skip
    output.show(console, tables(samples))
    content = {
        "config": as_dict(config),
        "threads_per_rank": threads,
        **dataclasses.asdict(samples),
        "ratios": samples.ratios(),
        "shares": samples.shares(),
        "environment": machine.describe(world),
    }
    with world.together():
        if config.out is not None and world.is_root:
            output.write(config.out, {OUT_FILE: content})


def _description(config: BenchStepConfig, world: World, threads: int, num_weights: int) -> str:
    text = (
        f"bench_step: {config.model} ({num_weights:,} trainable weights), global batch {config.batch_size}, "
        f"{config.optimizer}, {config.dtype}, {sized(world.size, 'rank')} x {sized(threads, 'thread')}"
        + (f", averaging {config.average}" if world.size > 1 else "")
        + f", {machine.cpu_model()}\n"
        f"{sized(config.repeats, 'sample')} of each part, taken in turn; random images, no data set"
    )
    if any(world.gather_all(world.local_size > len(machine.cores_of_node(world)))):
        text += "\nWarning: more ranks than cores. Ranks wait for each other in every part."
    return text
