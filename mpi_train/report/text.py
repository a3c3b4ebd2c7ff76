"""Sentences of a report: title, readings, notes on how the figures were taken, machine and commands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.report import tables
from mpi_train.report.summary import Row, Spread, Summary, differences, sized
from mpi_train.report.tables import accuracy, percent, seconds, times
from mpi_train.runs.record import RunRecord

_DATASETS = {
    "fashion_mnist": "Fashion-MNIST",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "synthetic": "synthetic data",
    "synthetic_mnist": "synthetic digits",
    "synthetic_cifar10": "synthetic colour images",
}
_FIELDS = {
    "dataset_sha256": "data with SHA-256 ",
    "global_batch_size": "global batch ",
    "learning_rate": "learning rate ",
    "num_epochs": "epochs ",
}
MACHINE = ("CPU", "Cores", "GPUs", "MPI", "Python", "TensorFlow", "Keras", "PyTorch", "Commit")
"""Facts that should be the same for all compared runs."""


def contents(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """Return the texts and tables of each group of runs, for the templates."""
    return [
        {
            "title": title(summary),
            "difference": _difference(fields),
            "caution": caution(summary),
            "header": header(summary),
            "comparison": tables.comparison(summary),
            "details": tables.details(summary),
            "epochs": tables.epochs(summary),
            "readings": [reading(row, summary) for row in summary.rows],
            "notes": notes(summary),
            "rows": summary.everyone,
            "charts": [],
        }
        for summary, fields in zip(summaries, differences(summaries), strict=True)
    ]


def data_name(summary: Summary) -> str:
    """Return the name of the data set in titles. Drawn stand-ins are called synthetic."""
    return _DATASETS.get(summary.work["dataset"], summary.work["dataset"])


def title(summary: Summary) -> str:
    """Return the title of a comparison."""
    strategies = "one strategy" if len(summary.rows) == 1 else f"{len(summary.rows)} strategies"
    return f"Training on {data_name(summary)}: {summary.work['model']} under {strategies}"


def caution(summary: Summary) -> str:
    """Return a warning that belongs above all figures; empty for real data."""
    text = (
        "The data are synthetic images, drawn because no real data were given. Times are real, but "
        "accuracies cannot be compared with those on the real data set."
    )
    return text if summary.work["dataset"].startswith("synthetic") else ""


def _difference(fields: dict[str, Any]) -> str:
    """Return the difference from other groups, such as ``global batch 128, bfloat16``."""
    shown = {
        name: value for name, value in fields.items() if name != "dataset_sha256" or "dataset" not in fields
    }
    return ", ".join(f"{_FIELDS.get(name, '')}{value}" for name, value in shown.items())


def reading(row: Row, summary: Summary) -> str:
    """Return one sentence that states the meaning of a row's figures."""
    subject = f"{row.name} on {row.size}"
    if row.train_s is None or row.test_accuracy is None:
        return f"{subject} {tables.outcome(row.unfinished)}, so it has no figures."
    test_accuracy = accuracy(row.test_accuracy.median)
    trained = f"trained in {seconds(row.train_s.median)} s to a test accuracy of {test_accuracy}"
    if row.is_baseline:
        return f"{row.name}, which is plain Keras on all cores, {trained}."
    if row.speedup is None or row.accuracy_gain is None:
        return f"{subject} {trained}; without a valid baseline run it has no speed-up."
    sent = row.record.bytes_per_step
    bytes_sent = f"; each rank sent at most {tables.size(sent)} a batch" if sent else ""
    return f"{subject} {_speed(row.speedup)}, {_gain(row.accuracy_gain, summary.baseline)}{bytes_sent}."


def _speed(speedup: Spread) -> str:
    span = f" ({times(speedup.low)} to {times(speedup.high)})" if speedup.num_repeats > 1 else ""
    if span and speedup.low <= 1 <= speedup.high:
        return f"was neither faster nor slower than plain Keras beyond the spread of its repeats{span}"
    if speedup.median >= 1:
        return f"trained {times(speedup.median)} as fast as plain Keras{span}"
    return f"trained more slowly than plain Keras, at {times(speedup.median)} its speed{span}"


def _gain(gain: Spread, baseline: Row | None) -> str:
    points = 100 * abs(gain.median)
    if points < 0.05:
        return "at the same accuracy"
    text = f"at {points:.1f} points {'more' if gain.median > 0 else 'less'} accuracy"
    own = baseline and baseline.test_accuracy
    between = own.high - own.low if own and own.num_repeats > 1 else 0.0
    if points <= 100 * between:
        text += f", which is within the {100 * between:.1f} points between the baseline's seeds"
    return text


def notes(summary: Summary) -> list[str]:
    """Return notes on how the figures were taken, and warnings."""
    num_repeats = max(len(row.runs) for row in summary.rows)
    missing = sum(not attempt.failed for row in summary.everyone for attempt in row.unfinished)
    return [
        "Training time is wall-clock time of the training steps, without start-up, tracing and evaluation.",
        "Images/s is the median over the epochs after the first.",
        (
            "One repeat: the spread is unknown, so small differences mean nothing."
            if num_repeats == 1
            else f"Figures are the median (smallest to largest) over {num_repeats} repeats, each with "
            f"another seed. Ratios are taken within a repeat."
        ),
        (
            "Speed-up is not given: there is no finished run of the baseline."
            if summary.baseline is None
            else "Speed-up: training time of the baseline (Keras fit, all cores) divided by the row's own."
        ),
        *_efficiency(summary),
        *(line for row in summary.measured for line in (*_method(row), *_history(row), *_limits(row))),
        *([f"The bench was interrupted: {missing} of its runs are missing."] if missing else []),
        *unequal_conditions(summary),
    ]


def _efficiency(summary: Summary) -> Iterator[str]:
    reference = summary.reference
    if reference is not None and reference.runs:
        threads = reference.record.threads_per_rank
        yield (
            f"Efficiency: images/s divided by workers x the images/s of the suite's own loop on one rank "
            f"(mpi x1, {threads} {'thread' if threads == 1 else 'threads'}), which is "
            f"{tables.one_line(tables.cell(reference.images_per_s, tables.rate))}."
        )
    elif any(row.unit != "process" for row in summary.rows):
        why = "was not run" if reference is None else tables.outcome(reference.unfinished)
        yield f"Efficiency is not given: its reference, mpi on one rank, {why}."


def _method(row: Row) -> Iterator[str]:
    """Yield notes on updates that differ from those of one process, and on idle pipeline stages."""
    record, sync, details = row.record, row.record.sync, row.record.details
    if record.environment.get("pytorch"):
        yield f"{row.name} is PyTorch, for comparison. Its efficiency, too, refers to the suite's own loop."
    if "bubble" in details:
        yield (
            f"{row.name} on {row.size}: ranks waited {percent(details['bubble'])} of the time; stages of "
            f"equal speed would wait {percent(details['bubble_in_theory'])}. The model was cut after "
            f"{', '.join(details['cut']) or 'nothing'}."
        )
    if sync.get("average") == "clients":
        yield (
            f"{row.name} averages the models of {sync['clients']} clients once a round. That is another "
            f"optimization: an epoch is a round, and the batch is that of one client's step."
        )
    if row.workers == 1:
        return
    averaged = {
        "weights": f"weights after the update, and each rank keeps its own state of {record.optimizer}",
        "weights+slots": f"weights and the state of {record.optimizer}",
    }.get(sync.get("average", ""))
    if averaged and record.optimizer != "sgd":
        yield (
            f"{row.name} averages {averaged}. That is not the update of one process (README, How the "
            f"averaging works)."
        )
    collective = COLLECTIVES.get(sync.get("collective", "auto"))
    if collective is not None and collective.changes_result:
        yield (
            f"{row.name} exchanges with --collective {sync['collective']} ({collective.text}), which saves "
            f"or hides bytes, and changes the result."
        )
    elif int(sync.get("every", 1)) > 1:
        yield f"{row.name} averages after every {sync['every']} updates only (local SGD)."


def _history(row: Row) -> Iterator[str]:
    for record, event in ((run.record, event) for run in row.runs for event in run.record.history):
        since = (
            f"after NaN; its learning rate has been {event['learning_rate']:g} since."
            if event["kind"] == "rolled back"
            else f"on {sized(event['world_size'], 'rank')}."
        )
        yield (
            f"{row.name} (seed {record.seed}) was {event['kind']} in epoch {event['epoch']}, after "
            f"{event['step']} of its steps, {since}"
        )


def _limits(row: Row) -> Iterator[str]:
    """Yield warnings about stalled epochs, shared cores and missing seeds."""
    subject, machine = f"{row.name} on {row.size}", row.record.environment
    if row.num_stalled:
        total = sum(len(run.record.epochs) for run in row.runs)
        yield (
            f"{tables.STALLED} {subject}: {row.num_stalled} of {total} epochs stalled: one step took over a "
            f"second and 20 times the usual. Stalled epochs count in the training time, but neither in the "
            f"speed-up nor in images/s."
        )
    cores = int(machine.get("cores") or 0)
    shares = 0 < cores * len(set(machine.get("hosts", ()))) < row.workers
    if shares and row.unit != "process" and not machine.get("gpus"):
        yield (
            f"{subject} had more workers than cores ({cores} a host): its efficiency shows the sharing of "
            f"cores, not the cost of parallel training."
        )
    if row.missing_seeds:
        yield (
            f"Beware: {subject} has no run of seed {_distinct(row.missing_seeds)}, which other rows have. "
            f"Ratios use the seeds that both sides have, medians all seeds of a row."
        )


def environment_facts(record: RunRecord) -> dict[str, str]:
    """Return machine and software of a run, by name in the header. Unknown facts are left out."""
    where = record.environment
    mpi = where.get("mpi") or {}
    facts = {
        "CPU": where.get("cpu"),
        "Cores": where.get("cores"),
        "GPUs": ", ".join(where.get("gpus") or []),
        "MPI": " ".join(str(mpi[name]) for name in ("vendor", "version") if name in mpi),
        **{name: where.get(name.lower()) for name in ("Python", "TensorFlow", "Keras", "PyTorch")},
        "Commit": where.get("git_commit"),
        "Slurm job": where.get("slurm_job_id"),
    }
    return {name: str(value) for name, value in facts.items() if value}


def unequal_conditions(summary: Summary) -> list[str]:
    """Return a warning for each fact about the machine in which runs differ."""
    return [
        f"Beware: the runs were not made under equal conditions. {name}: {found}."
        for name, found in _facts(summary).items()
        if name in MACHINE and " / " in found
    ]


def _facts(summary: Summary) -> dict[str, str]:
    """Return the facts about the machines of all runs; those that differ are separated by slashes."""
    facts = [environment_facts(record) for record in summary.records]
    return {
        name: _distinct((fact[name] for fact in facts if name in fact), " / ")
        for name in (*MACHINE, "Slurm job")
    }


def _distinct(values: Iterable[Any], separator: str = ", ") -> str:
    return separator.join(dict.fromkeys(map(str, values)))


def header(summary: Summary) -> list[tuple[str, str]]:
    """Return the training task, the machine and the software, as (name, value)."""
    work, records = summary.work, summary.records
    pairs = [
        ("Data set", f"{work['dataset']} (SHA-256 {work['dataset_sha256'][:12]})"),
        ("Model", work["model"]),
        ("Global batch", str(work["global_batch_size"])),
        ("Epochs", str(work["num_epochs"])),
        ("Optimizer", f"{work['optimizer']}, learning rate {work['learning_rate']:g}"),
        ("Precision", work["dtype"]),
        ("Seeds", _distinct(sorted(record.seed for record in records))),
        ("Hosts", _distinct(host for record in records for host in record.environment.get("hosts", ()))),
        *_facts(summary).items(),
        ("Date", _distinct(summary.dates, " to ")),
    ]
    return [(name, value) for name, value in pairs if value]
