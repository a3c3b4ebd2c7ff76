"""How the figures of a comparison were taken, and what to beware of, in sentences."""

from __future__ import annotations

from mpi_train.collectives.registry import WAYS
from mpi_train.report import wording
from mpi_train.report.summary import Row, Summary
from mpi_train.runs.record import RunRecord


def notes(summary: Summary) -> list[str]:
    """How the figures were taken, and what to beware of."""
    reference = summary.reference
    lines = [
        "Training time is wall-clock time of the training steps, without start-up, tracing and evaluation.",
        "Images/s is the median over the epochs after the first.",
        _repeats_note(max(len(row.runs) for row in summary.rows)),
        "Speed-up: training time of the baseline (plain Keras fit, all cores) divided by the row's own."
        if summary.baseline is not None
        else "Speed-up is not given: there is no finished run of the baseline to count it against.",
    ]
    if reference is not None and reference.runs:
        lines.append(_efficiency_note(reference))
    elif any(row.unit != "process" for row in summary.rows):
        why = "was not run" if reference is None else wording.outcome(reference.unfinished)
        lines.append(f"Efficiency is not given: mpi on one rank, which it is counted against, {why}.")
    lines += [_stall_note(row) for row in summary.everyone if row.num_stalled]
    lines += [
        f"{row.name} averages weights after the update, each rank with a state of {_optimizer(row)} of its "
        f"own: that is not the update of one process (README, How the averaging works)."
        for row in summary.everyone
        if row.runs
        and row.workers > 1
        and row.runs[0].record.sync.get("average") == "weights"
        and _optimizer(row) != "sgd"
    ]
    lines += [line for row in summary.everyone if row.runs for line in _particulars(row)]
    lines += [line for row in summary.everyone for run in row.runs for line in _history(row, run.record)]
    lines += [_sharing_note(row) for row in summary.rows if _shares_cores(row)]
    lines += [_seeds_note(row) for row in summary.everyone if row.runs and row.missing_seeds]
    waiting = [attempt for row in summary.everyone for attempt in row.unfinished if not attempt.failed]
    if waiting:
        lines.append(f"The bench was interrupted: {len(waiting)} of its runs are missing.")
    return [*lines, *wording.unequal_conditions(summary)]


def _seeds_note(row: Row) -> str:
    seeds = ", ".join(map(str, row.missing_seeds))
    return (
        f"Beware: {row.name} on {row.size} has no run of seed {seeds}, which other rows have. Its ratios are "
        f"taken over the seeds that both sides have, its medians over its own."
    )


def _particulars(row: Row) -> list[str]:
    """What a reader must know of a row: an update that is not that of one process, idle stages."""
    sync = row.runs[0].record.sync
    lines = []
    if row.strategy == "ddp":
        lines.append(
            f"{row.name} is PyTorch, a yardstick; its efficiency too is counted against the suite's own loop."
        )
    if sync.get("average") == "clients":
        lines.append(
            f"{row.name} averages the models of {sync['clients']} clients once a round: another "
            f"optimisation, with rounds for epochs, and a batch that is that of one client's step."
        )
    if sync.get("average") == "weights+slots" and row.workers > 1 and _optimizer(row) != "sgd":
        lines.append(
            f"{row.name} averages weights and the state of {_optimizer(row)}: not the update of one process."
        )
    if "bubble" in (details := row.runs[0].record.details):
        lines.append(
            f"{row.name} on {row.size}: its ranks waited {wording.percent(details['bubble'])} of the time; "
            f"stages of equal speed would wait {wording.percent(details['bubble_in_theory'])}. It was cut "
            f"after {', '.join(details['cut']) or 'nothing'}."
        )
    way = WAYS.get(sync.get("collective", "auto"))
    if way is not None and way.changes_result and row.workers > 1:
        lines.append(
            f"{row.name} exchanges with --collective {sync['collective']} ({way.text}), "
            f"which saves or hides bytes, and changes the result."
        )
    elif int(sync.get("every", 1)) > 1 and row.workers > 1:
        lines.append(f"{row.name} averages after every {sync['every']} updates only (local SGD).")
    return lines


def _repeats_note(num_repeats: int) -> str:
    if num_repeats == 1:
        return "One repeat: nothing is known of the spread, so small differences mean nothing."
    return (
        f"Figures are the median (smallest to largest) over {num_repeats} repeats, each with a seed of its "
        f"own; ratios are taken within a repeat."
    )


def _efficiency_note(reference: Row) -> str:
    median, span = wording.cell(reference.images_per_s, wording.rate)
    threads = reference.runs[0].record.threads_per_rank
    return (
        f"Efficiency: images/s divided by workers x the images/s of the suite's own loop on one rank "
        f"(mpi x1, {threads} {'thread' if threads == 1 else 'threads'}), which is {median}"
        + (f" ({span})." if span else ".")
    )


def _optimizer(row: Row) -> str:
    return row.runs[0].record.optimizer


def _stall_note(row: Row) -> str:
    total = sum(len(run.record.epochs) for run in row.runs)
    return (
        f"{wording.STALLED} {row.name} on {row.size}: {row.num_stalled} of {total} epochs stalled: one "
        f"step took over a second and 20 times the usual. They count in the training time, but neither "
        f"in the speed-up nor in images/s."
    )


def _history(row: Row, record: RunRecord) -> list[str]:
    """What happened to a run on its way, if it is to be known by whoever reads its figures."""
    lines = []
    for event in record.history:
        where = f"{row.name} (seed {record.seed}) was {event['kind']} in epoch {event['epoch']}"
        where += f", after {event['step']} of its steps"
        if event["kind"] == "rolled back":
            lines.append(f"{where}, after NaN; its learning rate has been {event['learning_rate']:g} since.")
        else:
            lines.append(
                f"{where}, on {event['world_size']} {'rank' if event['world_size'] == 1 else 'ranks'}."
            )
    return lines


def _shares_cores(row: Row) -> bool:
    if row.unit == "process" or not row.runs:
        return False
    where = row.runs[0].record.environment
    num_hosts = len(set(where.get("hosts", ())))
    return not where.get("gpus") and 0 < int(where.get("cores") or 0) * num_hosts < row.workers


def _sharing_note(row: Row) -> str:
    cores = row.runs[0].record.environment["cores"]
    return (
        f"{row.name} on {row.size} had more workers than cores ({cores} a host): its efficiency shows the "
        f"sharing of cores, not the cost of working in parallel."
    )
