"""Plan: time of a training on more nodes with each collective, and a recommendation."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Any

from rich.console import Console

from mpi_train.benchmarks import output
from mpi_train.benchmarks.config import PlanConfig
from mpi_train.benchmarks.output import seconds
from mpi_train.benchmarks.scaling import calibration as calibrations
from mpi_train.benchmarks.scaling import charts
from mpi_train.benchmarks.scaling.calibration import Calibration
from mpi_train.benchmarks.scaling.predict import ENOUGH, Advice, Model, Training, advise, trainings
from mpi_train.report.tables import Table, size
from mpi_train.runs.job import run_job
from mpi_train.runtime import launch
from mpi_train.runtime import world as worlds
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import as_dict, flag_of, parse

FILES = ("plan.json", "plan.md", "plan.png")
_DESCRIPTION = "Predict what a training would take on more nodes."
_ON_TWO_NODES = "sbatch --exclusive --time=00:15:00 slurm/ranks.sh plan"
_ADVICE = ("fastest", "cheapest", "efficient", "falls_at_nodes")
_PARTS = ("compute", "waiting", "moving", "hidden", "own")


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``jobs/plan.py`` with the flags ``argv``: with ``--calibration`` in one process, else as ranks."""
    with nullcontext() if worlds.speaks() else redirect_stdout(io.StringIO()):
        config = parse(PlanConfig, argv, description=_DESCRIPTION, prog=launch.typed("plan"))
    if config.calibration is not None:
        worlds.alone(job="plan --calibration")
        predict_again(config)
    else:
        # Not imported here, because it needs TensorFlow.
        measure = "mpi_train.benchmarks.scaling.measure:plan"
        run_job("plan", PlanConfig, measure, text=_DESCRIPTION, mpi=True, argv=argv)


def predict_again(config: PlanConfig) -> None:
    """Predict from the calibration of a previous run, without MPI and TensorFlow."""
    assert config.calibration is not None
    calibration = calibrations.read(config.calibration)
    for name, measured in calibration.step.items():
        default, asked = PlanConfig.__dataclass_fields__[name].default, getattr(config, name)
        if asked not in (default, measured):
            flag = flag_of(name)
            raise UsageError(
                f"{flag}: expected {measured}, as --calibration was made with it. Got: {asked}",
                remedy=f"leave {flag} out, or measure again: mpiexec -n 2 python jobs/plan.py {flag} {asked}",
            )
    output.make_folder(config.out, FILES)
    write(config, calibration, output.console())


def check(config: PlanConfig, num_ranks: int) -> None:
    """Raise ``UsageError`` if ``num_ranks`` cannot measure what ``config`` needs."""
    if num_ranks == 1 and config.network is None:
        raise UsageError(
            "plan measures a network between two ranks. Got: 1 rank",
            remedy="mpiexec -n 2 python jobs/plan.py (or "
            f"{_ON_TWO_NODES}), or --gbit 100 --latency-us 2 for a network that you know",
        )
    if config.batch_size < 2:
        raise UsageError(
            f"--batch-size: expected at least 2, one example for each of two ranks. Got: {config.batch_size}"
        )


def write(config: PlanConfig, calibration: Calibration, console: Console) -> None:
    """Predict, print and write the plan into ``config.out``."""
    if calibration.uncontended is None and config.network is None:
        raise UsageError(
            "--calibration: expected one of two ranks, or a network. Got: one of 1 rank",
            remedy="--gbit 100 --latency-us 2, for example",
        )
    model = Model(calibration, config)
    found = trainings(model)
    exact = [name for name in found if not model.changes_result(name)]
    advices = {"the same result": advise(found, exact), "any*": advise(found, found)}
    everies = {name: f" /{every}" if (every := model.every(name)) > 1 else "" for name in found}
    labels = {name: f"{name}{every}{'' if name in exact else '*'}" for name, every in everies.items()}

    def by_collective(title: str, cell: Callable[[Training], str]) -> Table:
        sizes = [f"{row.shape.ranks:,}" for row in _shown(next(iter(found.values())))]
        rows = [[labels[name], *map(cell, _shown(line))] for name, line in found.items()]
        return Table(title=title, columns=("ranks", *sizes), rows=rows)

    times = "Training time (* changes the result: check it; /32: every 32 steps)"
    efficiency = "Parallel efficiency: time of one rank for as many examples, over the ranks times their time"
    tables = [
        _advice(advices, labels),
        _steps(found[advices["the same result"].fastest.collective]),
        by_collective(times, lambda row: seconds(row.train_s)),
        by_collective(efficiency, lambda row: f"{row.efficiency:.0%}"),
    ]
    lines = [*_heading(model), *_notes(model)]
    output.show(console, tables)
    console.print("", *lines, sep="\n")
    content = {
        "config": as_dict(config),
        "one_machine": model.one_machine,
        "network": dataclasses.asdict(model.network),
        "trainings": [_entry(row) for rows in found.values() for row in rows],
        "advice": {
            name: dict(zip(_ADVICE, (*map(_entry, advice[:3]), advice.falls_at), strict=True))
            for name, advice in advices.items()
        },
    }
    title = f"# Plan for {calibration.step['model']}, {config.epochs} epochs"
    text = [title, "\n".join(f"- {line}" for line in lines), "![Time and node-hours](plan.png)"]
    text += [table.markdown() for table in tables]
    chart = charts.plan(found, model, lines[0])
    output.write(config.out, dict(zip(FILES, (content, "\n\n".join(text) + "\n", chart), strict=True)))
    console.print(f"Written: {config.out}/plan.md, with plan.json and plan.png")


def _entry(row: Training) -> dict[str, Any]:
    """Return a training as ``plan.json`` has it."""
    return {
        "way": row.collective, "nodes": row.shape.nodes, "ranks": row.shape.ranks,
        "batch_size": row.batch_size, "step_s": row.step.total_s,
        "parts_s": {name: getattr(row.step, f"{name}_s") for name in _PARTS},
        "sent_bytes": row.step.sent_bytes, "train_s": row.train_s, "node_hours": row.node_hours,
        "efficiency": row.efficiency,
    }  # fmt: skip


def _heading(model: Model) -> list[str]:
    config, step, network = model.config, model.calibration.step, model.network
    batch = f"batch {step['batch_size']} {'a rank' if config.weak else 'in all'}"
    burst = f", after pauses {size(network.burst_bytes)} at once" if network.burst_bytes else ""
    origin = "given" if config.network else "measured between two ranks"
    gbit = 8e-9 / network.seconds_per_byte
    work = f"{config.epochs} epochs of {config.examples:,} examples"
    return [
        f"{step['model']}, {batch}, {step['optimizer']}, {step['dtype']}: {work}",
        f"Network, {origin}: {seconds(network.latency_s)} a message, {gbit:.3g} Gbit/s{burst}",
        f"Weights: {size(model.calibration.model_bytes)}",
    ]


def _notes(model: Model) -> list[str]:
    """Return sentences on the limits of the prediction."""
    config, calibration = model.config, model.calibration
    batch, measured = calibration.step["batch_size"], calibration.uncontended
    notes = ["Times are those of training, without start-up and evaluation."]
    if measured is not None and config.network is None:
        notes.append(f"The fitted network is within {measured.fit_error:.0%} of the measurements.")
        if len(set(calibration.hosts)) == 1:
            notes.append(
                "It was measured within one node, as if nodes could reach each other's memory: measure on "
                f"two ({_ON_TWO_NODES}), or give --gbit and --latency-us."
            )
    if model.one_machine:
        notes.append(
            f"All ranks share the {calibration.cores} cores of one machine, as measured: more ranks do not "
            "compute faster. --machine many predicts nodes with cores of their own."
        )
    if not config.weak and config.max_ranks > batch:
        notes.append(
            f"A batch of {batch} is enough for {batch:,} ranks at most. More ranks need a larger "
            "--batch-size, or --weak; both change the result."
        )
    if config.weak and config.max_ranks * batch > config.examples:
        most = f"{-(-config.examples // batch):,} ranks"
        notes.append(f"From {most} on, an epoch is less than one batch: more ranks have nothing to do.")
    return notes


def _advice(advices: Mapping[str, Advice], labels: Mapping[str, str]) -> Table:
    rows = []
    for kind, advice in advices.items():
        nodes, efficient = advice.falls_at, f"{ENOUGH:.0%} efficient"
        if nodes is not None:
            efficient += f"; under at {nodes:,} node{'s' if nodes > 1 else ''}"
        trainings = {efficient: advice.efficient, "fastest": advice.fastest, "cheapest": advice.cheapest}
        for goal, row in trainings.items():
            exchange = labels[row.collective] if row.shape.ranks > 1 else "none"
            cells = [f"{row.shape.nodes:,}", exchange, seconds(row.train_s), f"{row.node_hours:.3g}"]
            rows.append([f"{kind}: {goal}", *cells])
    columns = ("for", "nodes", "exchange", "time", "node-hours")
    return Table(title="Recommendation", columns=columns, rows=rows)


def _shown(rows: Sequence[Training]) -> list[Training]:
    """Return at most 8 of ``rows``, with the first and the last."""
    while len(rows) > 8:
        rows = rows[::2] if len(rows) % 2 else [*rows[:-1:2], rows[-1]]
    return list(rows)


def _steps(rows: Sequence[Training]) -> Table:
    """Return the parts of a step with one collective."""
    cells = []
    for row in _shown(rows):
        times = [*(getattr(row.step, f"{name}_s") for name in _PARTS), row.step.total_s]
        cells.append([f"{row.shape.ranks:,}", *map(seconds, times), size(row.step.sent_bytes)])
    columns = ("ranks", *_PARTS, "in all", "sent by a node")
    return Table(title=f"A step with {rows[0].collective}", columns=columns, rows=cells)
