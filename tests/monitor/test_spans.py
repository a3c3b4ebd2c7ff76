"""Spans of a timeline: exchanges cut out, steps numbered, the many added up, clocks compared."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from mpi_train.benchmarks.bench import BenchConfig
from mpi_train.monitor import clock, timeline
from mpi_train.monitor.clock import Clock, Reading
from mpi_train.monitor.spans import DETAILED, MAX_SPANS, PHASES, SPAN, KeptSpans, cut, totals
from mpi_train.runtime.errors import DivergedError, UsageError
from mpi_train.runtime.world import World


def spans(*rows: tuple[str, int, int, float, float]) -> np.ndarray:
    """Spans of epoch 1, from rows of phase, first step, number of steps, start, stop."""
    return np.array(
        [
            (PHASES.index(name), False, 1, step, steps, 0, start, stop)
            for name, step, steps, start, stop in rows
        ],
        SPAN,
    )


def shown(found: np.ndarray) -> list[tuple[str, int, int, float, float]]:
    names = ("step", "steps", "start", "stop")
    return [(PHASES[span["phase"]], *(span[name].item() for name in names)) for span in found]


def test_exchanges_are_cut_out_of_computing_and_numbered_with_it() -> None:
    noted = spans(
        ("host", 0, 0, 0, 1), ("compute", 0, 2, 1, 9), ("host", 2, 0, 9, 10), ("evaluate", 2, 0, 10, 12)
    )
    # The last one is of the evaluation, and no part of training.
    calls = spans(*(("all-reduce", 0, 0, start, start + 1) for start in (2, 6, 11)))
    assert shown(cut(noted, calls)) == [
        ("host", 0, 0, 0, 1),
        ("compute", 0, 1, 1, 2),
        ("all-reduce", 0, 1, 2, 3),
        ("compute", 1, 1, 3, 6),
        ("all-reduce", 1, 1, 6, 7),
        ("compute", 1, 1, 7, 9),
        ("host", 2, 0, 9, 10),
        ("evaluate", 2, 0, 10, 12),
    ]


def test_what_is_hidden_is_what_moves_while_the_rank_computes() -> None:
    noted = spans(
        ("host", 0, 0, 0, 1), ("compute", 0, 1, 1, 4), ("unpack", 0, 1, 4, 5), ("compute", 1, 1, 5, 9)
    )
    kept = KeptSpans(num_ranks=1)
    # Half in computing, across what interrupts it, and after all of it; waiting for a rank is no moving.
    calls = spans(
        ("all-reduce", 0, 0, 0, 2),
        ("wait", 0, 0, 2, 3),
        ("all-reduce", 0, 0, 3, 6),
        ("all-reduce", 0, 0, 8, 11),
    )
    kept.add(noted, calls)
    assert kept.background == {1: {"moving": 8, "hidden": 1 + 2 + 1}}
    assert shown(kept.spans[-1]) == [
        ("all-reduce", 0, 0, 0, 2),
        ("wait", 0, 1, 2, 3),
        ("all-reduce", 0, 1, 3, 6),
        ("all-reduce", 1, 1, 8, 11),
    ]


def test_steps_with_fewer_exchanges_than_one_are_not_numbered() -> None:
    found = cut(spans(("compute", 4, 3, 0, 9)), spans(("all-reduce", 0, 0, 8, 9)))
    assert shown(found) == [("compute", 4, 3, 0, 8), ("all-reduce", 4, 3, 8, 9)]


def test_exchanges_at_once_do_not_overlap() -> None:
    calls = spans(("wait", 0, 0, 1, 5), ("send", 0, 0, 2, 3), ("receive", 0, 0, 4, 6))
    found = cut(spans(("compute", 0, 1, 0, 9)), calls)
    assert [row[0] for row in shown(found)] == ["compute", "wait", "receive", "compute"]
    assert found["start"][1:].tolist() == found["stop"][:-1].tolist() == [1, 5, 6]


def test_nothing_is_no_trouble() -> None:
    nothing = np.empty(0, SPAN)
    assert len(cut(nothing, nothing)) == len(totals(nothing)) == 0
    assert len(cut(nothing, spans(("wait", 0, 0, 1, 2)))) == 0


def test_totals_fill_their_stretch_of_training() -> None:
    noted = spans(
        ("compute", 0, 1, 0, 3), ("wait", 0, 1, 3, 4), ("compute", 1, 1, 4, 6), ("host", 2, 0, 6, 7),
        ("checkpoint", 2, 0, 7, 9), ("compute", 2, 5, 9, 10),
    )  # fmt: skip
    assert shown(totals(noted)) == [
        ("compute", 0, 2, 0, 5), ("wait", 0, 2, 5, 6), ("host", 0, 2, 6, 7), ("checkpoint", 2, 0, 7, 9),
        ("compute", 2, 5, 9, 10),
    ]  # fmt: skip
    without_break = noted[[0, 1, 2, 3, 5]]
    without_break["start"][-1], without_break["stop"][-1] = 7, 8
    assert shown(totals(without_break)) == [
        ("compute", 0, 7, 0, 6), ("wait", 0, 7, 6, 7), ("host", 0, 7, 7, 8),
    ]  # fmt: skip


@pytest.mark.parametrize("num_ranks", [1, 4, 1000])
def test_a_long_run_keeps_few_spans_and_exact_totals(num_ranks: int) -> None:
    kept = KeptSpans(num_ranks)
    num_epochs, num_steps = 400, 1500
    edges = np.arange(2 * num_steps + 1, dtype=np.float64)
    for epoch in range(1, num_epochs + 1):
        one = np.zeros(2 * num_steps, SPAN)
        one["phase"] = [PHASES.index("compute"), PHASES.index("wait")] * num_steps
        one["epoch"] = epoch
        one["step"], one["steps"] = np.arange(2 * num_steps) // 2, 1
        one["start"], one["stop"] = edges[:-1] + 1e4 * epoch, edges[1:] + 1e4 * epoch
        kept.add(one, one[:0])
    found = np.concatenate(kept.spans)
    detailed = found[found["steps"] == 1]
    assert len(detailed) == min(DETAILED * num_epochs, MAX_SPANS // num_ranks)
    assert len(found) <= len(detailed) + 2 * num_epochs
    assert kept.seconds == {
        epoch: {"compute": num_steps, "wait": num_steps} for epoch in range(1, num_epochs + 1)
    }
    assert (found["start"][1:] >= found["stop"][:-1]).all()
    for epoch in range(1, num_epochs + 1):
        here = found[found["epoch"] == epoch]
        assert (here["stop"] - here["start"]).sum() == pytest.approx(2 * num_steps)


def test_a_clock_that_goes_apart_is_followed_and_a_disturbed_reading_is_not() -> None:
    mine = Clock(World())
    mine.readings = [
        Reading(at_s=100, offset_s=40, uncertainty_s=1e-6),
        Reading(at_s=150, offset_s=45, uncertainty_s=1e-3),
        Reading(at_s=200, offset_s=42, uncertainty_s=1.5e-6),
    ]
    assert mine.common(np.array([90.0, 100, 150, 300])).tolist() == [50, 60, 109, 258]


@pytest.mark.mpi
def test_one_clock_is_read_as_one(world: World) -> None:
    assert len(set(world.hosts)) == 1
    reading = clock.read(world)
    assert abs(reading.offset_s) <= reading.uncertainty_s
    assert abs(reading.at_s - time.perf_counter()) < 60


def test_without_a_timeline_there_is_nothing_in_the_way() -> None:
    assert timeline.traced("wait", test_nothing_is_no_trouble) is test_nothing_is_no_trouble
    assert timeline.phase("compute") is timeline.phase("host")


def test_a_run_that_fails_leaves_its_timeline(tmp_path: Path) -> None:
    path, said = tmp_path / "trace.json", []
    timeline.start(World())
    timeline.lap("import")
    timeline.begin_epoch(1)
    exchange = timeline.traced("all-reduce", time.sleep, together=World(), num_bytes=8)

    def train() -> None:
        with timeline.kept(path, said.append), timeline.phase("host"):
            with timeline.phase("compute", 0, 1):
                exchange(0.001)
            raise DivergedError("the loss became NaN")

    with pytest.raises(DivergedError):
        train()
    content = json.loads(path.read_text())
    found = [event for event in content["traceEvents"] if event["ph"] == "X"]
    assert {event["name"] for event in found} == {"import", "epoch 1", "host", "compute", "all-reduce"}
    assert [event["args"] for event in found if event["name"] == "all-reduce"] == [
        {"epoch": 1, "step": 1, "bytes": 8}
    ]
    assert said == [f"timeline: {path}, for https://ui.perfetto.dev"]
    # It has ended: what follows is on no timeline.
    assert timeline.phase("compute") is timeline.phase("host")


def test_a_disk_that_refuses_loses_the_timeline_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timeline.start(World())
    with timeline.kept(tmp_path / "no" / "trace.json", print):
        timeline.lap("import")
    assert "No such file or directory; the timeline is lost" in capsys.readouterr().err


def test_a_bench_is_not_traced() -> None:
    with pytest.raises(UsageError, match="--trace"):
        BenchConfig(trace=True)
