"""The statistics of a comparison: runs in, one row a strategy out. All figures of a report are made here.

Runs of the same seed are one repeat and are compared with each other only, so that a machine which
drifts from one repeat to the next moves both sides of a ratio.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mpi_train.errors import DataError
from mpi_train.records import RunRecord
from mpi_train.report.collect import Attempt, Collection, Run

SAME_WORK = (
    "model", "dataset", "dataset_sha256", "global_batch_size", "optimizer", "learning_rate", "dtype",
)  # fmt: skip


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

    @property
    def size(self) -> str:
        """Such as ``2 ranks``."""
        return f"{self.workers} {self.unit}" + ("" if self.workers == 1 else "s")

    @property
    def name(self) -> str:
        """Such as ``mpi`` or, beside another ``mpi`` of the same size, ``mpi (average=gradients)``."""
        return f"{self.strategy} ({self.variant})" if self.variant else self.strategy

    @property
    def is_baseline(self) -> bool:
        return self.strategy == "baseline"


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


# What makes two runs repeats of the same row: strategy, workers, unit, everything else as JSON text.
_Key = tuple[str, int, str, str]


def summarise(collection: Collection) -> Summary:
    """Compares the runs.

    Raises:
        DataError: two runs do not do the same work, or a row lacks a seed that another has.
    """
    runs = collection.runs
    work = _common_work(runs)
    by_key: dict[_Key, list[Run]] = {}
    for run in runs:
        by_key.setdefault(_key(run.record), []).append(run)
    lost: dict[_Key, list[Attempt]] = {}
    for attempt in collection.unfinished:
        own = (attempt.strategy, attempt.workers, attempt.unit)
        key = next((key for key in by_key if key[:3] == own), (*own, "{}"))
        lost.setdefault(key, []).append(attempt)
        by_key.setdefault(key, [])
    keys = sorted(by_key, key=lambda key: key[0] != "baseline")
    _require_same_seeds(by_key, lost)

    baseline_key = next((key for key in keys if key[0] == "baseline"), None)
    reference_key = _reference(keys)
    baseline = _by_repeat(by_key[baseline_key]) if baseline_key else {}
    reference = _by_repeat(by_key[reference_key]) if reference_key else {}
    rows = {
        key: _row(key, _variant(key, keys), by_key[key], lost.get(key, []), baseline, reference)
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


def _common_work(runs: Sequence[Run]) -> dict[str, Any]:
    first, expected = runs[0], _work(runs[0].record)
    for run in runs[1:]:
        for name, value in _work(run.record).items():
            if value != expected[name]:
                raise DataError(
                    f"the runs do not do the same work: {name} is {expected[name]} in {first.path}, "
                    f"but {value} in {run.path}",
                    remedy="name only folders of runs that agree, or run one of the two again",
                )
    return expected


def _require_same_seeds(by_key: dict[_Key, list[Run]], lost: dict[_Key, list[Attempt]]) -> None:
    everyone = {run.record.seed: run for runs in by_key.values() for run in runs}
    for key, runs in by_key.items():
        excused = {attempt.seed for attempt in lost.get(key, [])}
        missing = everyone.keys() - {run.record.seed for run in runs} - excused
        if runs and missing:
            seed = min(missing)
            raise DataError(
                f"the runs do not do the same work: seed is {seed} in {everyone[seed].path}, but no run of "
                f"{key[0]} ({runs[0].path}, ...) has it",
                remedy="run each strategy with the same seeds (python jobs/bench.py does)",
            )


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
    )


def _speedup(record: RunRecord, baseline: RunRecord) -> float | None:
    """Ratio of the training times, over the epochs that stalled in neither; None when none did not."""
    pairs = [
        (mine.train_s, other.train_s)
        for mine, other in zip(record.epochs, baseline.epochs, strict=True)
        if not (mine.stalled or other.stalled)
    ]
    own_s = sum(mine for mine, _ in pairs)
    return sum(other for _, other in pairs) / own_s if own_s > 0 else None
