"""``jobs/bench_step.py`` as a user starts it, with as few samples as can be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mpi_train.runtime import launch

pytestmark = [pytest.mark.launches, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]


def start(*flags: str | Path, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "jobs/bench_step.py", *map(str, flags)]
    if ranks > 1:
        words = launch.mpiexec(ranks, words)
    return subprocess.run(
        words, cwd=ROOT, env=launch.environment(), capture_output=True, text=True, timeout=120, check=False
    )


ALL = ["gradient", "optimizer", "step", "matrix product"]
WITH_OTHERS = [
    "gradient",
    "optimizer",
    "step",
    "step, averaged",
    "all-reduce",
    "step, alone",
    "matrix product",
]
LOOP = ["step / gradient", "step / (gradient + optimizer)"]


@pytest.mark.parametrize(
    ("ranks", "flags", "parts", "ratios"),
    [
        (1, ["--dtype", "bfloat16", "--optimizer", "sgd"], ALL, LOOP),
        (
            2,
            ["--average", "gradients", "--batch-size", "5"],
            WITH_OTHERS,
            [
                *LOOP,
                "weak scaling: 2 x alone / averaged",
                "weak scaling at most: 2 x alone / step",
                "averaging: (averaged - step) / all-reduce",
            ],
        ),
    ],
)
def test_every_part_is_timed_shown_and_kept(
    ranks: int, flags: list[str], parts: list[str], ratios: list[str], tmp_path: Path
) -> None:
    result = start("--model", "mlp", "--repeats", "2", "--out", tmp_path / "new", *flags, ranks=ranks)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    kept = json.loads((tmp_path / "new" / "bench_step.json").read_text())
    assert kept["config"]["model"] == "mlp"
    assert kept["world_size"] == ranks
    assert list(kept["parts_s"]) == parts
    assert list(kept["ratios"]) == ratios
    sizes = [str(4**power * 1024) for power in range(1, 9)] if ranks > 1 else []
    assert list(kept["all_reduce_s"]) == sizes
    for values in [*kept["parts_s"].values(), *kept["all_reduce_s"].values()]:
        assert len(values) == 2
        assert min(values) > 0
    lines = result.stdout.splitlines()
    assert f"{ranks} rank" in lines[0]
    assert "no data set" in lines[1]
    for start_of_line in [*parts, *ratios, *(f"{int(size):,}" for size in sizes)]:
        assert any(line.startswith(f"{start_of_line}  ") for line in lines), start_of_line
    assert sum(line.startswith("gradient ") for line in lines) == 2, "once with its time, once with its rate"


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--repeats", "0"], "--repeats: expected at least 1. Got: 0"),
        (["--batch-size", "1"], "at least one example for each of the 2 ranks. Got: 1"),
        (["--model", "cn"], "Did you mean cnn"),
        (["--out", "/proc/results"], "--out: expected a folder that can be written. Got: /proc/results"),
    ],
)
def test_bad_flags_end_all_ranks_with_one_message(flags: list[str], text: str) -> None:
    result = start(*flags, ranks=2)
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.count("error: ") == 1
    assert text in result.stderr


def test_help_needs_no_tensorflow() -> None:
    words = [sys.executable, "-X", "importtime", "jobs/bench_step.py", "--help"]
    result = subprocess.run(
        words, cwd=ROOT, env=launch.environment(), capture_output=True, text=True, check=True
    )
    assert "--repeats" in result.stdout
    assert "tensorflow" not in result.stderr
