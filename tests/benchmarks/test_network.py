"""What a bench of collectives means to run, what it refuses, and what it keeps of an earlier one."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpi_train.benchmarks.network.bench import NetworkConfig, flags_of, kept, plan
from mpi_train.collectives.registry import COLLECTIVES
from mpi_train.report.collect import write_attempts
from mpi_train.runtime.errors import PlatformError, UsageError
from mpi_train.runtime.flags import parse
from mpi_train.strategies.mpi.config import MpiConfig
from tests.report.conftest import write_run

ROOT = Path(__file__).parents[2]


def test_each_collective_runs_at_each_rate_with_the_same_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    config = NetworkConfig(
        rates="1gbit, 100mbit", collectives="plain,plain+every=8,topk+topk-fraction=0.1", seed=3, out=tmp_path
    )
    planned = plan(config)
    assert list(planned) == ["1gbit", "100mbit"]
    jobs = [job for own in planned.values() for job in own]
    folders = [f"{rate}/{job.attempt.folder}" for rate, own in planned.items() for job in own]
    assert folders[:3] == ["1gbit/plain", "1gbit/plain+every=8", "1gbit/topk+topk-fraction=0.1"]
    assert folders[3:] == [folder.replace("1gbit", "100mbit") for folder in folders[:3]]
    for folder, job in zip(folders, jobs, strict=True):
        words = job.words[job.words.index(os.path.relpath(ROOT / "jobs/mpi.py")) + 1 :]
        read = parse(MpiConfig, words, description="", prog="")
        # Each of the 4 ranks has its share of the 8 cores, and begins anew.
        assert (read.seed, read.epochs, read.threads, read.resume) == (3, 4, 2, "never")
        assert read.out == tmp_path / folder
        assert "--nodes=4" in job.words
        rate = folder.split("/")[0]
        assert job.attempt.command.startswith(
            os.path.relpath(ROOT / "slurm/local_cluster.sh") + f" rate {rate} && srun"
        )
    settings = [parse(MpiConfig, job.words[-4:], description="", prog="") for job in jobs[1:3]]
    assert [(each.collective, each.every) for each in settings] == [("plain", 8), ("topk", 1)]
    assert settings[1].options.topk_fraction == 0.1


def test_by_default_all_that_differ_on_nodes_with_one_rank_are_compared() -> None:
    names = NetworkConfig().names
    assert names[0] == "plain"
    assert {name for name in names if "+" not in name} == set(COLLECTIVES) - {"auto", "hierarchical"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rates": "fast"}, "--rates: expected rates such as 10gbit, 1gbit and 100mbit.* Got: fast"),
        ({"rates": ","}, "--rates: .* Got: nothing"),
        ({"collectives": " "}, "--collectives: expected some of .* Got: none"),
        ({"collectives": "plain,gosip"}, "--collectives: gosip: .*invalid choice: 'gosip'"),
        ({"collectives": "plain+evry=8"}, "plain.evry=8: unknown argument. .*Did you mean --every"),
        (
            {"collectives": "gossip+every=8"},
            "gossip.every=8: --every: --collective gossip exchanges at every step",
        ),
        ({"collectives": "plain+epochs=9"}, "--epochs must be the same in all runs. Got: plain.epochs=9"),
        ({"nodes": 1}, "--nodes: expected at least 2"),
        ({"batch_size": 3}, "at least one example for each of the 4 ranks"),
        ({"target": 88.0}, "--target: expected an accuracy between 0 and 1. Got: 88"),
        ({"resume": "auto"}, "a bench starts each run anew"),
    ],
)
def test_refuses_what_cannot_run(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NetworkConfig(**fields)  # type: ignore[arg-type]


def test_a_flag_without_a_value_may_be_added() -> None:
    assert flags_of("plain+sync-batchnorm+every=2") == [
        "--collective",
        "plain",
        "--sync-batchnorm",
        "--every",
        "2",
    ]


def test_keeps_what_the_same_command_finished(tmp_path: Path) -> None:
    config = NetworkConfig(rates="1gbit,none", collectives="plain,gossip,diloco,topk", out=tmp_path)
    jobs = plan(config)["1gbit"]
    done = [dataclasses.replace(job.attempt, exit_code=0) for job in jobs]
    done[1] = dataclasses.replace(done[1], exit_code=None)
    done[2] = dataclasses.replace(done[2], command="with other flags")
    for name in ("plain", "gossip", "diloco", "topk"):
        write_run(tmp_path / "1gbit", name)
    (tmp_path / "1gbit/topk/run.json").write_text("cut off")
    write_attempts(tmp_path / "1gbit", done)
    found = [job.attempt.folder for job in kept(jobs, tmp_path / "1gbit") if job.attempt.exit_code == 0]
    assert found == ["plain"]


@pytest.mark.launches
def test_without_a_cluster_it_says_how_to_get_one(tiny_shards: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "jobs/bench_network.py",
            "--dataset",
            "synthetic",
            "--data",
            tiny_shards,
            "--nodes",
            "3",
        ],
        cwd=ROOT,
        env={**os.environ, "LOCAL_CLUSTER_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == PlatformError.exit_code
    assert done.stderr.count("error: ") == 1
    if os.geteuid() == 0:
        assert "expected the local Slurm cluster with 3 nodes. Got: none" in done.stderr
        assert "make slurm-up NODES=3" in done.stderr
    else:
        assert "expected root" in done.stderr
