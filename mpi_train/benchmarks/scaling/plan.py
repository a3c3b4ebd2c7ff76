"""Plan: time of a training on more nodes with each collective, and a recommendation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from mpi_train.benchmarks import output
from mpi_train.benchmarks.config import PlanConfig
from mpi_train.benchmarks.output import seconds
from mpi_train.benchmarks.scaling import calibration as calibrations
from mpi_train.benchmarks.scaling import charts
from mpi_train.benchmarks.scaling.calibration import Calibration
from mpi_train.benchmarks.scaling.predict import ENOUGH, Advice, Model, Training, Trainings, advise, trainings
from mpi_train.report import pages
from mpi_train.report.tables import Table, size
from mpi_train.runs.config import one_example_a_rank
from mpi_train.runs.job import read_flags, run_job
from mpi_train.runtime import launch
from mpi_train.runtime import world as worlds
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import as_dict, flag_of

FILES = ("plan.json", "plan.md", "plan.png")
_DESCRIPTION = "Predict what a training would take on more nodes."
_ON_TWO_NODES = "sbatch --exclusive --time=00:15:00 slurm/ranks.sh plan"
_GOALS = ("efficient", "fastest", "cheapest")


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``jobs/plan.py`` with the flags ``argv``: with ``--calibration`` in one process, else as ranks."""
    config = read_flags(PlanConfig, argv, text=_DESCRIPTION, prog=launch.typed("plan"))
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
    if num_ranks == 1:
        raise UsageError(
            "plan measures a network between two ranks. Got: 1 rank",
            remedy=f"mpiexec -n 2 python jobs/plan.py, or {_ON_TWO_NODES}",
        )
    one_example_a_rank(config.batch_size, 2)


def write(config: PlanConfig, calibration: Calibration, console: Console) -> None:
    """Predict, print and write the plan into ``config.out``."""
    model = Model(calibration, config)
    found = trainings(model)
    exact = [name for name in found if not model.changes_result(name)]
    advices = {"the same result": advise(found, exact), "any*": advise(found, found)}
    tables, lines = _tables(model, found, advices), _notes(model)
    output.show(console, tables)
    console.print("", *lines, sep="\n")
    content = {
        "config": as_dict(config),
        "one_machine": model.one_machine,
        "network": dataclasses.asdict(model.network),
        "trainings": [_entry(row) for rows in found.values() for row in rows],
        "advice": {
            kind: {goal: _entry(getattr(advice, goal)) for goal in _GOALS}
            | {"falls_at_nodes": advice.falls_at}
            for kind, advice in advices.items()
        },
    }
    title = f"Plan for {calibration.step['model']}, {config.epochs} epochs"
    text = output.page(title, lines, "![Time and node-hours](plan.png)", tables)
    chart = charts.plan(found, model, lines[0])
    output.write(config.out, dict(zip(FILES, (content, text, chart), strict=True)))
    console.print(f"Written: {config.out}/plan.md, with plan.json and plan.png")


def _notes(model: Model) -> list[str]:
    """Return sentences on the work, the network and the limits of the prediction."""
    return pages.fill(
        "notes.j2", __package__, **vars(model), size=size, seconds=seconds, on_two_nodes=_ON_TWO_NODES
    ).splitlines()


def _entry(row: Training) -> dict[str, Any]:
    """Return a training as ``plan.json`` has it."""
    return {
        "way": row.collective, "nodes": row.shape.nodes, "ranks": row.shape.ranks,
        "batch_size": row.batch_size, "step_s": row.step.total_s,
        "parts_s": row.step.parts_s, "sent_bytes": row.step.sent_bytes, "train_s": row.train_s,
        "node_hours": row.node_hours, "efficiency": row.efficiency,
    }  # fmt: skip


def _tables(model: Model, found: Trainings, advices: Mapping[str, Advice]) -> list[Table]:
    """Return the recommendation, the parts of a step, training times and efficiencies."""
    everies = {name: f" /{every}" if (every := model.every(name)) > 1 else "" for name in found}
    labels = {name: f"{name}{everies[name]}{'*' if model.changes_result(name) else ''}" for name in found}
    recommended = []
    for kind, advice in advices.items():
        nodes = advice.falls_at
        falls = f"; under at {nodes:,} node{'s' if nodes > 1 else ''}" if nodes else ""
        for goal in _GOALS:
            row: Training = getattr(advice, goal)
            exchange = labels[row.collective] if row.shape.ranks > 1 else "none"
            shown = f"{ENOUGH:.0%} efficient{falls}" if goal == "efficient" else goal
            cells = [f"{row.shape.nodes:,}", exchange, seconds(row.train_s), f"{row.node_hours:.3g}"]
            recommended.append([f"{kind}: {shown}", *cells])
    best = advices["the same result"].fastest.collective
    steps = [
        [
            f"{shape.ranks:,}",
            *map(seconds, (*step.parts_s.values(), step.total_s)),
            size(step.sent_bytes),
        ]
        for shape, step in ((row.shape, row.step) for row in _shown(found[best]))
    ]

    def by_collective(title: str, cell: Callable[[Training], str]) -> Table:
        rows = [[labels[name], *map(cell, _shown(line))] for name, line in found.items()]
        return Table(title=title, columns=("ranks", *(row[0] for row in steps)), rows=rows)

    times = "Training time (* changes the result: check it; /32: every 32 steps)"
    efficiency = "Parallel efficiency: time of one rank for as many examples, over the ranks times their time"
    columns = ("for", "nodes", "exchange", "time", "node-hours")
    parts = ("ranks", *found[best][0].step.parts_s, "in all", "sent by a node")
    return [
        Table(title="Recommendation", columns=columns, rows=recommended),
        Table(title=f"A step with {best}", columns=parts, rows=steps),
        by_collective(times, lambda row: seconds(row.train_s)),
        by_collective(efficiency, lambda row: f"{row.efficiency:.0%}"),
    ]


def _shown(rows: Sequence[Training]) -> list[Training]:
    """Return at most 8 of ``rows``, with the first and the last."""
    while len(rows) > 8:
        rows = rows[::2] if len(rows) % 2 else [*rows[:-1:2], rows[-1]]
    return list(rows)
