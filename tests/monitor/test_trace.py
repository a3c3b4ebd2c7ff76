"""The timeline of a run on four ranks: complete, on one clock, and the same seconds as in its record."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mpi_train.data import synthetic
from mpi_train.data.shards import write_shards
from mpi_train.monitor.spans import START_UP, TRAINING
from mpi_train.runs.record import RunRecord, read_run
from mpi_train.runtime import launch

pytestmark = [pytest.mark.launches, pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
RANKS, EPOCHS, STEPS = 4, 2, 501


@dataclass(frozen=True)
class Traced:
    """A run that came to its end: its record, its timeline, and what that says of each rank."""

    record: RunRecord
    path: Path
    ranks: list[dict[str, Any]]
    spans: list[list[dict[str, Any]]]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("traced")
    write_shards(synthetic.draw(seed=1, num_train=4 * STEPS, num_test=99), data, num_shards=4, seed=1)
    words = [
        sys.executable, "jobs/mpi.py", "--dataset", "synthetic", "--data", str(data), "--model", "mlp",
        "--batch-size", "4", "--epochs", str(EPOCHS), "--out", str(out), "--trace",
    ]  # fmt: skip
    result = subprocess.run(
        launch.mpiexec(RANKS, words),
        cwd=ROOT,
        env=launch.environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    path = out / "trace.json"
    assert f"timeline: {path}" in result.stdout
    content = json.loads(path.read_text())
    names = {
        event["pid"]: event["args"]["name"]
        for event in content["traceEvents"]
        if event["name"] == "process_name"
    }
    ranks = content["otherData"]["ranks"]
    assert list(names.values()) == [f"rank {rank} on {ranks[rank]['host']}" for rank in range(RANKS)]
    spans = [
        [
            event
            for event in content["traceEvents"]
            # Those of the phases are the process's first thread.
            if event["ph"] == "X" and event["pid"] == event["tid"] == pid
        ]
        for pid in names
    ]
    return Traced(read_run(out / "run.json"), path, ranks, spans)


def seconds_of(spans: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """By epoch and phase."""
    found: defaultdict[int, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for span in spans:
        found[span["args"].get("epoch", 0)][span["name"]] += span["dur"] / 1e6
    return found


def test_every_rank_has_every_phase_of_every_epoch(traced: Traced) -> None:
    wanted = {"compute", "pack", "all-reduce", "wait", "host", "evaluate", "checkpoint"}
    for spans in traced.spans:
        found = seconds_of(spans)
        assert {epoch: set(phases) for epoch, phases in found.items()} == {
            0: set(START_UP), **dict.fromkeys(range(1, EPOCHS + 1), wanted)
        }  # fmt: skip


def test_steps_are_numbered_and_later_ones_added_up(traced: Traced) -> None:
    for spans in traced.spans:
        for epoch in range(1, EPOCHS + 1):
            args = [span["args"] for span in spans if span["args"].get("epoch") == epoch]
            single = {each["step"] for each in args if "step" in each}
            assert single == set(range(1, max(single) + 1))
            assert 50 < max(single) < STEPS
            ranges = [tuple(map(int, each["steps"].split(" to "))) for each in args if "steps" in each]
            # Step by step as far as there is room; of the next one a part may be among the sums.
            assert min(ranges)[0] - max(single) in (0, 1)
            assert max(ranges)[1] == STEPS


def test_spans_of_a_rank_follow_each_other(traced: Traced) -> None:
    for spans in traced.spans:
        spans.sort(key=lambda span: span["ts"])
        ends = [round(1000 * (span["ts"] + span["dur"])) for span in spans]
        assert all(end <= round(1000 * later["ts"]) for end, later in zip(ends[:-1], spans[1:], strict=True))


def test_they_add_up_to_the_epoch_of_the_record(traced: Traced) -> None:
    sums = defaultdict(list)
    for rank, spans in enumerate(traced.spans):
        for epoch, phases in seconds_of(spans).items():
            said = (
                traced.ranks[rank]["seconds"][f"epoch {epoch}"] if epoch else traced.ranks[rank]["start_up"]
            )
            assert phases == pytest.approx(said, abs=1e-5)
            if epoch:
                record = traced.record.epochs[epoch - 1]
                own = record.by_rank[rank]
                train_s = sum(phases[name] for name in TRAINING if name in phases)
                assert train_s == pytest.approx(
                    own.compute_s + own.moving_s + own.waiting_s + own.host_s, rel=0.03
                )
                assert phases["evaluate"] <= record.eval_s
                sums[epoch].append(train_s)
    for epoch, train_s in sums.items():
        assert max(train_s) == pytest.approx(traced.record.epochs[epoch - 1].train_s, rel=0.03)


def test_clocks_of_one_machine_are_one(traced: Traced) -> None:
    for rank in traced.ranks:
        clock = rank["clock"]
        # What was measured is the error, and it keeps what the method promises.
        assert abs(clock["offset_us"]) <= clock["uncertainty_us"]
        assert abs(clock["offset_us"] + clock["drift_us"]) <= clock["uncertainty_us"]
        assert abs(clock["offset_us"]) < 100 or clock["uncertainty_us"] > 100


def test_waiting_ends_when_the_last_rank_has_come(traced: Traced) -> None:
    error_us = 4 * max(rank["clock"]["uncertainty_us"] for rank in traced.ranks) + 1
    came = [dict(firsts(spans, "pack", "stop")) for spans in traced.spans]
    went_on = [dict(firsts(spans, "all-reduce", "ts")) for spans in traced.spans]
    for step in range(1, 50):
        last = max(rank[step] for rank in came)
        # From copying its part in to being there is not nothing, so a rank goes on a little later.
        assert min(rank[step] for rank in went_on) >= last - error_us
        assert max(rank[step] for rank in went_on) - min(rank[step] for rank in went_on) <= error_us


def firsts(spans: list[dict[str, Any]], name: str, edge: str) -> Iterator[tuple[int, float]]:
    """When the first span of this name began or ended, in each single step of the first epoch."""
    seen = set()
    for span in spans:
        args = span["args"]
        if span["name"] == name and args.get("epoch") == 1 and "step" in args and args["step"] not in seen:
            seen.add(args["step"])
            yield args["step"], span["ts"] + (span["dur"] if edge == "stop" else 0)


def test_perfetto_reads_the_same(
    traced: Traced, perfetto: Callable[[Path], Callable[[str], list[dict[str, Any]]]]
) -> None:
    ask = perfetto(traced.path)
    ranks = ask("select upid, name from process where pid > 0 order by pid")
    assert [row["name"] for row in ranks] == [
        f"rank {rank} on {host}" for rank, host in enumerate(traced.record.environment["hosts"])
    ]
    for row, spans in zip(ranks, traced.spans, strict=True):
        found = ask(
            "select slice.name as name, count(*) as count, sum(dur) as ns, max(depth) as depth from slice "
            "join thread_track on slice.track_id = thread_track.id join thread using (utid) "
            f"where thread.name = 'phases' and upid = {row['upid']} group by 1"
        )
        assert {phase["name"]: (phase["count"], phase["ns"], phase["depth"]) for phase in found} == {
            name: (len(durations), sum(durations), 0) for name, durations in by_name(spans).items()
        }
    assert ask("select name from stats where severity != 'info' and value > 0") == []


def by_name(spans: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Nanoseconds of each span."""
    found = defaultdict(list)
    for span in spans:
        found[span["name"]].append(round(1000 * span["dur"]))
    return found
