"""``jobs/plan.py`` and ``jobs/scaling.py`` as a user starts them, with as few samples as can be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.runtime import launch

pytestmark = [pytest.mark.launches, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
QUICK = ("--model", "mlp", "--batch-size", "4", "--repeats", "1")


def start(job: str, *flags: str | Path, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, f"jobs/{job}.py", *map(str, flags)]
    if ranks > 1:
        words = launch.mpiexec(ranks, words)
    return subprocess.run(
        words, cwd=ROOT, env=launch.environment(), capture_output=True, text=True, timeout=200, check=False
    )


def test_a_plan_is_measured_and_made_again_from_its_file(tmp_path: Path) -> None:
    first = start("plan", *QUICK, "--out", tmp_path / "new", ranks=2)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stderr == ""
    kept = json.loads((tmp_path / "new" / "calibration.json").read_text())
    assert set(kept["roomy"]["step_s"]) == {way for way in COLLECTIVES if COLLECTIVES[way].every == 1}
    assert set(kept["alone_s"]) == {"1", "2", "4"}
    assert kept["one_machine"] is True
    for name in ("plan.json", "plan.md", "plan.png"):
        assert (tmp_path / "new" / name).stat().st_size
    assert "It was measured within one node" in first.stdout
    assert "A batch of 4 goes round 4 ranks at most" in first.stdout

    flags = ("--gbit", "10", "--latency-us", "20", "--weak", "--machine", "many", "--max-ranks", "16")
    file = tmp_path / "new" / "calibration.json"
    again = start("plan", "--calibration", file, *flags, "--out", tmp_path / "again")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Network, given: 20 us a message, 10 Gbit/s" in again.stdout
    plan = json.loads((tmp_path / "again" / "plan.json").read_text())
    assert {(row["way"], row["ranks"]) for row in plan["trainings"]} == {
        (way, ranks) for way in COLLECTIVES for ranks in (1, 2, 4, 8, 16)
    }
    assert not COLLECTIVES[plan["advice"]["the same result"]["fastest"]["way"]].changes_result
    assert not (tmp_path / "again" / "calibration.json").exists()


def test_scaling_is_measured_beside_what_is_predicted(tmp_path: Path) -> None:
    result = start("scaling", *QUICK, "--collectives", "gossip", "--out", tmp_path / "new", ranks=3)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    content = json.loads((tmp_path / "new" / "scaling.json").read_text())
    assert [
        (each["ranks"], each["way"], each["scaling"], each["batch_size"]) for each in content["measured"]
    ] == [
        (1, "gossip", "strong", 4),
        (2, "gossip", "strong", 4),
        (2, "gossip", "weak", 8),
    ]
    assert all(each["step_s"] > 0 and each["predicted_s"] > 0 for each in content["measured"])
    assert (tmp_path / "new" / "scaling.md").stat().st_size
    assert (tmp_path / "new" / "scaling.png").stat().st_size


def test_one_rank_cannot_measure_a_network() -> None:
    result = start("plan")
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.count("error: ") == 1
    assert "plan measures a network between two ranks. Got: 1 rank" in result.stderr
    assert "mpiexec -n 2 python jobs/plan.py" in result.stderr


def test_what_the_measuring_ranks_cannot_do_ends_those_that_rest() -> None:
    result = start("scaling", "--model", "nope", ranks=3)
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.count("error: ") == 1
    assert "--model" in result.stderr


def test_help_needs_no_tensorflow() -> None:
    for job in ("plan", "scaling"):
        words = [sys.executable, "-X", "importtime", f"jobs/{job}.py", "--help"]
        result = subprocess.run(
            words, cwd=ROOT, env=launch.environment(), capture_output=True, text=True, check=True
        )
        assert "--repeats" in result.stdout
        assert "tensorflow" not in result.stderr
