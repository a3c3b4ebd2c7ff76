"""The statistics: what is compared with what, and what is apart."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb

from mpi_train.report import charts, text
from mpi_train.report.collect import Attempt, Collection, collect, write_attempts
from mpi_train.report.summary import Row, Spread, Summary, differences, groups, summarise, workers_of
from mpi_train.strategies import registry

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
    assert "Beware: baseline on 1 process has no run of seed 2" in "".join(text.notes(summary))


def test_time_to_an_accuracy_counts_whole_epochs(
    make_run: MakeRun, summary_of: Callable[[], Summary]
) -> None:
    make_run("baseline/1", seed=1, epoch_s=(8.0, 6.0, 5.0), scores=(0.84, 0.88, 0.87))
    make_run("baseline/2", seed=2, epoch_s=(7.0, 6.0, 5.0), scores=(0.86, 0.87, 0.89))
    row = row_of(summary_of(), "baseline")
    assert row.reached_s(0.85) == Spread(10.5, 7.0, 14.0, 2)
    assert row.reached_s(0.88) == Spread(16.0, 14.0, 18.0, 2)
    assert row.reached_s(0.90) is None


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


def test_the_registry_or_else_the_record_says_what_a_worker_is(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def workers(strategy: str, **fields: Any) -> tuple[int, str]:
        return workers_of(make_run(strategy, strategy=strategy, **fields))

    assert workers("baseline", sync={"devices": 1}) == workers("tuned") == (1, "process")
    assert workers("multiworker", world_size=3) == (3, "rank")
    assert workers("custom", sync={"devices": 2}) == (2, "device")
    assert workers("tpu", sync={"devices": 1, "device": "CPU"}) == (1, "process")
    assert workers("tpu", sync={"devices": 8, "device": "TPU"}) == (8, "device")
    # Strategies that are not in the registry, such as those of another version.
    assert workers("ring", world_size=3) == (3, "rank")
    assert workers("sharded", world_size=2, sync={"devices": 4}) == (8, "device")
    mine = dataclasses.replace(registry.STRATEGIES["baseline"], name="ring")
    monkeypatch.setitem(registry.STRATEGIES, "ring", mine)
    assert workers("ring", world_size=3) == (1, "process")


def test_a_strategy_of_a_test_and_an_unknown_one_are_rows_with_figures(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = dataclasses.replace(registry.STRATEGIES["mpi"], name="mine")
    monkeypatch.setitem(registry.STRATEGIES, "mine", mine)
    make_run("baseline")
    make_run("mpi", **ONE_RANK)
    for strategy in ("mine", "unknown"):
        make_run(strategy, strategy=strategy, world_size=2, epoch_s=(4.0, 3.0, 3.0))
    (section,) = text.contents([summarise(collect([tmp_path]))])
    assert [row[:5] for row in section["comparison"].rows[1:]] == [
        [name, "2 ranks", "10.00 s", "2.00x", "100%"] for name in ("mine", "unknown")
    ]


def test_seventeen_rows_have_seventeen_colours(make_run: MakeRun, summary_of: Callable[[], Summary]) -> None:
    for strategy in (*registry.STRATEGIES, "a", "b"):
        make_run(strategy, strategy=strategy)
    for world_size in (2, 4, 8):
        make_run(f"mpi{world_size}", **{**TWO_RANKS, "world_size": world_size})
    make_run("of one rank", strategy="ddp", world_size=3)
    rows = summary_of().measured
    assert len(rows) == 17
    numbers = charts.numbers_of(rows)
    assert {row.strategy: numbers[row] for row in reversed(rows)}["mpi"] == 2  # in every report
    drawn = [to_rgb(charts.colour(number)) for number in numbers.values()]
    assert len(set(drawn)) == 17
    assert min(math.dist(one, other) for one, other in itertools.combinations(drawn, 2)) > 0.1
    lines = [(charts._line(number)["color"], charts._line(number)["marker"]) for number in range(300)]
    assert len(set(lines)) == 300


@pytest.mark.parametrize("number", range(40))
def test_colours_are_legible_on_white_and_on_the_dark_page(number: int) -> None:
    rgb = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
           for value in to_rgb(charts.colour(number))]  # fmt: skip
    luminance = sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), rgb, strict=True))
    assert 1.05 / (luminance + 0.05) > 2.5
    assert (luminance + 0.05) / (0.009 + 0.05) > 2.5
