"""Runs under way, as ``jobs/watch.py`` shows them: by rank, slow ones marked, and those that went silent."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mpi_train.monitor.status import Status, read_status
from mpi_train.monitor.watch_table import Look, Watcher, main, table
from mpi_train.runtime import launch
from mpi_train.runtime.errors import UsageError

pytestmark = [pytest.mark.mpi_skip, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
Open = Any


def watch(*flags: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "jobs/watch.py", *map(str, flags)], cwd=ROOT, capture_output=True, text=True
    )


def a_status(**facts: Any) -> Status:
    now = time.time()
    ranks = facts.pop("ranks", 2)
    usual: dict[str, Any] = {
        "strategy": "mpi", "state": "training", "started": now - 60, "written": now, "next_s": 1.0,
        "host": socket.gethostname(), "pid": os.getpid(), "slurm_job_id": None,
        "hosts": [f"n{rank // 4}" for rank in range(ranks)], "epoch": 3, "num_epochs": 12, "step": 120,
        "num_steps": 938, "loss": 0.3456, "images_per_s": 123456.7, "communication": 0.2, "ends_in_s": 4000,
        "rank_images_per_s": [123456.7 / ranks] * ranks, "rank_waiting": [0.2] * ranks,
    }  # fmt: skip
    return Status(**{**usual, **facts})


def write(folder: Path, status: Status) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps(asdict(status)))
    return folder / "status.json"


def drawn(looks: list[Look], width: int) -> list[str]:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table(looks, width))
    console.file.close()
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.fixture
def training(tiny_shards: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Two ranks that train until they are told to stop, and their results."""
    out = tmp_path / "results" / "slow"
    process = subprocess.Popen(
        launch.mpiexec(2, [
            sys.executable, "jobs/mpi.py", "--dataset", "synthetic", "--data", str(tiny_shards), "--model",
            "cnn", "--epochs", "100000", "--quiet", "--out", str(out),
        ]),
        cwd=ROOT, env=launch.environment(), start_new_session=True,
    )  # fmt: skip
    yield process, out
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def rank_1_of(out: Path) -> int:
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            environ = (path / "environ").read_bytes().split(b"\0")
            if str(out).encode() in words and b"PMI_RANK=1" in environ and words[0].endswith(b"python"):
                return int(path.name)
    raise AssertionError("no rank 1")


@pytest.mark.slow
@pytest.mark.launches
def test_a_run_is_watched_to_its_end_and_its_slow_rank_is_named(
    training: tuple[subprocess.Popen[bytes], Path],
) -> None:
    process, out = training
    deadline = time.monotonic() + 120

    def status() -> Status | None:
        assert process.poll() is None
        assert time.monotonic() < deadline
        return read_status(out / "status.json")

    while (now := status()) is None or now.state != "training" or not now.rank_waiting:
        time.sleep(0.1)
    slow, shown = rank_1_of(out), ""
    # Its epochs are short, so that it is often found between two of them.
    row = r"slow +training +\d+/100000 +\d+/8 +\d\.\d+ +[\d,]+ +\d+%"
    while not (re.search(r"rank 1 \S+ +straggler", shown) and re.search(row, shown)):
        status()
        for _ in range(30):  # it has half of the time that the other has
            os.kill(slow, signal.SIGSTOP)
            time.sleep(0.05)
            os.kill(slow, signal.SIGCONT)
            time.sleep(0.05)
        if (now := status()) is not None and now.stragglers == [1]:
            result = watch(out.parent)  # not a terminal: as with --once
            assert (result.returncode, result.stderr) == (0, "")
            shown = result.stdout
    assert re.search(r"rank 0 \S+ +[\d,]+ +\d+%", shown), shown
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert re.search(r"slow +stopped", watch(out.parent, "--once").stdout)


def test_what_it_says_when_there_is_nothing_to_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(tmp_path)])
    said = " ".join(capsys.readouterr().out.split())
    assert "no run is under way" in said
    assert "status.json" in said
    assert "make mpi" in said
    for flags, text in (
        ([str(tmp_path / "no")], "expected a folder with runs. Got: "),
        ([str(tmp_path), "--interval", "0"], "--interval: expected 0.1 to 3600 seconds. Got: 0"),
        (["--onec"], "Did you mean --once"),
    ):
        with pytest.raises(UsageError) as error:
            main(flags)
        assert text in str(error.value)


@pytest.mark.launches
def test_it_needs_no_tensorflow() -> None:
    code = "import runpy, sys; sys.argv[1:] = ['--once']; "
    code += "\ntry: runpy.run_path('jobs/watch.py', run_name='__main__')\nexcept SystemExit: pass"
    code += "\nassert not {'tensorflow', 'keras', 'mpi4py'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_on_a_terminal_it_goes_on_until_ctrl_c_and_leaves_it_as_it_was(
    terminal: Open, tmp_path: Path
) -> None:
    path = write(tmp_path / "bench" / "mpi" / "1", a_status())
    shown = terminal([sys.executable, "jobs/watch.py", str(tmp_path), "--interval", "0.1"], 80)
    seen = 0
    for lines in shown.screens():
        assert all(len(line) <= 80 for line in lines)
        text = "\n".join(lines)
        if seen == 0 and re.search(r"bench/mpi/1 +training +3/12 +120/938", text):
            seen = 1
            write(path.parent, a_status(step=121))
        elif seen == 1 and "121/938" in text:
            seen = 2
            shown.process.send_signal(signal.SIGINT)
    assert seen == 2
    assert shown.process.returncode == 0, shown.lines
    written = b"".join(shown.written)
    assert written.count(b"\x1b[?1049h") == written.count(b"\x1b[?1049l") == 1
    assert not shown.screen.cursor.hidden
    assert "121/938" in "\n".join(shown.lines)


def test_silence_is_told_without_other_clocks(tmp_path: Path) -> None:
    """A host whose clock is a minute behind, and one that has been killed there."""
    write(tmp_path / "behind", a_status(host="n1", written=time.time() - 60))
    write(tmp_path / "ended", a_status(state="finished", written=time.time() - 50))
    write(tmp_path / "long ago", a_status(state="finished", written=time.time() - 70))
    write(tmp_path / "died", a_status(pid=2**22 + 1, written=time.time() - 20))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "status.json").write_text('{"of": "another program"}')
    write(tmp_path / "other too", a_status(epoch="third"))
    watcher = Watcher(tmp_path)
    first = "\n".join(drawn(watcher.look(), 80))
    assert re.search(r"behind +silent 60 s", first)
    assert re.search(r"died +died 20 s", first)
    assert re.search(r"ended +finished", first)
    assert "long ago" not in first
    assert "other" not in first
    # It has written again: however late its clock says that was, it is alive.
    path = write(tmp_path / "behind", a_status(host="n1", written=time.time() - 59))
    os.utime(path, (1, 1))
    assert re.search(r"behind +training", "\n".join(drawn(watcher.look(), 80)))


@pytest.mark.parametrize("width", [100, 80, 60, 40])
def test_the_table_fits_and_cuts_no_figure(width: int) -> None:
    many = [0.1 + 0.1 * (rank % 7) / 7 for rank in range(256)]
    many[77] = 0.01
    looks = [
        Look("a-run-with-a-name-that-is-too-long-for-most-terminals", a_status(ranks=1, rank_waiting=[]), 1),
        Look("many", a_status(ranks=256, rank_waiting=many, stragglers=[77]), 1),
        Look("silent", a_status(), 33),
        Look("new", a_status(state="starting", epoch=0, num_epochs=0, images_per_s=None, loss=None,
                             rank_images_per_s=[], rank_waiting=[], num_steps=0, ends_in_s=None), 1),
    ]  # fmt: skip
    lines = drawn(looks, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert re.search(r"rank 77.* straggler .*1%", text)
    assert text.count("straggler") == 1
    assert re.search(r"249 more +10%-19%", text)
    assert re.search(r"silent +silent 33 s", text)
    assert re.search(r"new +starting", text)
    assert text.count("123,457") == 4 - 1
    # A name may be cut, a figure may not.
    assert all(re.match(r"(a-run|  rank)", line) for line in lines if "…" in line)
