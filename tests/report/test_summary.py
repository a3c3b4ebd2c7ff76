"""The statistics: what is compared with what, and what is apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpi_train.report import notes
from mpi_train.report.collect import Attempt, Collection, collect, write_attempts
from mpi_train.report.summary import Reached, Row, Spread, Summary, differences, groups, summarise

MakeRun = Callable[..., Any]
TWO_RANKS = {"strategy": "mpi", "world_size": 2, "sync": {"average": "weights", "every": 1}}
ONE_RANK = {**TWO_RANKS, "world_size": 1}
TWO_DEVICES = {"strategy": "custom", "threads_per_rank": 2, "sync": {"devices": 2}}


@pytest.fixture
def summary_of(tmp_path: Path) -> Callable[[], Summary]:
    return lambda: summarise(collect([tmp_path]))


def row_of(summary: Summary, strategy: str) -> Row:
    (row,) = [row for row in summary.rows if row.strategy == strategy]
    return row


def test_spread_is_median_smallest_largest() -> None:
    assert Spread.of([3.0, 1.0, 8.0]) == Spread(3.0, 1.0, 8.0, 3)
    assert Spread.of([]) is None


def test_speedup_is_the_median_of_the_ratios_within_a_repeat(
    make_run: MakeRun, summary_of: Callable[[], Summary]
) -> None:
    # The machine is twice as slow in repeat 2; the ratio of the medians would be 30/10 = 3.
    for seed, base_s, own_s in ((1, 15.0, 10.0), (2, 30.0, 20.0), (3, 36.0, 9.0)):
        make_run(f"baseline/{seed}", seed=seed, epoch_s=(base_s,), scores=(0.9,))
        make_run(f"mpi/{seed}", seed=seed, epoch_s=(own_s,), scores=(0.91,), **TWO_RANKS)
    row = row_of(summary_of(), "mpi")
    assert row.speedup == Spread(1.5, 1.5, 4.0, 3)
    assert row.train_s == Spread(10.0, 9.0, 20.0, 3)
    assert row.accuracy_gain is not None
    assert row.accuracy_gain.median == pytest.approx(0.01)


def test_efficiency_is_counted_against_one_rank_and_shown_for_workers_only(
    make_run: MakeRun, summary_of: Callable[[], Summary]
) -> None:
    make_run("baseline", epoch_s=(9.0, 9.0), scores=(0.8, 0.9), threads_per_rank=2)
    make_run("mpi", epoch_s=(6.0, 5.0), scores=(0.8, 0.9), **TWO_RANKS)
    make_run("custom", epoch_s=(6.0, 10.0), scores=(0.8, 0.9), **TWO_DEVICES)
    make_run("reference", epoch_s=(9.0, 8.0), scores=(0.8, 0.9), **ONE_RANK)
    summary = summary_of()
    assert [row.name for row in summary.rows] == ["baseline", "custom", "mpi"]
    assert row_of(summary, "baseline").efficiency is None
    assert row_of(summary, "mpi").efficiency == Spread(8 / 5 / 2, 8 / 5 / 2, 8 / 5 / 2, 1)
    assert row_of(summary, "custom").efficiency == Spread(0.4, 0.4, 0.4, 1)
    assert summary.reference is not None
    assert summary.reference.images_per_s == Spread(7500.0, 7500.0, 7500.0, 1)


def test_one_rank_is_a_row_when_nothing_is_larger(
    make_run: MakeRun, summary_of: Callable[[], Summary]
) -> None:
    make_run("baseline")
    make_run("mpi", **ONE_RANK)
    summary = summary_of()
    assert [row.strategy for row in summary.rows] == ["baseline", "mpi"]
    assert row_of(summary, "mpi").efficiency == Spread(1.0, 1.0, 1.0, 1)


def test_without_a_baseline_there_is_no_speedup(make_run: MakeRun, summary_of: Callable[[], Summary]) -> None:
    make_run("mpi", **TWO_RANKS)
    summary = summary_of()
    assert summary.baseline is None
    assert row_of(summary, "mpi").speedup is None
    assert row_of(summary, "mpi").efficiency is None


def test_speedup_leaves_out_epochs_that_stalled_in_either(
    make_run: MakeRun, summary_of: Callable[[], Summary]
) -> None:
    make_run("baseline", epoch_s=(8.0, 41.0, 6.0), stalled=(2,))
    make_run("mpi", epoch_s=(4.0, 4.0, 3.0), **TWO_RANKS)
    summary = summary_of()
    assert row_of(summary, "mpi").speedup == Spread(2.0, 2.0, 2.0, 1)
    assert row_of(summary, "baseline").num_stalled == 1
    assert row_of(summary, "baseline").train_s == Spread(55.0, 55.0, 55.0, 1)


def test_no_speedup_when_every_epoch_stalled(make_run: MakeRun, summary_of: Callable[[], Summary]) -> None:
    make_run("baseline", stalled=(1, 2, 3))
    make_run("mpi", **TWO_RANKS)
    assert row_of(summary_of(), "mpi").speedup is None


def test_sizes_and_settings_are_rows_of_their_own(
    make_run: MakeRun, summary_of: Callable[[], Summary]
) -> None:
    make_run("baseline")
    make_run("mpi2", **TWO_RANKS)
    make_run("mpi4", **{**TWO_RANKS, "world_size": 4})
    make_run("mpi4g", **{**TWO_RANKS, "world_size": 4, "sync": {"average": "gradients", "every": 1}})
    rows = [(row.name, row.size) for row in summary_of().rows]
    assert rows == [
        ("baseline", "1 process"),
        ("mpi", "2 ranks"),
        ("mpi (average=weights)", "4 ranks"),
        ("mpi (average=gradients)", "4 ranks"),
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "mlp"),
        ("dataset", "synthetic"),
        ("dataset_sha256", "ef" * 32),
        ("global_batch_size", 128),
        ("optimizer", "sgd"),
        ("learning_rate", 0.01),
        ("dtype", "bfloat16"),
    ],
)
def test_different_work_is_compared_apart(
    tmp_path: Path, make_run: MakeRun, field: str, value: object
) -> None:
    base = make_run("baseline")
    make_run("mpi", **TWO_RANKS)
    make_run("other", **{**TWO_RANKS, field: value})
    summaries = [summarise(group) for group in groups(collect([tmp_path]))]
    assert [[row.strategy for row in one.rows] for one in summaries] == [["baseline", "mpi"], ["mpi"]]
    assert row_of(summaries[0], "mpi").speedup == Spread(1.0, 1.0, 1.0, 1)
    assert row_of(summaries[1], "mpi").speedup is None
    assert differences(summaries) == [{field: getattr(base, field)}, {field: value}]


def test_other_numbers_of_epochs_are_compared_apart(tmp_path: Path, make_run: MakeRun) -> None:
    make_run("baseline")
    make_run("mpi", epoch_s=(5.0,), scores=(0.9,), **TWO_RANKS)
    summaries = [summarise(group) for group in groups(collect([tmp_path]))]
    assert differences(summaries) == [{"num_epochs": 3}, {"num_epochs": 1}]


def test_attempts_are_with_the_runs_of_their_bench(tmp_path: Path, make_run: MakeRun) -> None:
    for bench, model in (("a", "cnn"), ("b", "mlp")):
        make_run(f"{bench}/baseline", model=model)
        done = Attempt(
            strategy="baseline", workers=1, unit="process", repeat=1, seed=1, folder="baseline", command="",
            exit_code=0,
        )  # fmt: skip
        lost = dataclasses.replace(done, strategy="mpi", unit="rank", folder="mpi", exit_code=6)
        write_attempts(tmp_path / bench, [done, lost] if bench == "b" else [done])
    found = groups(collect([tmp_path]))
    assert [[Path(attempt.folder).parts[-2:] for attempt in group.unfinished] for group in found] == [
        [],
        [("b", "mpi")],
    ]


def test_a_seed_that_only_others_have_is_told(make_run: MakeRun, summary_of: Callable[[], Summary]) -> None:
    make_run("baseline", seed=1)
    make_run("mpi/1", seed=1, **TWO_RANKS)
    make_run("mpi/2", seed=2, epoch_s=(1.0, 1.0, 1.0), **TWO_RANKS)
    summary = summary_of()
    assert row_of(summary, "baseline").missing_seeds == [2]
    # The ratio is taken where both sides have the seed.
    assert row_of(summary, "mpi").speedup == Spread(1.0, 1.0, 1.0, 1)
    assert "Beware: baseline on 1 process has no run of seed 2" in "".join(notes.notes(summary))


def test_time_to_an_accuracy_counts_whole_epochs(
    make_run: MakeRun, summary_of: Callable[[], Summary]
) -> None:
    make_run("baseline/1", seed=1, epoch_s=(8.0, 6.0, 5.0), scores=(0.84, 0.88, 0.87))
    make_run("baseline/2", seed=2, epoch_s=(7.0, 6.0, 5.0), scores=(0.86, 0.87, 0.89))
    assert row_of(summary_of(), "baseline").reached == {
        0.85: Reached(Spread(10.5, 7.0, 14.0, 2), 2),
        0.88: Reached(Spread(16.0, 14.0, 18.0, 2), 2),
        0.90: Reached(None, 0),
    }


def test_a_failed_run_is_missing_without_a_complaint(tmp_path: Path, make_run: MakeRun) -> None:
    for seed in (1, 2):
        make_run(f"baseline/{seed}", seed=seed)
    make_run("mpi/1", seed=1, **TWO_RANKS)
    lost = Attempt(
        strategy="mpi", workers=2, unit="rank", repeat=2, seed=2, folder="mpi/2", command="", exit_code=6
    )
    never = Attempt(
        strategy="custom",
        workers=2,
        unit="device",
        repeat=1,
        seed=1,
        folder="custom/1",
        command="",
        exit_code=4,
    )
    summary = summarise(Collection(collect([tmp_path]).runs, [lost, never]))
    assert [(row.name, len(row.runs), len(row.unfinished)) for row in summary.rows] == [
        ("baseline", 2, 0),
        ("mpi", 1, 1),
        ("custom", 0, 1),
    ]
    assert row_of(summary, "mpi").speedup == Spread(1.0, 1.0, 1.0, 1)
