"""A strategy and a collective that exist only here appear everywhere, by their registry entries alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpi_train import cli
from mpi_train.benchmarks.bench import BenchConfig, plan
from mpi_train.benchmarks.config import ScalingConfig
from mpi_train.benchmarks.network.bench import NetworkConfig
from mpi_train.cluster import submit
from mpi_train.collectives.registry import COLLECTIVES, Collective
from mpi_train.report import text
from mpi_train.report.collect import collect
from mpi_train.report.summary import summarise
from mpi_train.runtime.flags import parse
from mpi_train.strategies.mpi.config import MpiConfig
from mpi_train.strategies.registry import STRATEGIES, Strategy
from tests.report.conftest import write_run

# The commands print on the root rank only.
pytestmark = pytest.mark.mpi_skip

ROOT = Path(__file__).parents[1]


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the strategy ``ring``."""
    entry = Strategy(name="ring", text="a ring of ranks", config=MpiConfig, train="ring:train")
    monkeypatch.setitem(STRATEGIES, "ring", entry)


@pytest.fixture
def smoke(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the collective ``smoke``."""
    entry = Collective(text="smoke signals", averages=("gradients",), changes_result=True)
    monkeypatch.setitem(COLLECTIVES, "smoke", entry)


def help_of(kind: type, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the help of the options of ``kind``."""
    with pytest.raises(SystemExit):
        parse(kind, ["--help"], description="", prog="job")
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("ring")
def test_a_strategy_is_a_command_is_benched_submitted_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main("--help")
    assert "ring            a ring of ranks" in capsys.readouterr().out
    assert " ring" in help_of(BenchConfig, capsys)
    planned = [job.attempt for job in plan(BenchConfig(np=2, repeats=1, out=tmp_path))]
    assert [(run.unit, run.workers) for run in planned if run.strategy == "ring"] == [("rank", 2)]
    monkeypatch.chdir(ROOT)
    submit.main(["ring", "--collective", "plain", "--print"])
    assert capsys.readouterr().out.endswith("\nranks ring --collective plain\n")
    write_run(tmp_path, "baseline")
    write_run(tmp_path, "ring", strategy="ring", world_size=2)
    (section,) = text.contents([summarise(collect([tmp_path]))])
    assert ["ring", "2 ranks"] in [row[:2] for row in section["comparison"].rows]


@pytest.mark.usefixtures("smoke")
def test_a_collective_is_a_choice_is_benched_submitted_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "smoke: smoke signals" in help_of(MpiConfig, capsys)
    assert "smoke" in NetworkConfig().names
    assert "smoke" in ScalingConfig(collectives="smoke").names
    monkeypatch.chdir(ROOT)
    submit.main(["mpi", "--collective", "smoke", "--print"])
    script = capsys.readouterr().out
    assert "\nranks mpi " in script
    assert "--collective smoke" in script
    sync = {"average": "gradients", "every": 1, "collective": "smoke"}
    write_run(tmp_path, "baseline")
    write_run(tmp_path, "mpi", strategy="mpi", world_size=2, sync=sync)
    (section,) = text.contents([summarise(collect([tmp_path]))])
    assert "mpi exchanges with --collective smoke (smoke signals)" in str(section)
