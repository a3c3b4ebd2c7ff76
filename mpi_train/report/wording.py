"""A comparison in words: cells of the table, sentences, notes and the header, for every kind of report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpi_train.report.collect import Attempt
from mpi_train.report.summary import Row, Spread, Summary, unique
from mpi_train.runs.record import RunRecord

COLUMNS = ("Strategy", "On", "Training time", "Speed-up", "Efficiency", "Images/s", "Test accuracy")
ABSENT = "-"
STALLED = "†"

_DATASETS = {
    "fashion_mnist": "Fashion-MNIST",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "synthetic": "synthetic data",
    "synthetic_mnist": "synthetic digits",
    "synthetic_cifar10": "synthetic colour images",
}


_FIELDS = {
    "dataset_sha256": "data with SHA-256",
    "global_batch_size": "global batch",
    "learning_rate": "learning rate",
    "num_epochs": "epochs",
}
_SELF_EXPLAINING = ("model", "dataset", "optimizer", "dtype")


def seconds(value: float) -> str:
    return f"{value:,.2f}"


def times(value: float) -> str:
    return f"{value:.2f}x"


def percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def rate(value: float) -> str:
    return f"{value:,.0f}"


def accuracy(value: float) -> str:
    return f"{value:.4f}"


def size(num_bytes: float) -> str:
    """Such as ``407 kB``, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 999.5 or unit == "GB":
            break
        num_bytes /= 1000
    return f"{num_bytes:,.0f} {unit}" if num_bytes >= 100 else f"{num_bytes:.3g} {unit}"


def mebibytes(value: float) -> str:
    return f"{value:,.0f} MiB"


def data_name(summary: Summary) -> str:
    """The data set as a title names it; a stand-in is called synthetic."""
    dataset = str(summary.work["dataset"])
    return _DATASETS.get(dataset, dataset)


def title(summary: Summary) -> str:
    return f"Training on {data_name(summary)}: {summary.work['model']} under {_counted(len(summary.rows))}"


def _counted(num_strategies: int) -> str:
    return "one strategy" if num_strategies == 1 else f"{num_strategies} strategies"


def caution(summary: Summary) -> str:
    """What a reader must know before any figure; empty for real data."""
    if not str(summary.work["dataset"]).startswith("synthetic"):
        return ""
    return (
        "The data are the synthetic stand-in that the suite draws when it has no others: times are real, "
        "but accuracies cannot be compared with those on the real set."
    )


def cells(row: Row) -> list[tuple[str, str]]:
    """One (median, range) for each of ``COLUMNS``; the range is empty for a single repeat."""
    if not row.runs:
        return [(row.name, ""), (row.size, ""), (outcome(row.unfinished), "")] + [(ABSENT, "")] * 4
    train_s = cell(row.train_s, seconds, unit=" s")
    if row.num_stalled:
        train_s = (train_s[0] + f" {STALLED}", train_s[1])
    return [
        (row.name, outcome(row.unfinished)),
        (row.size, ""),
        train_s,
        cell(row.speedup, times) if not row.is_baseline else (times(1), ""),
        cell(row.efficiency, percent),
        cell(row.images_per_s, rate),
        cell(row.test_accuracy, accuracy),
    ]


def difference(fields: dict[str, Any]) -> str:
    """What tells a group of runs from the others, such as ``global batch 128, bfloat16``."""
    return ", ".join(
        str(value) if name in _SELF_EXPLAINING else f"{_FIELDS[name]} {value}"
        for name, value in fields.items()
        if not (name == "dataset_sha256" and "dataset" in fields)
    )


def cell(spread: Spread | None, shown: Callable[[float], str], unit: str = "") -> tuple[str, str]:
    """A figure and its range, such as ``("9.52 s", "9.13 to 9.75")``."""
    if spread is None:
        return ABSENT, ""
    span = f"{shown(spread.low)} to {shown(spread.high)}" if spread.num_repeats > 1 else ""
    return shown(spread.median) + unit, span


def outcome(unfinished: list[Attempt]) -> str:
    """What became of attempts that left no run; empty when there are none."""
    failed = [attempt for attempt in unfinished if attempt.failed]
    if failed:
        codes = " and ".join(sorted({str(attempt.exit_code) for attempt in failed}))
        times_failed = f"{len(failed)} times, " if len(failed) > 1 else ""
        return f"failed ({times_failed}exit code {codes})"
    return "was not finished" if unfinished else ""


def reading(row: Row, summary: Summary) -> str:
    """One sentence that says what the row's figures mean."""
    subject = f"{row.name} on {row.size}"
    if not row.runs:
        return f"{subject} {outcome(row.unfinished)}, so nothing can be said of it."
    if row.train_s is None or row.test_accuracy is None:
        raise AssertionError("a row with runs has figures")
    if row.is_baseline:
        return (
            f"{row.name}, which is plain Keras on all cores, trained in {seconds(row.train_s.median)} s to a "
            f"test accuracy of {accuracy(row.test_accuracy.median)}."
        )
    if row.speedup is None or row.accuracy_gain is None:
        return (
            f"{subject} trained in {seconds(row.train_s.median)} s to a test accuracy of "
            f"{accuracy(row.test_accuracy.median)}; with no sound baseline run there is no speed-up to state."
        )
    return f"{subject} {_speed(row.speedup)}, {_gain(row.accuracy_gain, summary.baseline)}{_sent(row)}."


def _sent(row: Row) -> str:
    sent = row.runs[0].record.bytes_per_step
    return f"; each rank sent at most {size(sent)} a batch" if sent else ""


def _speed(speedup: Spread) -> str:
    if speedup.num_repeats > 1 and speedup.low <= 1 <= speedup.high:
        return (
            f"was neither faster nor slower than plain Keras beyond the spread of its repeats "
            f"({times(speedup.low)} to {times(speedup.high)})"
        )
    span = f" ({times(speedup.low)} to {times(speedup.high)})" if speedup.num_repeats > 1 else ""
    if speedup.median >= 1:
        return f"trained {times(speedup.median)} as fast as plain Keras{span}"
    return f"trained more slowly than plain Keras, at {times(speedup.median)} its speed{span}"


def _gain(gain: Spread, baseline: Row | None) -> str:
    points = 100 * abs(gain.median)
    if points < 0.05:
        return "at the same accuracy"
    text = f"at {points:.1f} points {'more' if gain.median > 0 else 'less'} accuracy"
    own = baseline.test_accuracy if baseline is not None else None
    if own is not None and own.num_repeats > 1 and abs(gain.median) <= own.high - own.low:
        text += f", which is within the {100 * (own.high - own.low):.1f} points between the baseline's seeds"
    return text


def commands(summary: Summary) -> list[tuple[str, list[str]]]:
    """For each row, the reference among them, its name and what to type to make its runs again."""
    return [
        (
            f"{row.name} on {row.size}",
            [run.command for run in row.runs] + [attempt.command for attempt in row.unfinished],
        )
        for row in summary.everyone
    ]


def environment_facts(record: RunRecord) -> dict[str, str]:
    """Machine and software of a run, by the name the header gives them; what is unknown is left out."""
    where = record.environment
    mpi = where.get("mpi") or {}
    facts = {
        "CPU": where.get("cpu"),
        "Cores": where.get("cores"),
        "GPUs": ", ".join(where.get("gpus") or []),
        "MPI": " ".join(str(mpi[name]) for name in ("vendor", "version") if name in mpi),
        "Python": where.get("python"),
        "TensorFlow": where.get("tensorflow"),
        "Keras": where.get("keras"),
        "PyTorch": where.get("pytorch"),
        "Commit": where.get("git_commit"),
        "Slurm job": where.get("slurm_job_id"),
    }
    return {name: str(value) for name, value in facts.items() if value}


# What ought to be the same for all runs that are compared.
MACHINE = ("CPU", "Cores", "GPUs", "MPI", "Python", "TensorFlow", "Keras", "PyTorch", "Commit")


def unequal_conditions(summary: Summary) -> list[str]:
    """A warning for each fact about the machine in which runs differ."""
    return [
        f"Beware: the runs were not made under equal conditions. {name}: {' / '.join(found)}."
        for name in MACHINE
        if len(found := values(summary, name)) > 1
    ]


def values(summary: Summary, name: str) -> list[str]:
    """What the runs say of one of the ``environment_facts``, each different value once."""
    facts = (environment_facts(record) for record in summary.records)
    return unique(fact[name] for fact in facts if name in fact)


def header(summary: Summary) -> list[tuple[str, str]]:
    """What was trained, where and with what, as (name, value)."""
    work = summary.work
    hosts = unique(host for record in summary.records for host in record.environment.get("hosts", ()))
    seeds = sorted({record.seed for record in summary.records})
    pairs = [
        ("Data set", f"{work['dataset']} (SHA-256 {str(work['dataset_sha256'])[:12]})"),
        ("Model", str(work["model"])),
        ("Global batch", str(work["global_batch_size"])),
        ("Epochs", str(work["num_epochs"])),
        ("Optimizer", f"{work['optimizer']}, learning rate {work['learning_rate']:g}"),
        ("Precision", str(work["dtype"])),
        ("Seeds", ", ".join(map(str, seeds))),
        ("Hosts", ", ".join(map(str, hosts))),
    ]
    pairs += [(name, " / ".join(values(summary, name))) for name in (*MACHINE, "Slurm job")]
    pairs.append(("Date", " to ".join(unique(sorted(summary.dates)))))
    return [(name, value) for name, value in pairs if value]
