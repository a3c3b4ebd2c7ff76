"""What the two jobs take and refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpi_train.benchmarks.config import PlanConfig, ScalingConfig
from mpi_train.benchmarks.scaling import plan
from mpi_train.benchmarks.scaling.calibration import Calibration
from mpi_train.runtime import files
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import parse


@pytest.mark.parametrize(
    ("kind", "flags", "text"),
    [
        (PlanConfig, ["--gbit", "10"], "--gbit, --latency-us: expected both or none"),
        (PlanConfig, ["--gbit", "0", "--latency-us", "1"], "--gbit: expected a number above 0. Got: 0"),
        (PlanConfig, ["--max-ranks", "0"], "--max-ranks: expected at least 1. Got: 0"),
        (PlanConfig, ["--every", "0"], "--every: expected at least 1. Got: 0"),
        (PlanConfig, ["--repeats", "0"], "--repeats: expected at least 1. Got: 0"),
        (ScalingConfig, ["--collectives", "plane"], "--collectives: expected some of auto, plain"),
        (ScalingConfig, ["--collectives", "diloco"], "which exchange at every step. Got: 'diloco'"),
        (ScalingConfig, ["--collectives", ","], "--collectives: expected some of"),
    ],
)
def test_bad_flags_are_refused(kind: type, flags: list[str], text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse(kind, flags, description="", prog="job")
    assert text in str(raised.value)


def test_a_given_network_is_the_one_that_was_said() -> None:
    network = PlanConfig(gbit=100.0, latency_us=2.0).network
    assert network is not None
    assert network.latency_s == pytest.approx(2e-6)
    assert 1 / network.seconds_per_byte == pytest.approx(12.5e9)
    assert PlanConfig().network is None


def test_two_ranks_are_needed_to_measure() -> None:
    plan.check(PlanConfig(), 2)
    with pytest.raises(UsageError, match="Got: 1 rank"):
        plan.check(PlanConfig(gbit=100.0, latency_us=2.0), 1)
    with pytest.raises(UsageError, match="one example for each of the 2 ranks"):
        plan.check(PlanConfig(batch_size=1), 2)


def test_another_step_than_the_measured_one_is_refused(calibration: Calibration, tmp_path: Path) -> None:
    files.write_json(tmp_path / "calibration.json", calibration.as_dict())
    config = PlanConfig(calibration=tmp_path / "calibration.json", batch_size=128, out=tmp_path / "out")
    with pytest.raises(UsageError, match="--batch-size: expected 64") as raised:
        plan.predict_again(config)
    assert "--batch-size 128" in str(raised.value)
    assert not (tmp_path / "out").exists()
