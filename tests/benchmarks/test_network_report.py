"""Collectives on slow links: the time to an accuracy, and what the tables say of it."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpi_train.benchmarks.network import report
from mpi_train.report.collect import Attempt, write_attempts
from mpi_train.report.tables import Table
from mpi_train.runs.record import RunRecord
from mpi_train.training.totals import RankTimes
from tests.report.conftest import write_run

MakeRun = Callable[..., RunRecord]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """``write_run`` below ``tmp_path``."""
    return functools.partial(write_run, tmp_path)


def attempt_of(name: str, rate: str = "100mbit", exit_code: int | None = 0) -> Attempt:
    return Attempt(
        strategy=name,
        workers=4,
        unit="rank",
        repeat=1,
        seed=1,
        folder=name,
        command=f"slurm/local_cluster.sh rate {rate} && srun python jobs/mpi.py --collective {name}",
        exit_code=exit_code,
    )


def sync(collective: str, average: str = "weights", every: int = 1) -> dict[str, Any]:
    return {
        "strategy": "mpi",
        "world_size": 4,
        "sync": {"average": average, "every": every, "collective": collective},
    }


@pytest.fixture
def rows(make_run: MakeRun) -> dict[str, dict[str, str]]:
    """Rows at one rate: plain, which takes 100 s an epoch, and others; the target is 0.88."""
    slow = {"epoch_s": (100.0, 100.0, 100.0), "scores": (0.86, 0.88, 0.90)}
    moving = RankTimes(compute_s=1, moving_s=9, waiting_s=5, host_s=0, sent_bytes=8, hidden_s=0)
    hidden = dataclasses.replace(moving, moving_s=1, hidden_s=3)
    records = {
        "plain": make_run("plain", **sync("plain"), **slow, by_rank=(moving, moving)),
        "delayed": make_run("delayed", **sync("delayed"), by_rank=(moving, hidden)),
        "plain+every=8": make_run("every", **sync("plain", every=8), scores=(0.5, 0.89, 0.87)),
        "gossip": make_run("gossip", **sync("gossip"), scores=(0.5, 0.6, 0.7)),
    }
    runs: list[tuple[Attempt, RunRecord | None]] = [(attempt_of(name), records[name]) for name in records]
    runs.append((attempt_of("topk", exit_code=5), None))
    return by_name(report.table("", runs, target=0.88, plain="plain"))


def by_name(table: Table) -> dict[str, dict[str, str]]:
    """Return the cells of each row by column."""
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_time_to_the_target_is_that_of_the_first_epoch_that_has_it(rows: dict[str, dict[str, str]]) -> None:
    assert {name: row["To 0.88"] for name, row in rows.items()} == {
        "plain": "200.00 s",
        "delayed": "14.00 s",
        "plain+every=8": "14.00 s",  # that it is lost again later does not count
        "gossip": "not in 3 epochs",
        "topk": "-",
    }
    assert [row["Speed-up"] for row in rows.values()] == ["1.00x", "14.29x", "14.29x", "-", "-"]


def test_nothing_is_measured_against_a_plain_run_that_is_missing(make_run: MakeRun) -> None:
    delayed = make_run("delayed", **sync("delayed"))
    unfinished = (attempt_of("plain", exit_code=None), None)
    for runs in ([(attempt_of("delayed"), delayed)], [unfinished, (attempt_of("delayed"), delayed)]):
        row = by_name(report.table("", runs, target=0.88, plain="plain"))["delayed"]
        assert (row["To 0.88"], row["Speed-up"]) == ("14.00 s", "-")


def test_hidden_is_the_part_of_the_moving_time_of_all_ranks(rows: dict[str, dict[str, str]]) -> None:
    assert rows["plain"]["Hidden"] == "0%"
    assert rows["delayed"]["Hidden"] == "23%", "3 of 3 + 9 + 1"
    assert rows["gossip"]["Hidden"] == "-", "nothing is known of its ranks"


def test_result_is_changed_by_what_is_no_exact_mean_at_every_step(rows: dict[str, dict[str, str]]) -> None:
    assert {name: row["Result"] for name, row in rows.items()} == {
        "plain": "exact",
        "delayed": "changed",
        "plain+every=8": "changed",
        "gossip": "changed",
        "topk": "",
    }


@pytest.fixture
def tables(make_run: MakeRun, tmp_path: Path) -> list[Table]:
    """Two rates in ``tmp_path``: at one, plain was too slow and topk failed."""
    fast, slow = "1gbit", "100mbit"
    make_run(f"{fast}/plain", **sync("plain"), bytes_per_step=1_350_000.0)
    make_run(f"{fast}/powersgd", **sync("powersgd", "gradients"), epoch_s=(4.0, 3.0, 3.0))
    make_run(f"{slow}/plain", **sync("plain"), scores=(0.7, 0.8, 0.85))
    make_run(f"{slow}/powersgd", **sync("powersgd", "gradients"))
    attempts = {rate: [attempt_of(name, rate) for name in ("plain", "powersgd")] for rate in (fast, slow)}
    attempts[slow].append(attempt_of("topk", slow, exit_code=6))
    for rate, own in attempts.items():
        write_attempts(tmp_path / rate, own)
    return report.write(tmp_path, attempts, target=0.88, plain="plain")


@pytest.mark.usefixtures("tables")
def test_page_has_a_table_for_each_rate(tmp_path: Path) -> None:
    text = (tmp_path / report.TEXT).read_text()
    fast, slow = text.split("## 1gbit")[1].split("## 100mbit")
    assert "| plain | weights | exact | 10,000 | 1.35 MB | - | 14.00 s | 1.00x | 0.9000 |" in fast
    assert "| powersgd | gradients | changed | 20,000 | - | - | 7.00 s | 2.00x | 0.9000 |" in fast
    assert "| plain | weights | exact | 10,000 | - | - | not in 3 epochs | - | 0.8500 |" in slow
    assert "| powersgd | gradients | changed | 10,000 | - | - | 14.00 s | - | 0.9000 |" in slow
    assert "| topk | failed (exit code 6) |  | - | - | - | - | - | - |" in slow
    assert "The 4 nodes share the 2 cores of one machine" in text
    assert "slurm/local_cluster.sh rate 1gbit && srun" in text
    assert text.startswith("# Collectives on slow links: cnn on ")


def test_terminal_shows_the_same_figures(tables: list[Table]) -> None:
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    for table in tables:
        console.print(table.terminal())
    text = console.export_text()
    for words in (
        "1gbit",
        "100mbit",
        "gradients, changed",
        "2.00x",
        "not in 3 epochs",
        "failed (exit code 6)",
    ):
        assert words in text
