"""Measurements on all ranks: the step on 1, 2, 4, 8, ... ranks, and the calibration of a plan."""

from __future__ import annotations

import itertools
import statistics
from functools import partial

import msgspec

from mpi_train.benchmarks import output
from mpi_train.benchmarks.config import PlanConfig, ScalingConfig, every_step
from mpi_train.benchmarks.scaling import calibration as calibrations
from mpi_train.benchmarks.scaling import charts
from mpi_train.benchmarks.scaling import plan as plans
from mpi_train.benchmarks.scaling.calibrate import calibrate, while_others_sleep
from mpi_train.benchmarks.scaling.cost_model import Shape
from mpi_train.benchmarks.scaling.predict import Model
from mpi_train.benchmarks.timing import TimedStep, time_in_turn
from mpi_train.collectives.config import ExchangeConfig
from mpi_train.report.tables import Table
from mpi_train.runs.config import one_example_a_rank
from mpi_train.runtime import machine
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import as_dict
from mpi_train.runtime.world import World

FILES = ("scaling.json", "scaling.md", "scaling.png")
_COLUMNS = ("ranks", "exchange", "ms", "min to max", "predicted", "error", "speed-up", "each")


def plan(config: PlanConfig, world: World, threads: int) -> None:
    """Calibrate on all ranks of ``world``; rank 0 keeps the calibration, prints and writes the plan."""
    plans.check(config, world.size)
    console, device = output.begin(world, config.out, (calibrations.FILE, *plans.FILES))
    console.print(
        f"plan: {config.model}, batch {config.batch_size}, on {', '.join(world.hosts)}, {threads} threads "
        f"a rank, {machine.cpu_model()}"
    )
    calibration = calibrate(config, world, device, threads, every_step(), console)
    with world.together():
        if world.is_root:
            output.write(config.out, {calibrations.FILE: calibration.as_dict()})
            plans.write(config, calibration, console)


class Measured(msgspec.Struct, kw_only=True, rename={"collective": "way"}):
    """Step on one number of ranks with a global ``batch_size``, and the prediction.

    ``scaling`` is ``strong`` for a fixed global batch and ``weak`` for a fixed batch of a rank. ``step_s`` is
    the median of the samples.
    """

    collective: str
    scaling: str
    ranks: int
    batch_size: int
    samples_s: list[float]
    predicted_s: float
    step_s: float
    error: float
    speedup: float = 1.0

    def cells(self) -> list[str]:
        times_s = (self.step_s, min(self.samples_s), max(self.samples_s), self.predicted_s)
        median, low, high, predicted = (f"{time_s * 1e3:.2f}" for time_s in times_s)
        times = [median, f"{low} to {high}", predicted, f"{self.error:+.0%}"]
        name = self.collective if self.ranks > 1 else "none"
        return [str(self.ranks), name, *times, f"{self.speedup:.2f}x", f"{self.speedup / self.ranks:.0%}"]


def measure(config: ScalingConfig, world: World, threads: int) -> None:
    """Measure on all ranks of ``world``; rank 0 prints and writes.

    Raises ``UsageError`` for options that cannot be used, on all ranks.
    """
    one_example_a_rank(config.batch_size, world.size)
    if world.size < 2:
        raise UsageError(
            "scaling needs at least 2 ranks. Got: 1", remedy="mpiexec -n 8 python jobs/scaling.py"
        )
    console, device = output.begin(world, config.out, FILES)
    sizes = [2**power for power in range(world.size.bit_length())]
    step = f"{config.model}, batch {config.batch_size}, {config.optimizer}, {config.dtype}"
    console.print(
        f"scaling: {step}, {', '.join(map(str, sizes))} ranks of {threads} threads, {machine.cpu_model()}"
    )
    calibration = calibrate(config, world, device, threads, config.names, console)
    measured: list[Measured] = []
    for size in sizes:
        console.print(f"measuring {size} ranks" if size > 1 else "measuring 1 rank")
        measured += _measure_size(config, world, device, size, Model(calibration))
    environment = machine.describe(world)
    if not world.is_root:
        return
    for row in measured:
        row.speedup = (row.batch_size / row.step_s) / (measured[0].batch_size / measured[0].step_s)
    cores, notes = calibration.cores, []
    if calibration.one_machine:
        notes.append(f"All ranks share the {cores} cores of one machine.")
        if world.size > cores:
            notes.append(
                f"Beyond {cores} ranks the ranks take turns on the cores. No further speed-up is possible, "
                "and predictions are made from two ranks on one core."
            )
    tables = [
        Table(
            title=f"{kind.capitalize()} scaling: a step of {config.batch_size} examples {unit}",
            columns=_COLUMNS,
            rows=[row.cells() for row in measured if row.scaling == kind or row.ranks == 1],
        )
        for kind, unit in (("strong", "in all"), ("weak", "a rank"))
    ]
    output.show(console, tables)
    console.print(*notes, sep="\n")
    content = {
        "config": as_dict(config),
        "calibration": calibration.as_dict(),
        "measured": msgspec.to_builtins(measured),
        "environment": environment,
    }
    text = output.page(f"Scaling of {step}", notes, "![Measured beside predicted](scaling.png)", tables)
    output.write(config.out, dict(zip(FILES, (content, text, charts.scaling(measured)), strict=True)))
    console.print(f"Written: {config.out}/scaling.md, with scaling.json and scaling.png")


def _measure_size(
    config: ScalingConfig, world: World, device: str, size: int, model: Model
) -> list[Measured]:
    """Measure steps of the first ``size`` ranks; returns the same list on all ranks."""
    hosts = len(set(world.hosts[:size]))
    shape = Shape(hosts, size // hosts)
    batches = {"strong": config.batch_size, "weak": config.batch_size * size}
    cases = list(itertools.product(config.names, batches))[: None if size > 1 else 1]

    def time_steps(some: World) -> dict[tuple[str, str], list[float]]:
        timed_step = partial(TimedStep, config, some, device)
        works = {
            (name, kind): timed_step(batches[kind] // size * size, ExchangeConfig(collective=name))
            for name, kind in cases
        }
        return time_in_turn(works, some, repeats=config.repeats)

    found = []
    for (name, kind), samples_s in while_others_sleep(world, world.rank < size, time_steps).items():
        step_s = statistics.median(samples_s)
        predicted_s = model.step(name, shape, batches[kind] / size).total_s
        found.append(
            Measured(
                collective=name, scaling=kind, ranks=size, batch_size=batches[kind], samples_s=samples_s,
                predicted_s=predicted_s, step_s=step_s, error=predicted_s / step_s - 1,
            )
        )  # fmt: skip
    return found
