from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from mpi_train.data import progress_bar

WORK = """
from mpi_train.data.progress_bar import progress
with progress("counting sheep", 10) as advance:
    for _ in range(10):
        advance(1)
print("done")
"""


def test_lines_in_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("mpi_train.data.progress_bar.time.monotonic", lambda: float(next(clock)))
    with progress_bar.progress("counting sheep", 8) as advance:
        for _ in range(8):
            advance(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "counting sheep: 25%"
    assert lines[-1].startswith("counting sheep: done in ")
    assert 3 <= len(lines) <= 5


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar.progress("counting sheep", 8) as advance:
        advance(8)
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.run(
        [sys.executable, "-c", WORK], stdout=subprocess.PIPE, stderr=theirs, env=environ, timeout=60
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert process.returncode == 0
    assert process.stdout == b"done\n"
    assert "counting sheep" in shown
    assert "100%" in shown
