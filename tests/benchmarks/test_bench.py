"""The bench's own logic: order, seeds, failures, interruption. Real processes and a real mpiexec, but in
place of the training jobs one that leaves a record after a moment, so that each test takes seconds."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from mpi_train.benchmarks.bench import Bench, BenchConfig, available, plan
from mpi_train.data import synthetic
from mpi_train.data.shards import write_shards
from mpi_train.report.collect import read_attempts
from mpi_train.runs import record as records
from mpi_train.runtime import launch
from mpi_train.runtime.errors import DataError, DivergedError, PlatformError, UsageError
from mpi_train.runtime.flags import parse
from mpi_train.strategies.registry import STRATEGIES

ROOT = Path(__file__).parents[2]

# Trains for as long as its seed says, at the size that its launcher or --devices gives it.
QUICK_JOB = """
import argparse, dataclasses, os, sys, time
from pathlib import Path
from mpi_train.runs.record import EpochRecord, RunRecord
from mpi_train.runs.folder import RunFolder
from mpi_train.runtime.world import World

strategy = Path(__file__).stem
devices = strategy in ("mirrored", "custom", "custom_dataset")
parser = argparse.ArgumentParser()
for name, kind in (("out", Path), ("seed", int), ("devices", int), ("threads", int), ("epochs", int)):
    parser.add_argument("--" + name, type=kind, default=1)
parser.add_argument("--tuned", action="store_true")
flags, _ = parser.parse_known_args()
strategy = "tuned" if flags.tuned else strategy
size, rank = 1, 0
if strategy in ("mpi", "multiworker", "pipeline", "federated", "ddp"):
    from mpi4py import MPI
    size, rank = MPI.COMM_WORLD.size, MPI.COMM_WORLD.rank
print(f"{strategy}: {flags.epochs} epochs", flush=True)
if strategy == os.environ.get("SLOW"):
    Path(os.environ["SLOW_STARTED"]).write_text(str(os.getpid()))
    time.sleep(60)
if strategy == os.environ.get("FAILING"):
    sys.exit("error: the loss became nan") if size > 1 else (print("the loss became nan"), sys.exit(5))
epochs = [
    EpochRecord(epoch=e + 1, train_s=flags.seed / size, eval_s=0.1, images_per_s=512 * size / flags.seed,
                sync_s=0, train_loss=1, train_accuracy=0.5, test_loss=1, test_accuracy=0.5)
    for e in range(flags.epochs)
]
sync = {"devices": flags.devices} if devices else {"device": "CPU"} if strategy == "tpu" else {}
record = RunRecord(
    strategy=strategy, command="", model="cnn", dataset="synthetic", dataset_sha256="ab", world_size=size,
    threads_per_rank=flags.threads, global_batch_size=64, optimizer="adam", learning_rate=0.001,
    seed=flags.seed, dtype="float32", sync=sync, epochs=epochs,
    train_s=sum(e.train_s for e in epochs), images_per_s=epochs[-1].images_per_s, test_accuracy=0.5,
    weights_sha256="cd", startup_s=0.1, peak_rss_mib=10,
    environment={"pytorch": "2.9"} if strategy == "ddp" else {},
)
recorder = RunFolder(flags.out, World())
if rank == 0:
    recorder.open()
    recorder.write(record)
"""

# The bench, in a clone with the quick jobs.
BENCH = """
from pathlib import Path
from mpi_train.cli import main
from mpi_train.runtime import launch
launch.CLONE = Path(__file__).parents[1]
main("bench")
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the quick jobs and a tiny synthetic data set, to run a bench in."""
    (tmp_path / "jobs").mkdir()
    for strategy in STRATEGIES.values():
        (tmp_path / "jobs" / f"{strategy.job}.py").write_text(QUICK_JOB)
    python = tmp_path / ".venv-peers/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".venv-peers/installed").touch()
    (tmp_path / "jobs/bench.py").write_text(BENCH)
    write_shards(synthetic.draw(1, num_train=64, num_test=16), tmp_path / "data/synthetic", 1, 1)
    return tmp_path


def start(place: Path, *flags: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "jobs/bench.py", "--dataset", "synthetic", "--np", "2", *flags],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it puts in the background deaf to Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def run(place: Path, *flags: str, **environment: str) -> tuple[int, str, str]:
    child = start(place, *flags, **environment)
    out, err = child.communicate(timeout=100)
    return child.returncode, out, err


@pytest.mark.launches
def test_runs_all_in_turn_and_reports_what_they_recorded(place: Path) -> None:
    code, out, err = run(place, "--repeats", "2", "--epochs", "1", "--seed", "3")
    assert (code, err) == (0, "")
    finished = [line.split("] ")[1].split()[0] for line in out.splitlines() if line.startswith("[")]
    assert finished == [*STRATEGIES, "mpi"] * 2
    results = place / "results/bench"
    attempts = read_attempts(results)
    assert [a.exit_code for a in attempts] == [0] * 2 * (len(STRATEGIES) + 1)
    for attempt in attempts:
        record = records.read_run(results / attempt.folder / "run.json")
        assert record.seed == 2 + attempt.repeat
        assert record.world_size == (attempt.workers if attempt.unit == "rank" else 1)
        assert "1 epochs" in (results / attempt.folder / "job.log").read_text()
    table = (results / "report.md").read_text()
    assert "| mpi | 2 ranks | 1.75 s (1.50 to 2.00) | 2.00x (2.00x to 2.00x) | 100% (100% to 100%) |" in table
    assert (
        "| custom | 2 devices | 3.50 s (3.00 to 4.00) | 1.00x (1.00x to 1.00x) | 50% (50% to 50%) |" in table
    )
    assert "mpiexec -n 2 .venv-peers/bin/python jobs/ddp.py --seed 4" in table
    assert "ddp is PyTorch, for comparison" in table
    assert "mpiexec -n 2 python jobs/mpi.py --seed 4 --dataset synthetic --epochs 1 --out" in table
    assert "\x1b" not in out
    for text in (out, table.splitlines()[0]):
        assert "synthetic" in text


def test_all_leaves_out_what_is_not_installed_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "CLONE", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    said: list[str] = []
    config = available(BenchConfig(), said.append)
    assert config.names == [name for name in STRATEGIES if name != "ddp"]
    assert said == ["ddp is left out: PyTorch is not installed (make peers)"]
    with pytest.raises(PlatformError, match="ddp cannot be compared here: PyTorch is not installed"):
        available(BenchConfig(strategies="mpi,ddp"), said.append)
    python = tmp_path / ".venv-peers/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()  # as an interrupted make peers leaves it
    assert "ddp" not in available(BenchConfig(), said.append).names
    assert said.pop() == said[0]
    (tmp_path / ".venv-peers/installed").touch()
    assert available(BenchConfig(), said.append).names == list(STRATEGIES)
    assert len(said) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "ddp" not in available(BenchConfig(), said.append).names
    assert "ddp is left out: it trains on CPUs" in said[1]


@pytest.mark.launches
@pytest.mark.parametrize("failing", ["mirrored", "mpi"], ids=["one_process", "ranks"])
def test_goes_on_after_a_failure_and_ends_with_its_code(place: Path, failing: str) -> None:
    stale = place / f"results/bench/{failing}/1/run.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("an older bench's")
    strategies = f"baseline,{failing},custom"
    code, out, err = run(
        place, "--repeats", "1", "--epochs", "1", "--strategies", strategies, FAILING=failing
    )
    assert code == (DivergedError.exit_code if failing == "mirrored" else 1)
    assert f"FAILED with exit code {code}" in out
    assert "the loss became nan" in out
    assert f"{failing}/1" in err
    assert "Traceback" not in out + err
    assert not stale.exists()
    table = (place / "results/bench/report.md").read_text()
    assert f"failed (exit code {code})" in table
    assert "| custom | 2 devices | 1.00 s |" in table


@pytest.mark.launches
def test_runs_of_an_older_bench_stay_out_of_the_report(place: Path) -> None:
    run(place, "--repeats", "2", "--epochs", "1", "--strategies", "baseline,mirrored")
    assert (place / "results/bench/mirrored/2/run.json").exists()
    code, _, err = run(place, "--repeats", "1", "--epochs", "2", "--strategies", "baseline,custom")
    assert (code, err) == (0, "")
    # Older runs, with another number of epochs, were neither mixed in nor removed.
    assert (place / "results/bench/mirrored/2/run.json").exists()
    assert (place / "results/bench/baseline/2/run.json").exists()
    table = (place / "results/bench/report.md").read_text()
    assert "Epochs: 2" in table
    assert "mirrored" not in table


@pytest.mark.launches
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_its_child_and_reports_what_it_has(place: Path, signum: int) -> None:
    started = place / "started"
    flags = ("--repeats", "1", "--epochs", "1", "--strategies", "baseline,mpi,custom")
    child = start(place, *flags, SLOW="mpi", SLOW_STARTED=str(started))
    while not (started.exists() and started.read_text()):
        assert child.poll() is None, child.communicate()
        time.sleep(0.05)
    child.send_signal(signum)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "interrupted" in out
    assert "Traceback" not in out + err
    until = time.monotonic() + 10
    while is_alive(int(started.read_text())) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(int(started.read_text()))
    table = (place / "results/bench/report.md").read_text()
    assert "| baseline | 1 process | 1.00 s |" in table
    assert "| mpi | 2 ranks | was not finished |" in table
    assert "interrupted: 3 of its runs are missing" in table


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.launches
def test_says_once_what_makes_every_run_impossible(place: Path) -> None:
    code, out, err = run(place, "--data", "nowhere")
    assert (code, out) == (DataError.exit_code, "")
    assert err.count("error:") == 1
    assert "jobs/prepare_data.py --dataset synthetic --data nowhere" in err
    code, out, err = run(place, "--strategies", "baseline,custm")
    assert (code, out) == (UsageError.exit_code, "")
    assert "Got: custm. Did you mean custom?" in err
    (place / "results").write_text("in the way")
    code, _, err = run(place)
    assert code == UsageError.exit_code
    assert "expected a folder that can be written" in err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strategies": "horovod"}, "Got: horovod"),
        ({"strategies": " , "}, "Got: none"),
        ({"repeats": 0}, "--repeats: expected at least 1"),
        ({"np": 0}, "--np: expected at least 1"),
        ({"epochs": 0}, "--epochs: expected at least 1"),
    ],
)
def test_refuses_what_cannot_run(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BenchConfig(**fields)  # type: ignore[arg-type]


def test_default_size_follows_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    sizes = {}
    for cores in (1, 2, 3, 4, 64):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        sizes[cores] = BenchConfig().num_workers, BenchConfig(batch_size=66).num_workers
    # As many as divide the batch, which MirroredStrategy wants even.
    assert sizes == {1: (2, 2), 2: (2, 2), 3: (2, 3), 4: (4, 3), 64: (4, 3)}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert BenchConfig().num_workers == 1


def test_the_training_flags_reach_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    config = BenchConfig(np=4, repeats=1, model="mlp", batch_size=96, dtype="bfloat16", out=tmp_path)
    jobs = {job.attempt.folder: job for job in plan(config)}
    assert list(jobs) == [*(f"{name}/1" for name in STRATEGIES), "reference/1"]
    for job in jobs.values():
        words = " ".join(job.words)
        assert "--model mlp --batch-size 96 --dtype bfloat16" in words
        assert f"--out {tmp_path / job.attempt.folder}" in words
    assert jobs["tuned/1"].words[-1] == "--tuned"
    assert jobs["custom/1"].words[-2:] == ["--devices", "4"]
    # The reference has the threads that each of the 4 ranks has on these 8 cores.
    assert "--threads 2" in " ".join(jobs["reference/1"].words)
    assert jobs["reference/1"].attempt.command.startswith("mpiexec -n 1 python jobs/mpi.py")
    assert "--threads" not in " ".join(jobs["mpi/1"].words)


def test_no_run_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    for job in plan(BenchConfig(out=tmp_path)):
        assert "--resume never" in job.attempt.command
    with pytest.raises(UsageError, match="a bench starts each run anew"):
        BenchConfig(resume="auto")


def test_a_quiet_bench_keeps_the_logs_of_its_runs(tmp_path: Path) -> None:
    for job in plan(BenchConfig(out=tmp_path, quiet=True)):
        assert "--quiet" not in job.words
    with pytest.raises(UsageError, match="--json: a bench shows its runs itself"):
        BenchConfig(json=True)


def test_alone_there_is_no_reference(tmp_path: Path) -> None:
    for config in (BenchConfig(np=1), BenchConfig(strategies="baseline")):
        assert not any(job.attempt.folder.startswith("reference") for job in plan(config))


def test_lists_what_is_to_come_before_it_starts(tmp_path: Path) -> None:
    config = BenchConfig(repeats=1, strategies="baseline", out=tmp_path)
    Bench(tmp_path, plan(config), Console(quiet=True)).clear()
    raw = json.loads((tmp_path / "bench.json").read_text())
    assert raw["runs"][0]["exit_code"] is None


def test_a_registered_strategy_is_in_the_help_and_among_the_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fast = dataclasses.replace(STRATEGIES["mirrored"], name="fast", text="a new one", command="mirrored")
    slow = dataclasses.replace(STRATEGIES["baseline"], name="slow", bench=False)
    for strategy in (fast, slow):
        monkeypatch.setitem(STRATEGIES, strategy.name, strategy)
    with pytest.raises(SystemExit):
        parse(BenchConfig, ["--help"], description="", prog="bench")
    assert "fast" in capsys.readouterr().out
    planned = plan(BenchConfig(np=2, repeats=1, out=tmp_path))
    commands = {job.attempt.strategy: job.attempt.command for job in planned}
    assert commands["fast"].startswith("python jobs/mirrored.py")
    assert commands["fast"].endswith("--devices 2")
    assert "slow" not in commands, "by name only"
    assert BenchConfig(strategies="slow,fast").names == ["slow", "fast"]
