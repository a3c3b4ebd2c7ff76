"""Statistics of a comparison: one row for each strategy, computed from its runs.

Runs of the same seed form one repeat. Ratios are taken within a repeat, so that a machine that slows down
from one repeat to the next changes both sides of a ratio.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mpi_train.report.collect import Attempt, Collection, Run
from mpi_train.runs.record import RunRecord
from mpi_train.strategies import registry
from mpi_train.training.totals import RankTimes, sum_of

SAME_WORK = (
    "model", "dataset", "dataset_sha256", "global_batch_size", "optimizer", "learning_rate", "dtype",
)  # fmt: skip
TARGETS = (0.85, 0.88, 0.90)
"""Test accuracies to which the training time is reported."""

# Repeat: seed, and number among the runs of that seed.
_Repeats = Mapping[tuple[int, int], RunRecord]
# Row: strategy, number of workers, unit, all other settings as JSON text.
_Key = tuple[str, int, str, str]


@dataclass(frozen=True)
class Spread:
    """Median and range of a figure over the repeats."""

    median: float
    low: float
    high: float
    num_repeats: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Return the spread of the ``values`` that are known; None if there are none."""
        known = [value for value in values if value is not None]
        return cls(statistics.median(known), min(known), max(known), len(known)) if known else None


@dataclass(frozen=True, eq=False)
class Row:
    """All repeats of one strategy with the same workers and settings. Figures are None if unknown.

    Attributes:
        variant: Settings that differ from other rows of the same strategy and size; empty if none do.
        workers, unit: Number of ranks or devices, 1 for one process; ``rank``, ``device`` or ``process``.
        runs: Finished runs, one for each repeat.
        unfinished: Attempts that failed or were not started.
        baseline, reference: Runs of plain Keras, and of the suite's own loop on one rank, by repeat.
        missing_seeds: Seeds that other rows have.
    """

    strategy: str
    workers: int
    unit: str
    variant: str
    runs: list[Run]
    unfinished: list[Attempt]
    baseline: _Repeats
    reference: _Repeats
    missing_seeds: Sequence[int]

    @property
    def size(self) -> str:
        return sized(self.workers, self.unit)

    @property
    def name(self) -> str:
        return f"{self.strategy} ({self.variant})" if self.variant else self.strategy

    @property
    def is_baseline(self) -> bool:
        return self.strategy == "baseline"

    @property
    def record(self) -> RunRecord:
        """Record of the first run."""
        return self.runs[0].record

    def spread(self, figure: Callable[[RunRecord], float | None]) -> Spread | None:
        """Return the spread of a ``figure`` of the records."""
        return Spread.of(figure(run.record) for run in self.runs)

    def _ratio(
        self, others: _Repeats, figure: Callable[[RunRecord, RunRecord], float | None]
    ) -> Spread | None:
        """Return the spread of a ``figure`` of an own record and the other record of the same repeat."""
        own = _by_repeat(self.runs)
        return Spread.of(figure(own[repeat], others[repeat]) for repeat in own if repeat in others)

    @cached_property
    def train_s(self) -> Spread | None:
        """Training time in seconds, without start-up, tracing and evaluation."""
        return self.spread(lambda run: run.train_s)

    @cached_property
    def images_per_s(self) -> Spread | None:
        """Training examples of all workers per second."""
        return self.spread(lambda run: run.images_per_s)

    @cached_property
    def test_accuracy(self) -> Spread | None:
        """Test accuracy after the last epoch, from 0 to 1."""
        return self.spread(lambda run: run.test_accuracy)

    @cached_property
    def speedup(self) -> Spread | None:
        """Training time of the baseline divided by the own one, over the epochs that stalled in neither."""
        return self._ratio(self.baseline, _speedup)

    @cached_property
    def accuracy_gain(self) -> Spread | None:
        return self._ratio(self.baseline, lambda own, other: own.test_accuracy - other.test_accuracy)

    @cached_property
    def speedup_over_one(self) -> Spread | None:
        """Images/s divided by images/s of the reference; None for one process."""
        others = {} if self.unit == "process" else self.reference
        return self._ratio(others, lambda own, other: own.images_per_s / other.images_per_s)

    @cached_property
    def efficiency(self) -> Spread | None:
        """Speed-up over one rank divided by the number of workers."""
        over, each = self.speedup_over_one, self.workers
        return over and Spread(over.median / each, over.low / each, over.high / each, over.num_repeats)

    @property
    def num_stalled(self) -> int:
        """Number of epochs, over all runs, in which the data pipeline stalled."""
        return sum(epoch.stalled for run in self.runs for epoch in run.record.epochs)

    def reached_s(self, target: float) -> Spread | None:
        """Return the training time in seconds to a test accuracy, over the runs that reached it."""
        return self.spread(lambda run: time_to(run, target))

    @property
    def rank_times(self) -> list[RankTimes]:
        """Times of each rank in the first run, all epochs together; empty if unknown."""
        return sum_of(epoch.by_rank for epoch in self.record.epochs)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Comparison of runs that do the same work.

    Attributes:
        work: Common settings of all runs: the fields of ``SAME_WORK``, and ``num_epochs``.
        rows: One row for each strategy, the baseline first.
        reference: The suite's own loop on one rank, to which parallel efficiency is relative. Has no runs if
            it failed; None if it was not requested.
        records, dates: All records, and the dates of the first and of the last, as ``YYYY-MM-DD``, UTC.
    """

    work: dict[str, Any]
    rows: list[Row]
    reference: Row | None
    records: list[RunRecord]
    dates: tuple[str, str]

    @property
    def baseline(self) -> Row | None:
        return next((row for row in self.rows if row.is_baseline and row.runs), None)

    @property
    def everyone(self) -> list[Row]:
        """All rows, and the reference last unless it is one of the rows."""
        return list(dict.fromkeys((*self.rows, *([self.reference] if self.reference else []))))

    @property
    def measured(self) -> list[Row]:
        """All rows that have runs, and the reference."""
        return [row for row in self.everyone if row.runs]


def groups(collection: Collection) -> list[Collection]:
    """Return the runs in groups that do the same work, in the order in which each work first occurs.

    Attempts that left no run join the runs of the same bench.
    """
    by_work: dict[str, Collection] = {}
    for run in collection.runs:
        by_work.setdefault(json.dumps(_work(run.record)), Collection([], [])).runs.append(run)
    found = list(by_work.values())
    for attempt in collection.unfinished:
        parents = Path(attempt.folder).parents
        own = (group for group in found if any(run.bench in parents for run in group.runs))
        next(own, found[0]).unfinished.append(attempt)
    return found


def differences(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """Return, for each comparison, the fields of its work in which it differs from another one."""
    names = [name for name in summaries[0].work if len({str(each.work[name]) for each in summaries}) > 1]
    return [{name: each.work[name] for name in names} for each in summaries]


def summarise(collection: Collection) -> Summary:
    """Compare runs that do the same work, such as one of the ``groups``."""
    runs = collection.runs
    by_key: dict[_Key, tuple[list[Run], list[Attempt]]] = {}
    for run in runs:
        by_key.setdefault(_key(run.record), ([], []))[0].append(run)
    for attempt in collection.unfinished:
        own = (attempt.strategy, attempt.workers, attempt.unit)
        key = next((key for key in by_key if key[:3] == own), (*own, "{}"))
        by_key.setdefault(key, ([], []))[1].append(attempt)
    # The baseline, then strategies in the order in which they occur, each from few workers to many.
    order = ["baseline", *(key[0] for key in by_key)]
    keys = sorted(by_key, key=lambda key: (order.index(key[0]), key[1]))
    baseline = next((key for key in keys if key[0] == "baseline"), None)
    reference = next((key for key in keys if key[:2] == ("mpi", 1)), None)
    seeds = {run.record.seed for run in runs}
    rows: dict[_Key, Row] = {}
    for key in keys:
        own_runs, unfinished = by_key[key]
        own_seeds = {run.record.seed for run in own_runs} | {attempt.seed for attempt in unfinished}
        rows[key] = Row(
            *key[:3],
            variant=_variant(key, keys),
            runs=own_runs,
            unfinished=unfinished,
            baseline=_by_repeat(by_key[baseline][0]) if baseline else {},
            reference=_by_repeat(by_key[reference][0]) if reference else {},
            missing_seeds=sorted(seeds - own_seeds),
        )
    # One rank is the reference of more workers; without any it is a strategy like the others.
    aside = reference if any(key[1] > 1 for key in keys) else None
    return Summary(
        work=_work(runs[0].record),
        rows=[row for key, row in rows.items() if key != aside],
        reference=rows[reference] if reference else None,
        records=[run.record for run in runs],
        dates=(min(run.date for run in runs), max(run.date for run in runs)),
    )


def _key(record: RunRecord) -> _Key:
    rest = {**record.sync, "threads": record.threads_per_rank}
    rest.pop("devices", None)
    return record.strategy, *workers_of(record), json.dumps(rest, sort_keys=True)


def workers_of(record: RunRecord) -> tuple[int, str]:
    """Return the number of parts into which the global batch was split, and the unit that trains one.

    The registry knows the unit, except for a strategy that takes the best device there is.
    """
    strategy = registry.STRATEGIES.get(record.strategy)
    unit: str = strategy.unit if strategy else "device" if "devices" in record.sync else "rank"
    if "device" in record.sync:
        unit = "process" if record.sync["device"] == "CPU" else "device"
    ranks, devices = record.world_size, int(record.sync.get("devices", 1))
    return {"process": 1, "device": ranks * devices}.get(unit, ranks), unit


def sized(workers: int, unit: str) -> str:
    """Return a number of workers in words, such as ``2 ranks``."""
    return f"{workers} {unit}{'' if workers == 1 else 's'}"


def _variant(key: _Key, keys: Sequence[_Key]) -> str:
    """Return the settings in which ``key`` differs from others of its strategy and size."""
    mine: dict[str, Any] = json.loads(key[3])
    others = [json.loads(other[3]) for other in keys if other[:3] == key[:3]]
    return ", ".join(
        f"{name}={value}" for name, value in mine.items() if any(other.get(name) != value for other in others)
    )


def _work(record: RunRecord) -> dict[str, Any]:
    return {**{name: getattr(record, name) for name in SAME_WORK}, "num_epochs": len(record.epochs)}


def _by_repeat(runs: Sequence[Run]) -> _Repeats:
    repeats: dict[tuple[int, int], RunRecord] = {}
    for run in runs:
        number = sum(seed == run.record.seed for seed, _ in repeats)
        repeats[run.record.seed, number] = run.record
    return repeats


def elapsed_s(record: RunRecord) -> list[float]:
    """Return the training time in seconds up to the end of each epoch."""
    return list(itertools.accumulate(epoch.train_s for epoch in record.epochs))


def time_to(record: RunRecord, target: float) -> float | None:
    """Return the training time in seconds to the end of the first epoch with this test accuracy."""
    pairs = zip(record.epochs, elapsed_s(record), strict=True)
    return next((time_s for epoch, time_s in pairs if epoch.test_accuracy >= target), None)


def _speedup(own: RunRecord, baseline: RunRecord) -> float | None:
    """Return the ratio of the training times over the epochs that stalled in neither; None without any."""
    pairs = zip(own.epochs, baseline.epochs, strict=True)
    sound = [(mine, other) for mine, other in pairs if not (mine.stalled or other.stalled)]
    own_s = sum(mine.train_s for mine, _ in sound)
    return sum(other.train_s for _, other in sound) / own_s if own_s > 0 else None


def scaling(summary: Summary) -> list[list[Row]]:
    """Return the rows whose efficiency is known: a list for each configuration, from few workers to many."""
    lines: dict[str, list[Row]] = {}
    for row in summary.measured:
        if row.efficiency is not None:
            settings = {k: v for k, v in row.record.sync.items() if k not in ("devices", "stages")}
            key = json.dumps([row.strategy, settings], sort_keys=True)
            # Rows of one size, such as those with other numbers of threads, need lines of their own.
            while any(other.workers == row.workers for other in lines.get(key, [])):
                key += "'"
            lines.setdefault(key, []).append(row)
    return [sorted(line, key=lambda row: row.workers) for line in lines.values()]
