"""The statistics of a comparison: runs in, one row a strategy out. All figures of a report are made here.

Runs that do not do the same work are grouped apart. Within a group, runs of the same seed are one repeat
and are compared with each other only, so that a machine which drifts from one repeat to the next moves
both sides of a ratio.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from mpi_train.report.collect import Attempt, Collection, Run
from mpi_train.runs.record import RunRecord
from mpi_train.training.totals import RankTimes, sum_of

_T = TypeVar("_T")
SAME_WORK = (
    "model", "dataset", "dataset_sha256", "global_batch_size", "optimizer", "learning_rate", "dtype",
)  # fmt: skip
TARGETS = (0.85, 0.88, 0.90)
"""Test accuracies that a row is timed to."""


@dataclass(frozen=True)
class Spread:
    """A figure over the repeats."""

    median: float
    low: float
    high: float
    num_repeats: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """The spread of ``values``; None when there are none."""
        known = list(values)
        if not known:
            return None
        return cls(statistics.median(known), min(known), max(known), len(known))

    def scaled(self, factor: float) -> Spread:
        """Of every value ``factor`` times."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.num_repeats)


@dataclass(frozen=True)
class Reached:
    """When the runs of a row reached an accuracy.

    Attributes:
        train_s: Training time at the end of the first epoch that had it, over the runs that did.
        num_runs: How many did.
    """

    train_s: Spread | None
    num_runs: int


@dataclass(frozen=True)
class Costs:
    """What the runs of a row took beside training, as their records have it.

    Attributes:
        startup_s, eval_s, checkpoint_s: Seconds; evaluation of all epochs together.
        bytes_per_step: None where no run counts them.
        peak_rss_mib: Memory.
    """

    startup_s: Spread
    eval_s: Spread
    checkpoint_s: Spread
    bytes_per_step: Spread | None
    peak_rss_mib: Spread


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of training, over its repeats.

    Attributes:
        strategy: Its name.
        variant: What tells it from other rows of the same strategy and size; empty when nothing need.
        workers: Number of ranks or devices, 1 for one process.
        unit: ``rank``, ``device`` or ``process``.
        runs: Its runs, one a repeat.
        unfinished: Its attempts that failed, or did not come to their turn.
        train_s: Training time in seconds, without start-up, tracing and evaluation.
        images_per_s: Training examples a second, all workers together.
        test_accuracy: After the last epoch, from 0 to 1.
        speedup: Training time of the baseline divided by this one's, in the same repeat, over the epochs
            that stalled in neither; None without a baseline.
        accuracy_gain: ``test_accuracy`` less the baseline's of the same repeat.
        efficiency: Images/s divided by workers times those of the reference in the same repeat; None
            for one process, and without a reference.
        num_stalled: Epochs, over all runs, in which the data pipeline stalled.
        reached: By each of ``TARGETS``.
        costs: None of a row without runs.
        missing_seeds: Those that other rows have.
    """

    strategy: str
    variant: str = ""
    workers: int
    unit: str
    runs: list[Run]
    unfinished: list[Attempt]
    train_s: Spread | None
    images_per_s: Spread | None
    test_accuracy: Spread | None
    speedup: Spread | None
    accuracy_gain: Spread | None
    efficiency: Spread | None
    num_stalled: int
    reached: dict[float, Reached]
    costs: Costs | None
    missing_seeds: list[int]

    @property
    def size(self) -> str:
        """Such as ``2 ranks``."""
        return sized(self.workers, self.unit)

    @property
    def name(self) -> str:
        """Such as ``mpi`` or, beside another ``mpi`` of the same size, ``mpi (average=gradients)``."""
        return f"{self.strategy} ({self.variant})" if self.variant else self.strategy

    @property
    def is_baseline(self) -> bool:
        return self.strategy == "baseline"

    @property
    def speedup_over_one(self) -> Spread | None:
        """Images/s divided by those of the reference; None where there is no efficiency."""
        return None if self.efficiency is None else self.efficiency.scaled(self.workers)

    @property
    def rank_times(self) -> list[RankTimes]:
        """Where the training time of its first run went, by rank; empty where that cannot be told."""
        return sum_of(epoch.by_rank for epoch in self.runs[0].record.epochs) if self.runs else []


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A comparison.

    Attributes:
        work: What all runs have in common: the fields of ``SAME_WORK``, and ``num_epochs``.
        rows: The strategies, the baseline first.
        reference: The suite's own loop on one rank, which parallel efficiency is counted against; a row
            without runs when it failed, None when nobody asked for it.
        records: All records, in the order of the runs.
        dates: Of the first and of the last run, as ``YYYY-MM-DD``, UTC.
    """

    work: dict[str, Any]
    rows: list[Row]
    reference: Row | None
    records: list[RunRecord]
    dates: tuple[str, str]

    @property
    def baseline(self) -> Row | None:
        return next((row for row in self.rows if row.is_baseline and row.runs), None)

    @cached_property
    def everyone(self) -> list[Row]:
        """All rows, the reference last where it is none of them."""
        aside = [self.reference] if self.reference is not None else []
        return [*self.rows, *(one for one in aside if not any(row is one for row in self.rows))]

    @cached_property
    def measured(self) -> list[Row]:
        """Those of them that have runs."""
        return [row for row in self.everyone if row.runs]


# What makes two runs repeats of the same row: strategy, workers, unit, everything else as JSON text.
_Key = tuple[str, int, str, str]


def groups(collection: Collection) -> list[Collection]:
    """The runs, apart by the work they do, in the order in which each work first comes.

    Attempts that left no run are with the runs of the same bench.
    """
    by_work: dict[str, Collection] = {}
    for run in collection.runs:
        group = by_work.setdefault(json.dumps(_work(run.record)), Collection([], []))
        group.runs.append(run)
    found = list(by_work.values())
    for attempt in collection.unfinished:
        parents = Path(attempt.folder).parents
        own = (group for group in found if any(run.bench in parents for run in group.runs))
        next(own, found[0]).unfinished.append(attempt)
    return found


def differences(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """For each of them the fields of its work in which it differs from another."""
    return [
        {
            name: value
            for name, value in own.work.items()
            if any(other.work[name] != value for other in summaries)
        }
        for own in summaries
    ]


def summarise(collection: Collection) -> Summary:
    """Compares runs that do the same work, such as one of the ``groups``."""
    runs = collection.runs
    work = _work(runs[0].record)
    by_key: dict[_Key, list[Run]] = {}
    for run in runs:
        by_key.setdefault(_key(run.record), []).append(run)
    lost: dict[_Key, list[Attempt]] = {}
    for attempt in collection.unfinished:
        own = (attempt.strategy, attempt.workers, attempt.unit)
        key = next((key for key in by_key if key[:3] == own), (*own, "{}"))
        lost.setdefault(key, []).append(attempt)
        by_key.setdefault(key, [])
    # The baseline, then strategies in the order in which they come, each from few workers to many.
    order = ["baseline", *(key[0] for key in by_key)]
    keys = sorted(by_key, key=lambda key: (order.index(key[0]), key[1]))
    seeds = {run.record.seed for run in runs}

    baseline_key = next((key for key in keys if key[0] == "baseline"), None)
    reference_key = _reference(keys)
    baseline = _by_repeat(by_key[baseline_key]) if baseline_key else {}
    reference = _by_repeat(by_key[reference_key]) if reference_key else {}
    rows = {
        key: _row(key, _variant(key, keys), by_key[key], lost.get(key, []), baseline, reference, seeds)
        for key in keys
    }
    # Alone, one rank is a strategy like any other; beside more workers it is what they are measured by.
    aside = reference_key if any(key[1] > 1 for key in keys) else None
    return Summary(
        work=work,
        rows=[row for key, row in rows.items() if key != aside],
        reference=rows[reference_key] if reference_key else None,
        records=[run.record for run in runs],
        dates=(min(run.date for run in runs), max(run.date for run in runs)),
    )


def _key(record: RunRecord) -> _Key:
    workers, unit = workers_of(record)
    rest = {name: value for name, value in record.sync.items() if name != "devices"}
    rest["threads"] = record.threads_per_rank
    return record.strategy, workers, unit, json.dumps(rest, sort_keys=True)


def workers_of(record: RunRecord) -> tuple[int, str]:
    """How many parts the global batch was split into, and what each of them is."""
    if record.strategy in ("baseline", "tuned") or record.sync.get("device") == "CPU":
        return 1, "process"
    if "devices" in record.sync:
        return record.world_size * int(record.sync["devices"]), "device"
    return record.world_size, "rank"


def sized(workers: int, unit: str) -> str:
    """Such as ``2 ranks``."""
    return f"{workers} {unit}{'' if workers == 1 else 's'}"


def _reference(keys: Sequence[_Key]) -> _Key | None:
    return next((key for key in keys if key[0] == "mpi" and key[1] == 1), None)


def _variant(key: _Key, keys: Sequence[_Key]) -> str:
    """The settings in which ``key`` differs from others of its strategy and size."""
    mine: dict[str, Any] = json.loads(key[3])
    others = [json.loads(other[3]) for other in keys if other[:3] == key[:3]]
    differing = [name for name in mine if any(other.get(name) != mine[name] for other in others)]
    return ", ".join(f"{name}={mine[name]}" for name in differing)


def _work(record: RunRecord) -> dict[str, Any]:
    return {**{name: getattr(record, name) for name in SAME_WORK}, "num_epochs": len(record.epochs)}


def _by_repeat(runs: Sequence[Run]) -> dict[tuple[int, int], RunRecord]:
    """Runs by seed, and by their number among those of the same seed."""
    repeats: dict[tuple[int, int], RunRecord] = {}
    for run in runs:
        number = sum(seed == run.record.seed for seed, _ in repeats)
        repeats[run.record.seed, number] = run.record
    return repeats


def _row(
    key: _Key,
    variant: str,
    runs: list[Run],
    unfinished: list[Attempt],
    baseline: dict[tuple[int, int], RunRecord],
    reference: dict[tuple[int, int], RunRecord],
    seeds: set[int],
) -> Row:
    strategy, workers, unit, _ = key
    records = [run.record for run in runs]
    own = _by_repeat(runs)
    against_baseline = [(own[repeat], baseline[repeat]) for repeat in own if repeat in baseline]
    against_reference = [(own[repeat], reference[repeat]) for repeat in own if repeat in reference]
    ratios = [_speedup(record, other) for record, other in against_baseline]
    efficiencies = (
        record.images_per_s / (workers * other.images_per_s) for record, other in against_reference
    )
    return Row(
        strategy=strategy,
        variant=variant,
        workers=workers,
        unit=unit,
        runs=runs,
        unfinished=unfinished,
        train_s=Spread.of(record.train_s for record in records),
        images_per_s=Spread.of(record.images_per_s for record in records),
        test_accuracy=Spread.of(record.test_accuracy for record in records),
        speedup=Spread.of(ratio for ratio in ratios if ratio is not None),
        accuracy_gain=Spread.of(
            record.test_accuracy - other.test_accuracy for record, other in against_baseline
        ),
        efficiency=None if unit == "process" else Spread.of(efficiencies),
        num_stalled=sum(epoch.stalled for record in records for epoch in record.epochs),
        reached={target: _reached(records, target) for target in TARGETS},
        costs=_costs(records) if records else None,
        missing_seeds=sorted(seeds - {r.seed for r in records} - {lost.seed for lost in unfinished}),
    )


def _costs(records: Sequence[RunRecord]) -> Costs:
    def spread(figure: Callable[[RunRecord], float]) -> Spread:
        found = Spread.of(map(figure, records))
        assert found is not None
        return found

    return Costs(
        startup_s=spread(lambda run: run.startup_s),
        eval_s=spread(lambda run: sum(epoch.eval_s for epoch in run.epochs)),
        checkpoint_s=spread(lambda run: run.checkpoint_s),
        bytes_per_step=Spread.of(run.bytes_per_step for run in records if run.bytes_per_step is not None),
        peak_rss_mib=spread(lambda run: run.peak_rss_mib),
    )


def _reached(records: Sequence[RunRecord], target: float) -> Reached:
    times_s = [time_s for record in records if (time_s := time_to(record, target)) is not None]
    return Reached(Spread.of(times_s), len(times_s))


def elapsed_s(record: RunRecord) -> list[float]:
    """Training time in seconds up to the end of each epoch."""
    return list(itertools.accumulate(epoch.train_s for epoch in record.epochs))


def time_to(record: RunRecord, target: float) -> float | None:
    """Training time in seconds at the end of the first epoch with this test accuracy; None without one."""
    pairs = zip(record.epochs, elapsed_s(record), strict=True)
    return next((time_s for epoch, time_s in pairs if epoch.test_accuracy >= target), None)


def _speedup(record: RunRecord, baseline: RunRecord) -> float | None:
    """Ratio of the training times, over the epochs that stalled in neither; None when none did not."""
    pairs = [
        (mine.train_s, other.train_s)
        for mine, other in zip(record.epochs, baseline.epochs, strict=True)
        if not (mine.stalled or other.stalled)
    ]
    own_s = sum(mine for mine, _ in pairs)
    return sum(other for _, other in pairs) / own_s if own_s > 0 else None


def workers_with_efficiency(summary: Summary) -> list[list[Row]]:
    """The rows whose efficiency is known, a list for each way of training, from few workers to many."""
    lines: dict[str, list[Row]] = {}
    for row in summary.measured:
        if row.efficiency is not None:
            settings = {k: v for k, v in row.runs[0].record.sync.items() if k not in ("devices", "stages")}
            key = json.dumps([row.strategy, settings], sort_keys=True)
            # Rows of one size, as with other numbers of threads, would be one above the other.
            while any(other.workers == row.workers for other in lines.get(key, [])):
                key += "'"
            lines.setdefault(key, []).append(row)
    return [sorted(line, key=lambda row: row.workers) for line in lines.values()]


def unique(values: Iterable[_T]) -> list[_T]:
    """The different ``values``, in the order in which they first came."""
    different: list[_T] = []
    for value in values:
        if value not in different:
            different.append(value)
    return different
