"""Plan and scaling with as few samples as possible: in process, and starts without TensorFlow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mpi_train.benchmarks import timing
from mpi_train.benchmarks.config import PlanConfig, ScalingConfig
from mpi_train.benchmarks.scaling import calibrate, measure, plan
from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.runtime import launch
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import parse
from mpi_train.runtime.world import World

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE_S", 0.01)
    monkeypatch.setattr(calibrate, "_NUM_SINGLE", 20)


def start(job: str, *flags: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, f"jobs/{job}.py", *map(str, flags)]
    return subprocess.run(
        words, cwd=ROOT, env=launch.environment(), capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.mpi(min_size=2)
def test_a_plan_is_measured_and_made_again_from_its_file(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = world.gather_all(tmp_path)[0] / "new"
    measure.plan(PlanConfig(model="mlp", batch_size=4, repeats=1, out=out), world, 1)
    printed = capsys.readouterr().out
    if not world.is_root:
        assert printed == ""
        return
    kept = json.loads((out / "calibration.json").read_text())
    assert set(kept["roomy"]["step_s"]) == {name for name in COLLECTIVES if COLLECTIVES[name].every == 1}
    assert set(kept["alone_s"]) == {"1", "2", "4"}
    assert kept["one_machine"] is True
    for name in ("plan.json", "plan.md", "plan.png"):
        assert (out / name).stat().st_size
    assert "It was measured within one node" in printed
    assert "A batch of 4 is enough for 4 ranks at most" in printed

    flags = ["--gbit", "10", "--latency-us", "20", "--weak", "--machine", "many", "--max-ranks", "16"]
    flags += ["--calibration", str(out / "calibration.json"), "--out", str(tmp_path / "again")]
    plan.predict_again(parse(PlanConfig, flags, description="", prog="plan"))
    assert "Network, given: 20 us a message, 10 Gbit/s" in capsys.readouterr().out
    again = json.loads((tmp_path / "again" / "plan.json").read_text())
    assert {(row["way"], row["ranks"]) for row in again["trainings"]} == {
        (name, ranks) for name in COLLECTIVES for ranks in (1, 2, 4, 8, 16)
    }
    assert not COLLECTIVES[again["advice"]["the same result"]["fastest"]["way"]].changes_result
    assert not (tmp_path / "again" / "calibration.json").exists()


@pytest.mark.mpi(min_size=2)
def test_scaling_is_measured_beside_what_is_predicted(world: World, tmp_path: Path) -> None:
    out = world.gather_all(tmp_path)[0] / "new"
    config = ScalingConfig(model="mlp", batch_size=4, repeats=1, collectives="gossip", out=out)
    measure.measure(config, world, 1)
    if world.is_root:
        content = json.loads((out / "scaling.json").read_text())
        sizes = [size for size in (2, 4) if size <= world.size]
        assert [
            (each["ranks"], each["way"], each["scaling"], each["batch_size"]) for each in content["measured"]
        ] == [
            (1, "gossip", "strong", 4),
            *((size, "gossip", *kind) for size in sizes for kind in (("strong", 4), ("weak", 4 * size))),
        ]
        assert all(each["step_s"] > 0 and each["predicted_s"] > 0 for each in content["measured"])
        assert (out / "scaling.md").stat().st_size
        assert (out / "scaling.png").stat().st_size


@pytest.mark.mpi(min_size=2)
def test_what_the_measuring_ranks_cannot_do_ends_those_that_rest(world: World, tmp_path: Path) -> None:
    config = ScalingConfig(model="nope", out=world.gather_all(tmp_path)[0])
    with pytest.raises(UsageError, match="--model"):
        measure.measure(config, world, 1)


@pytest.mark.launches
def test_one_rank_cannot_measure_a_network() -> None:
    result = start("plan")
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.count("error: ") == 1
    assert "plan measures a network between two ranks. Got: 1 rank" in result.stderr
    assert "mpiexec -n 2 python jobs/plan.py" in result.stderr


@pytest.mark.launches
@pytest.mark.parametrize("job", ["plan", "scaling"])
def test_help_needs_no_tensorflow(job: str) -> None:
    words = [sys.executable, "-X", "importtime", f"jobs/{job}.py", "--help"]
    result = subprocess.run(
        words, cwd=ROOT, env=launch.environment(), capture_output=True, text=True, check=True
    )
    assert "--repeats" in result.stdout
    assert "tensorflow" not in result.stderr
