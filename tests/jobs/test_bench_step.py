"""Step bench with as few samples as possible: in process, and one start of ``jobs/bench_step.py``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mpi_train.benchmarks import timing
from mpi_train.benchmarks.config import BenchStepConfig
from mpi_train.benchmarks.step import measure as bench
from mpi_train.runtime import launch
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.world import World

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).parents[2]
ALONE = ["gradient", "optimizer", "step", "matrix product"]
TOGETHER = [*ALONE[:3], "step, averaged", "all-reduce", "step, alone", "matrix product"]
LOOP = ["step / gradient", "step / (gradient + optimizer)"]


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE_S", 0.01)
    monkeypatch.setattr(bench, "NUM_IMAGES", 600)


def check(config: BenchStepConfig, world: World, printed: str, parts: list[str], ratios: list[str]) -> None:
    assert config.out is not None
    kept = json.loads((config.out / "bench_step.json").read_text())
    assert kept["config"]["model"] == "mlp"
    assert kept["world_size"] == world.size
    assert list(kept["parts_s"]) == parts
    assert list(kept["ratios"]) == ratios
    sizes = [str(4**power * 1024) for power in range(1, 9)] if world.size > 1 else []
    assert list(kept["all_reduce_s"]) == sizes
    for values in [*kept["parts_s"].values(), *kept["all_reduce_s"].values()]:
        assert len(values) == 2
        assert min(values) > 0
    lines = printed.splitlines()
    assert f"{world.size} rank" in lines[0]
    assert "no data set" in lines[1]
    for start in [*parts, *ratios, *(f"{int(size):,}" for size in sizes)]:
        assert any(line.startswith(f"{start}  ") for line in lines), start
    assert sum(line.startswith("gradient ") for line in lines) == 2, "once with its time, once with its rate"


@pytest.mark.mpi_skip
def test_every_part_is_timed_shown_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = BenchStepConfig(
        model="mlp", repeats=2, dtype="bfloat16", optimizer="sgd", out=tmp_path / "new", batch_size=5
    )
    bench.measure(config, World(), 1)
    check(config, World(), capsys.readouterr().out, ALONE, LOOP)


@pytest.mark.mpi(min_size=2)
def test_ranks_time_their_exchange_too(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = BenchStepConfig(
        model="mlp", repeats=2, average="gradients", batch_size=5, out=world.gather_all(tmp_path)[0] / "new"
    )
    bench.measure(config, world, 1)
    printed = capsys.readouterr().out
    if not world.is_root:
        assert printed == ""
        return
    ratios = [
        *LOOP,
        f"weak scaling: {world.size} x alone / averaged",
        f"weak scaling at most: {world.size} x alone / step",
        "averaging: (averaged - step) / all-reduce",
    ]
    check(config, world, printed, TOGETHER, ratios)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"batch_size": 1}, "at least one example for each of the"),
        ({"model": "cn"}, "Did you mean cnn"),
        ({"out": Path("/proc/results")}, "--out: expected a folder that can be written. Got: /proc/results"),
    ],
)
def test_what_cannot_be_timed_ends_all_ranks_together(
    fields: dict[str, object], text: str, world: World
) -> None:
    with pytest.raises(UsageError) as raised:
        bench.measure(BenchStepConfig(**fields), world, 1)  # type: ignore[arg-type]
    assert text in str(raised.value)


@pytest.mark.launches
def test_bad_flags_end_all_ranks_with_one_message() -> None:
    words = launch.mpiexec(2, [sys.executable, "jobs/bench_step.py", "--repeats", "0"])
    result = subprocess.run(words, cwd=ROOT, env=launch.environment(), capture_output=True, text=True)
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.count("error: ") == 1
    assert "--repeats: expected at least 1. Got: 0" in result.stderr


@pytest.mark.launches
def test_help_needs_no_tensorflow() -> None:
    words = [sys.executable, "-X", "importtime", "jobs/bench_step.py", "--help"]
    result = subprocess.run(
        words, cwd=ROOT, env=launch.environment(), capture_output=True, text=True, check=True
    )
    assert "--repeats" in result.stdout
    assert "tensorflow" not in result.stderr
