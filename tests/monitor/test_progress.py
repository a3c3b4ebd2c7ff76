"""What a job shows: a bar that holds still on any terminal, plain lines in a log, JSON, or nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpi_train.monitor.pace import ByRank, Pace, slowing
from mpi_train.monitor.progress import span
from mpi_train.monitor.status import read_status
from mpi_train.runtime import launch

pytestmark = pytest.mark.mpi_skip

ROOT = Path(__file__).parents[2]
Open = Any

# Drives the display as a run does.
DRIVER = """
import sys, time
import numpy as np
from mpi_train.monitor import progress as module
from mpi_train.monitor.pace import ByRank

module.LOG_EVERY_S, module.REFRESH_S = 0.05, 0.02
progress = module.Progress(speaks=True, style=sys.argv[1])
progress.say("mpi: mlp (101,770 weights), fashion_mnist (60,000 images), global batch 64, 2 ranks",
             "start", model="mlp")
for epoch in (9, 10):
    progress.begin(epoch, 10, 400)
    for step in range(20, 401, 20):
        time.sleep(0.025)
        if (epoch, step) == (9, 200) and "pause" in sys.argv:
            sys.stdin.readline()
        progress.advance(step, ByRank(np.full(2, 0.04), np.array([0.002, 0.008]), np.full(2, 12.0 * step),
                                      np.full(2, 120.0 * step / epoch)))
    progress.evaluate()
    time.sleep(0.05)
    progress.say(f"epoch {epoch}/10  27.04 s  123,456 images/s  loss 0.3456  accuracy 0.8765, test 0.8654",
                 "epoch", epoch=epoch)
    if epoch == 9:
        progress.warn("no checkpoint of epoch 9, step 0: /mnt/results: No space left on device")
progress.leave("finished")
progress.say("mpi: done")
"""
START = r"epoch +\d+/10 [━╸╺]{6,} +\d+%"
BARS = {
    80: r"  [ \d,]{7} images/s  loss \d\.\d{4}  comm [ \d]{3}%  left [ \d]\d:\d\d",
    40: r"  left [ \d]\d:\d\d",
}


def bars(lines: list[str]) -> list[str]:
    return [line for line in lines if "━" in line or re.match(r"epoch.*%", line)]


@pytest.mark.parametrize("columns", [80, 40])
def test_the_bar_is_one_whole_line_from_its_first_state_to_its_last(columns: int, terminal: Open) -> None:
    shown = terminal([sys.executable, "-c", DRIVER, "lines"], columns)
    frames = [bars(lines) for lines in shown.screens()]
    assert shown.process.returncode == 0, shown.lines
    with_bar = [number for number, frame in enumerate(frames) if frame]
    # Between its first and its last state there is always one: it is never erased to be drawn later.
    assert with_bar == list(range(with_bar[0], with_bar[-1] + 1))
    states = [frame for frame in frames if frame]
    assert all(len(frame) == 1 for frame in states), states
    assert all(len(state) < columns for (state,) in states)
    # Figures are there as soon as they are known, whole, and nothing moves but the digits in their fields.
    while re.fullmatch(START, states[0][0]):
        del states[0]
    assert all(re.fullmatch(START + BARS[columns], state) for (state,) in states), states
    assert len({re.sub(r"[━╸╺]", "x", re.sub(r"\d", " ", state)) for (state,) in states}) == 1
    assert len({state.split("%")[0] for (state,) in states}) > 5
    # It is gone at the end, nothing of it is left in between, and what stays is as if nothing could wrap.
    assert not bars(shown.lines)
    assert shown.lines[-1] == "mpi: done"
    assert not shown.screen.cursor.hidden
    assert shown.lines == [line.rstrip() for line in shown.unbounded.display if line.strip()]
    assert not any(b"\x1b[?25h" in piece for piece in shown.written[: with_bar[-1]])
    assert "No space left on device" in " ".join(" ".join(shown.lines).split())


def test_the_bar_follows_the_terminal_when_that_is_resized(terminal: Open) -> None:
    shown = terminal([sys.executable, "-c", DRIVER, "lines", "pause"], 80)
    before, after = [], []
    for lines in shown.screens():
        (after if shown.screen.columns == 40 else before).append(bars(lines))
        if " 45%" in "".join(lines):
            shown.resize(40)
            shown.enter()
    assert re.fullmatch(START + BARS[80], before[-1][0])
    assert sum(map(len, after)) > 5
    assert all(len(frame) <= 1 for frame in before + after)
    assert all(re.fullmatch(START + BARS[40], frame[0]) for frame in after if frame)
    assert not bars(shown.lines)


def test_a_job_on_a_terminal(terminal: Open, tiny_shards: Path, tmp_path: Path) -> None:
    shown = terminal(
        [sys.executable, "jobs/baseline.py", "--dataset", "synthetic", "--data", str(tiny_shards), "--model",
         "mlp", "--epochs", "12", "--out", str(tmp_path)],
        80,
    )  # fmt: skip
    frames = [bars(lines) for lines in shown.screens()]
    assert shown.process.returncode == 0, shown.lines
    with_bar = [number for number, frame in enumerate(frames) if frame]
    assert with_bar == list(range(with_bar[0], with_bar[-1] + 1))
    assert all(len(frame) <= 1 for frame in frames)
    assert sum(bool(re.match(r"epoch \d+/12 +\d", line)) for line in shown.lines) == 12, shown.lines
    assert not bars(shown.lines)
    assert not shown.screen.cursor.hidden


def run(style: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DRIVER, style], cwd=ROOT, capture_output=True, text=True, check=True
    )


@pytest.mark.launches
def test_a_log_has_plain_lines() -> None:
    result = run("lines")
    assert result.stderr == ""
    assert not [c for c in result.stdout if c < " " and c != "\n"]
    lines = result.stdout.splitlines()
    line = (
        r"epoch 9/10  step \d+/400  [\d,]+ images/s  loss \d\.\d{4}  communication \d+%  run ends in \d+:\d\d"
    )
    assert any(re.fullmatch(line, each) for each in lines), lines
    assert sum(each.startswith("epoch 10/10  27.04 s") for each in lines) == 1
    assert max(map(len, lines)) > 80  # a log is not broken into lines of a terminal


@pytest.mark.launches
def test_json_is_one_object_a_line() -> None:
    events = [json.loads(line) for line in run("json").stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert (kinds[0], kinds[-1]) == ("start", "message")
    assert {"epoch", "progress", "warning"} < set(kinds)
    progress = events[kinds.index("progress")]
    assert progress["communication"] == pytest.approx(0.125)
    assert (progress["epoch"], progress["num_epochs"], progress["num_steps"]) == (9, 10, 400)
    assert progress["loss"] == pytest.approx(10 / 9, abs=1e-4)


@pytest.mark.launches
def test_ranks_leave_json_and_their_status(tiny_shards: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        launch.mpiexec(2, [
            sys.executable, "jobs/mpi.py", "--dataset", "synthetic", "--data", str(tiny_shards),
            "--model", "mlp", "--epochs", "3", "--json", "--out", str(tmp_path),
        ]),
        cwd=ROOT, env=launch.environment(), capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["run", "start", "epoch", "epoch", "epoch", "finish"]
    assert result.stderr == ""
    record = json.loads((tmp_path / "run.json").read_text())
    assert {**record["epochs"][-1], "event": "epoch"} == events[-2]
    status = read_status(tmp_path / "status.json")
    assert status is not None
    assert (status.state, status.epoch, status.step, status.num_steps) == ("finished", 3, 8, 8)
    assert len(status.hosts) == len(status.rank_images_per_s) == len(status.rank_waiting) == 2
    assert status.images_per_s == pytest.approx(sum(status.rank_images_per_s), rel=0.01)
    assert status.communication is not None
    assert 0 < status.communication < 1
    assert not list(tmp_path.glob(".status.json.*"))


@pytest.mark.launches
def test_quiet_is_silent_but_for_warnings_as_of_a_status_that_cannot_be_written() -> None:
    code = """
import sys
from pathlib import Path
from mpi_train.monitor.status import StatusFile
from mpi_train.monitor.progress import Progress
progress = Progress(speaks=True, style="quiet", status=StatusFile(Path("/proc/no/such"), "mpi", ("n1",)))
progress.say("mpi: mlp")
progress.begin(1, 1, 8)
progress.warn("the disk is full")
progress.leave("finished")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout == ""
    assert result.stderr.endswith("warning: the disk is full\n")
    assert result.stderr.count("warning: /proc/no/such/status.json: No such file or directory") == 1


@pytest.mark.parametrize(
    ("waiting", "slow"),
    [
        ([0.0, 0.3], [0]),  # of two
        ([0.0, 0.08], []),  # too little to speak of
        ([0.31, 0.0, 0.29, 0.3], [1]),
        ([0.3, 0.0, 0.02, 0.3], [1, 2]),  # two are slow, two wait
        ([0.2, 0.0, 0.0, 0.0], []),  # one is fast
        ([0.12, 0.08, 0.2, 0.25], []),  # none stands out
        ([0.0], []),
        ([np.nan, np.nan], []),
    ],
)
def test_a_straggler_is_the_rank_that_the_others_wait_for(waiting: list[float], slow: list[int]) -> None:
    assert np.flatnonzero(slowing(np.array(waiting))).tolist() == slow


def chunk(elapsed_s: list[float], exchange_s: list[float], count: int = 32) -> ByRank:
    counts = np.full(len(elapsed_s), float(count))
    return ByRank(np.array(elapsed_s), np.array(exchange_s), counts, 0.5 * counts)


def test_figures_are_of_the_last_seconds() -> None:
    pace = Pace()
    assert not pace
    for _ in range(30):
        pace.add(chunk([0.5, 0.5], [0.05, 0.15]))
    for _ in range(20):
        pace.add(chunk([0.5, 0.5], [0.2, 0.1], count=64))
    assert pace.images_per_s.tolist() == [128, 128]
    assert pace.loss == 0.5
    assert pace.communication == pytest.approx(0.3)
    assert pace.waiting is not None
    assert pace.waiting.tolist() == pytest.approx([0.2, 0])


def test_a_rank_is_called_slow_when_it_has_been_for_a_while() -> None:
    pace = Pace()
    marked = []
    # Short chunks are gathered first: an epoch begins with one.
    for _ in range(4):
        pace.add(chunk([0.3, 0.3, 0.3], [0.15, 0.02, 0.15]))
        marked.append(pace.stragglers)
    assert marked == [[], [], [], [1]]
    pace.add(chunk([0.5, 0.5, 0.5], [0.1, 0.1, 0.1]))
    assert pace.stragglers == []


def test_ranks_that_meet_at_the_end_of_a_chunk_wait_there() -> None:
    pace = Pace()
    pace.add(chunk([1.0, 0.6], [0.0, 0.0]))  # as clients under federated
    assert pace.waiting is not None
    assert pace.waiting.tolist() == pytest.approx([0, 0.4])
    assert pace.communication == pytest.approx(0.2)


def test_what_a_strategy_cannot_tell_is_left_out() -> None:
    pace = Pace()
    pace.add(chunk([1.0, 1.0], [np.nan, np.nan]))
    assert (pace.communication, pace.waiting, pace.stragglers) == (None, None, [])
    assert pace.images_per_s.tolist() == [32, 32]


def test_times_for_people() -> None:
    times = [span(seconds) for seconds in (5, 754, 3599.7, 11_220, 1_054_800)]
    assert times == ["0:05", "12:34", "1h00", "3h07", "12d05"]
