"""The plan: what a training would take on more nodes, for each way to exchange, and what to choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from mpi_train.benchmarks.scaling import calibration as calibrations
from mpi_train.benchmarks.scaling.calibration import Calibration
from mpi_train.benchmarks.scaling.config import PlanConfig
from mpi_train.benchmarks.scaling.output import Grid, make_folder, save, seconds
from mpi_train.benchmarks.scaling.predict import Model, Training, trainings
from mpi_train.benchmarks.scaling.recommend import ENOUGH, Advice, advise
from mpi_train.benchmarks.scaling.simgrid import Simulated, interpreter, simulate
from mpi_train.report import tables
from mpi_train.runtime import files
from mpi_train.runtime.errors import UsageError, unwritable
from mpi_train.runtime.flags import as_dict

FILES = ("plan.json", "plan.md", "plan.png")


def from_file(config: PlanConfig) -> None:
    """Predicts from an earlier calibration; in one process, without MPI or TensorFlow."""
    assert config.calibration is not None
    calibration = calibrations.read(config.calibration)
    _same_step(config, calibration)
    check_simulator(config)
    make_folder(config.out, FILES)
    write(config, calibration, Console(highlight=False, markup=False))


def check(config: PlanConfig, num_ranks: int) -> None:
    """Raises ``UsageError`` when ``num_ranks`` cannot measure what is asked for."""
    if num_ranks == 1 and config.network is None:
        raise UsageError(
            "plan measures a network between two ranks. Got: 1 rank",
            remedy="mpiexec -n 2 python jobs/plan.py (or sbatch slurm/plan_2nodes.sh), or --gbit 100 "
            "--latency-us 2 for a network that you know",
        )


def check_simulator(config: PlanConfig) -> None:
    """Raises ``PlatformError`` where a simulation is asked for and cannot be: before anything is measured."""
    if config.simulate:
        interpreter()


def write(config: PlanConfig, calibration: Calibration, console: Console) -> None:
    """Predicts, prints and writes the plan into ``config.out``."""
    if calibration.roomy is None and config.network is None:
        raise UsageError(
            "--calibration: expected one of two ranks, or a network. Got: one of 1 rank",
            remedy="--gbit 100 --latency-us 2, for example",
        )
    one_machine = {"auto": None, "one": True, "many": False}[config.machine]
    model = Model(calibration, network=config.network, one_machine=one_machine, every=config.every)
    found = trainings(
        model,
        epochs=config.epochs,
        num_examples=config.examples,
        max_ranks=config.max_ranks,
        per_node=config.ranks_per_node,
        weak=config.weak,
    )
    exact = [way for way in found if not model.changes_result(way)]
    advices = {"the same result": advise(found, exact), "any*": advise(found, found)}
    simulated: list[Simulated] = []
    if config.simulate:
        simulated = list(
            simulate(model.network, calibration.model_bytes, say=lambda text: console.print(text))
        )
    grids = [
        _advice(advices, model),
        _steps(found, advices["the same result"]),
        _times(found, model),
        _efficiencies(found, model),
    ]
    if simulated:
        grids.append(_simulations(simulated))
    lines = [*_heading(config, model), *_notes(config, model)]
    for grid in grids:
        console.print()
        console.print(grid.table())
    console.print()
    for line in lines:
        console.print(line, soft_wrap=True)
    _write(config, model, found, advices, simulated, grids, lines)
    console.print(f"Written: {config.out}/plan.md, with plan.json and plan.png")


def _write(
    config: PlanConfig,
    model: Model,
    found: Mapping[str, Sequence[Training]],
    advices: Mapping[str, Advice],
    simulated: Sequence[Simulated],
    grids: Sequence[Grid],
    lines: Sequence[str],
) -> None:
    from mpi_train.benchmarks.scaling import charts

    content: dict[str, Any] = {
        "config": as_dict(config),
        "one_machine": model.one_machine,
        "network": dataclasses.asdict(model.network),
        "trainings": [_as_dict(row) for rows in found.values() for row in rows],
        "advice": {
            name: {
                **{kind: _as_dict(getattr(advice, kind)) for kind in ("fastest", "cheapest", "efficient")},
                "falls_at_nodes": advice.falls_at,
            }
            for name, advice in advices.items()
        },
        "simulated": [{**dataclasses.asdict(each), "difference": each.difference} for each in simulated],
    }
    title = f"# Plan for {model.calibration.step['model']}, {config.epochs} epochs"
    text = [title, "\n".join(f"- {line}" for line in lines), "![Time and node-hours](plan.png)"]
    try:
        files.write_json(config.out / FILES[0], content)
        files.write_text(
            config.out / FILES[1], "\n\n".join([*text, *(grid.markdown() for grid in grids)]) + "\n"
        )
        save(charts.plan(found, model, lines[0]), config.out / FILES[2])
    except OSError as error:
        raise unwritable(config.out, error) from error


def _as_dict(row: Training) -> dict[str, Any]:
    return {
        "way": row.way,
        "nodes": row.shape.nodes,
        "ranks": row.shape.ranks,
        "batch_size": row.batch_size,
        "step_s": row.step.total_s,
        "parts_s": {
            name: getattr(row.step, f"{name}_s") for name in ("compute", "waiting", "moving", "hidden", "own")
        },
        "sent_bytes": row.step.sent_bytes,
        "train_s": row.train_s,
        "node_hours": row.node_hours,
        "efficiency": row.efficiency,
    }


def _same_step(config: PlanConfig, calibration: Calibration) -> None:
    """Raises ``UsageError`` where flags say another step than the one that was measured."""
    for name, measured in calibration.step.items():
        default = PlanConfig.__dataclass_fields__[name].default
        asked = getattr(config, name)
        if asked not in (default, measured):
            flag = "--" + name.replace("_", "-")
            raise UsageError(
                f"{flag}: expected {measured}, as --calibration was made with it. Got: {asked}",
                remedy=f"leave {flag} out, or measure again: mpiexec -n 2 python jobs/plan.py {flag} {asked}",
            )


def _heading(config: PlanConfig, model: Model) -> list[str]:
    step, network = model.calibration.step, model.network
    batch = f"batch {step['batch_size']} {'a rank' if config.weak else 'in all'}"
    burst = f", after pauses {tables.size(network.burst_bytes)} at once" if network.burst_bytes else ""
    how = "given" if config.network else "measured between two ranks"
    work = f"{config.epochs} epochs of {config.examples:,} examples"
    gbit = 8e-9 / network.seconds_per_byte
    return [
        f"{step['model']}, {batch}, {step['optimizer']}, {step['dtype']}: {work}",
        f"Network, {how}: {seconds(network.latency_s)} a message, {gbit:.3g} Gbit/s{burst}",
        f"Weights: {tables.size(model.calibration.model_bytes)}",
    ]


def _notes(config: PlanConfig, model: Model) -> list[str]:
    calibration, notes = model.calibration, []
    if calibration.roomy is not None and config.network is None:
        notes.append(f"The network's fit is within {calibration.roomy.fit_error:.0%} of what was measured.")
        if len(set(calibration.hosts)) == 1:
            notes.append(
                "It was measured within one node, as if nodes could reach each other's memory: measure "
                "on two (sbatch slurm/plan_2nodes.sh), or give --gbit and --latency-us."
            )
    if model.one_machine:
        notes.append(
            f"All ranks share the {calibration.cores} cores of one machine, as measured: more of them do "
            "not compute faster. --machine many predicts nodes with cores of their own."
        )
    most = calibration.step["batch_size"]
    if not config.weak and config.max_ranks > most:
        notes.append(
            f"A batch of {most} goes round {most:,} ranks at most. More need a larger --batch-size, or "
            "--weak, by which it grows with them; both change the result."
        )
    if config.weak and config.max_ranks * most > config.examples:
        notes.append(
            f"From {-(-config.examples // most):,} ranks on an epoch is less than one batch: more of them "
            "have nothing to do."
        )
    return [*notes, "Times are those of training, without start-up and evaluation."]


def _advice(advices: Mapping[str, Advice], model: Model) -> Grid:
    rows = []
    for kind, advice in advices.items():
        falls = f"; under at {_count(advice.falls_at)}" if advice.falls_at else ""
        for what, row in (
            (f"{ENOUGH:.0%} efficient{falls}", advice.efficient),
            ("fastest", advice.fastest),
            ("cheapest", advice.cheapest),
        ):
            way = _label(row.way, model) if row.shape.ranks > 1 else "none"
            rows.append([f"{kind}: {what}", f"{row.shape.nodes:,}", way, seconds(row.train_s), _hours(row)])
    return Grid("What to take", ["for", "nodes", "exchange", "time", "node-hours"], rows)


def _hours(row: Training) -> str:
    return f"{row.node_hours:.3g}"


def _count(nodes: int) -> str:
    return "1 node" if nodes == 1 else f"{nodes:,} nodes"


def _label(way: str, model: Model) -> str:
    every = model.every(way)
    return way + (f" /{every}" if every > 1 else "") + ("*" if model.changes_result(way) else "")


def _sizes(found: Mapping[str, Sequence[Training]]) -> tuple[list[int], list[str]]:
    """Which rows to show, at most 8, and their columns."""
    rows = next(iter(found.values()))
    chosen = list(range(len(rows)))
    while len(chosen) > 8:
        chosen = chosen[::2] if (len(chosen) - 1) % 2 == 0 else [*chosen[:-1:2], chosen[-1]]
    return chosen, [f"{rows[i].shape.ranks:,}" for i in chosen]


def _by_way(title: str, found: Mapping[str, Sequence[Training]], model: Model, cell: Any) -> Grid:
    chosen, columns = _sizes(found)
    return Grid(
        title,
        ["ranks", *columns],
        [[_label(way, model), *(cell(rows[i]) for i in chosen)] for way, rows in found.items()],
    )


def _times(found: Mapping[str, Sequence[Training]], model: Model) -> Grid:
    title = "Training time (* changes the result: check it; /32: every 32 steps)"
    return _by_way(title, found, model, lambda row: seconds(row.train_s))


def _efficiencies(found: Mapping[str, Sequence[Training]], model: Model) -> Grid:
    return _by_way(
        "Efficiency of the ranks: what one takes for as many examples, over their number times this",
        found,
        model,
        lambda row: f"{row.efficiency:.0%}",
    )


def _steps(found: Mapping[str, Sequence[Training]], advice: Advice) -> Grid:
    way = advice.fastest.way
    chosen, _ = _sizes(found)
    rows = [
        [
            f"{row.shape.ranks:,}",
            *(
                seconds(value)
                for value in (
                    row.step.compute_s,
                    row.step.waiting_s,
                    row.step.moving_s,
                    row.step.hidden_s,
                    row.step.own_s,
                    row.step.total_s,
                )
            ),
            tables.size(row.step.sent_bytes),
        ]
        for row in (found[way][i] for i in chosen)
    ]
    return Grid(
        f"A step with {way}",
        ["ranks", "compute", "waiting", "moving", "hidden", "own", "in all", "sent by a node"],
        rows,
    )


def _simulations(simulated: Sequence[Simulated]) -> Grid:
    return Grid(
        f"One all-reduce of the weights: formula and SimGrid {simulated[0].version}",
        ["algorithm", "ranks", "formula", "SimGrid", "difference", "messages", "of the rounds"],
        [
            [
                each.algorithm,
                f"{each.ranks:,}",
                seconds(each.formula_s),
                seconds(each.simulated_s),
                f"{each.difference:+.1%}",
                f"{each.messages:,}",
                f"{each.part:.1%}",
            ]
            for each in simulated
        ],
    )
