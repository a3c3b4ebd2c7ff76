"""Steps of 1, 2, 4, 8, … ranks as they are, beside what two of them let expect."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass

from rich.console import Console

from mpi_train.benchmarks.scaling.calibrate import TimedStep, calibrate, while_others_rest
from mpi_train.benchmarks.scaling.config import ScalingConfig
from mpi_train.benchmarks.scaling.cost_model import Shape
from mpi_train.benchmarks.scaling.output import Grid, make_folder, save
from mpi_train.benchmarks.scaling.predict import Model
from mpi_train.benchmarks.timing import Work, time_in_turn
from mpi_train.runs.config import one_example_a_rank
from mpi_train.runtime import devices, files, machine
from mpi_train.runtime.errors import UsageError, unwritable
from mpi_train.runtime.flags import as_dict
from mpi_train.runtime.world import World

_SAMPLE_S = 0.3


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One number of ranks.

    Attributes:
        way: How they exchange.
        scaling: ``strong``, where the global batch is the same at all sizes, or ``weak``, where a rank's is.
        ranks: How many.
        batch_size: Global.
        samples_s: Seconds of a step, slowest rank.
        predicted_s: The same from the calibration.
        speedup: Examples a second over those of one rank.
    """

    way: str
    scaling: str
    ranks: int
    batch_size: int
    samples_s: list[float]
    predicted_s: float
    speedup: float

    @property
    def step_s(self) -> float:
        return statistics.median(self.samples_s)

    @property
    def error(self) -> float:
        """Of the prediction, over what was measured."""
        return self.predicted_s / self.step_s - 1


FILES = ("scaling.json", "scaling.md", "scaling.png")


def measure(config: ScalingConfig, world: World, threads: int) -> None:
    """Measures on all ranks of ``world``; rank 0 prints and writes.

    Raises:
        UsageError: ways, a batch, a model or a folder that cannot be used; on all ranks.
    """
    one_example_a_rank(config.batch_size, world.size)
    if world.size < 2:
        raise UsageError(
            "scaling needs at least 2 ranks. Got: 1", remedy="mpiexec -n 8 python jobs/scaling.py"
        )
    with world.together():
        if world.is_root:
            make_folder(config.out, FILES)
    with world.together():
        device = devices.own_device(world)
    console = Console(quiet=not world.is_root, highlight=False, markup=False)
    sizes = [2**power for power in range(world.size.bit_length())]
    console.print(
        f"scaling: {config.model}, batch {config.batch_size}, {config.optimizer}, {config.dtype}, "
        f"{', '.join(map(str, sizes))} ranks of {threads} threads, {machine.cpu_model()}",
        soft_wrap=True,
    )
    calibration = calibrate(
        config, world, device, threads, config.ways, lambda text: console.print("measuring", text)
    )
    model = Model(calibration)
    measured: list[Measured] = []
    for size in sizes:
        console.print(f"measuring {size} ranks" if size > 1 else "measuring 1 rank")
        measured += _of_size(config, world, device, size, model, measured)
    where = machine.describe(world)
    notes = _notes(calibration.one_machine, calibration.cores, world.size)
    if not world.is_root:
        return
    grids = _grids(measured)
    for grid in grids:
        console.print()
        console.print(grid.table())
    for note in notes:
        console.print(note, soft_wrap=True)
    content = {
        "config": as_dict(config),
        "calibration": dataclasses.asdict(calibration),
        "measured": [
            {**dataclasses.asdict(each), "step_s": each.step_s, "error": each.error} for each in measured
        ],
        "environment": where,
    }
    from mpi_train.benchmarks.scaling import charts

    try:
        files.write_json(config.out / FILES[0], content)
        title = f"# Scaling of {config.model}, batch {config.batch_size}, {config.optimizer}, {config.dtype}"
        picture = "![Measured beside predicted](scaling.png)"
        files.write_text(
            config.out / FILES[1],
            "\n\n".join([title, *notes, *(grid.markdown() for grid in grids), picture]) + "\n",
        )
        save(charts.scaling(measured), config.out / FILES[2])
    except OSError as error:
        raise unwritable(config.out, error) from error
    console.print(f"Written: {config.out}/scaling.md, with scaling.json and scaling.png")


def _of_size(
    config: ScalingConfig,
    world: World,
    device: str,
    size: int,
    model: Model,
    before: list[Measured],
) -> list[Measured]:
    """Steps of the first ``size`` ranks; the same list on all."""
    hosts = len(set(world.hosts[:size]))
    shape = Shape(hosts, size // hosts)

    def steps(some: World) -> list[Measured]:
        cases = [
            (way, scaling, batch)
            for way in (config.ways if size > 1 else config.ways[:1])
            for scaling, batch in (("strong", config.batch_size), ("weak", config.batch_size * size))
            if size > 1 or scaling == "strong"
        ]
        works = [
            Work(
                f"{way} {scaling}",
                TimedStep(config, some, device, max(1, batch // size), way if size > 1 else None),
            )
            for way, scaling, batch in cases
        ]
        times = time_in_turn(works, some, repeats=config.repeats, sample_s=_SAMPLE_S)
        found: list[Measured] = []
        for work, (way, scaling, batch) in zip(works, cases, strict=True):
            samples = times[work.name]
            alone = before[0] if before else None
            rate = batch / statistics.median(samples)
            found.append(
                Measured(
                    way=way,
                    scaling=scaling,
                    ranks=size,
                    batch_size=batch,
                    samples_s=samples,
                    predicted_s=model.step(way, shape, batch / size).total_s,
                    speedup=rate / (alone.batch_size / alone.step_s) if alone else 1.0,
                )
            )
        return found

    return while_others_rest(world, world.rank < size, steps)


def _notes(one_machine: bool, cores: int, ranks: int) -> list[str]:
    if not one_machine:
        return []
    notes = [f"All ranks share the {cores} cores of one machine."]
    if ranks > cores:
        notes.append(
            f"Beyond {cores} ranks they take turns on the cores: no more speed-up is to be expected, and "
            "predictions are made from two ranks on one core."
        )
    return notes


def _grids(measured: list[Measured]) -> list[Grid]:
    alone, *others = measured
    columns = ["ranks", "exchange", "ms", "min to max", "predicted", "error", "speed-up", "each"]

    def row(each: Measured) -> list[str]:
        return [
            str(each.ranks),
            each.way if each.ranks > 1 else "none",
            f"{each.step_s * 1e3:.2f}",
            f"{min(each.samples_s) * 1e3:.2f} to {max(each.samples_s) * 1e3:.2f}",
            f"{each.predicted_s * 1e3:.2f}",
            f"{each.error:+.0%}",
            f"{each.speedup:.2f}x",
            f"{each.speedup / each.ranks:.0%}",
        ]

    titles = {
        "strong": f"Strong scaling: a step of {alone.batch_size} examples in all",
        "weak": f"Weak scaling: a step of {alone.batch_size} examples a rank",
    }
    return [
        Grid(
            title, columns, [row(each) for each in (alone, *others) if each.scaling == kind or each is alone]
        )
        for kind, title in titles.items()
    ]
