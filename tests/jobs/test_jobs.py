"""The jobs as a user starts them, with what a user gets wrong: code, one message, no traceback, no hang."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mpi_train.runs.record import read_run
from mpi_train.runtime import launch

pytestmark = [pytest.mark.mpi_skip, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]


JOBS = (
    "baseline", "mpi", "mirrored", "custom", "custom_dataset", "multiworker", "tpu", "pipeline", "federated",
)  # fmt: skip


def start(job: str, *flags: str | Path, ranks: int = 1, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs a job to its end and returns what it printed; never longer than two minutes."""
    words = [sys.executable, f"jobs/{job}.py", *map(str, flags)]
    if ranks > 1:
        words = launch.mpiexec(ranks, words)
    env = {**launch.environment(), **environ}
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)


def assert_one_message(result: subprocess.CompletedProcess[str], code: int, *texts: str) -> None:
    output = result.stdout + result.stderr
    assert result.returncode == code, output
    assert "Traceback" not in output
    assert len(re.findall(r"^error: ", output, re.MULTILINE)) == 1, output
    for text in texts:
        assert text in output


@pytest.mark.parametrize(
    ("job", "ranks", "flags"),
    [
        ("baseline", 1, []),
        ("baseline", 1, ["--tuned", "--trace"]),
        ("mirrored", 1, ["--devices", "2"]),
        ("custom", 1, ["--devices", "2"]),
        ("custom_dataset", 1, ["--devices", "2"]),
        ("multiworker", 3, []),
        ("tpu", 1, []),
        ("pipeline", 4, ["--micro-batches", "3", "--trace"]),
        ("federated", 2, ["--fraction", "0.5", "--local-epochs", "2", "--proximal", "0.1", "--trace"]),
        ("mpi", 1, []),
        ("mpi", 2, ["--average", "gradients"]),
        ("mpi", 3, ["--every", "2", "--trace"]),
    ],
)
def test_each_job_trains_and_leaves_a_record(
    job: str, ranks: int, flags: list[str], tiny_shards: Path, tmp_path: Path
) -> None:
    result = start(
        job, "--dataset", "synthetic", "--data", tiny_shards, "--model", "mlp", "--epochs", "3",
        "--out", tmp_path, *flags, ranks=ranks,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    record = read_run(tmp_path / "run.json")
    assert record.strategy == ("tuned" if "--tuned" in flags else job)
    assert record.dataset == "synthetic"
    assert record.world_size == ranks
    assert len(record.environment["hosts"]) == ranks
    assert [epoch.epoch for epoch in record.epochs] == [1, 2, 3]
    assert record.epochs[-1].train_loss < record.epochs[0].train_loss
    assert record.test_accuracy > 0.3
    assert record.peak_rss_mib > 50
    assert list(record.startup) == ["import", "load", "build", "trace"]
    assert record.startup_s >= max(record.startup.values()) > 0
    assert re.fullmatch("[0-9a-f]{64}", record.weights_sha256)
    keys = [json.loads(line)["key"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert keys.count("epoch_stop") == 3
    assert keys[-1] == "run_stop"
    assert record.confusion is not None
    assert sum(map(sum, record.confusion)) == 131
    hits = sum(record.confusion[label][label] for label in range(10))
    assert hits / 131 == pytest.approx(record.test_accuracy)
    if "--trace" in flags:
        _assert_traced(tmp_path / "trace.json", ranks)


def _assert_traced(path: Path, ranks: int) -> None:
    """It says of every rank and epoch what was done; in some round no client of a rank may have its turn."""
    found = json.loads(path.read_text())["otherData"]["ranks"]
    assert len(found) == ranks
    for rank in found:
        assert list(rank["seconds"]) == ["epoch 1", "epoch 2", "epoch 3"]
        assert any("compute" in seconds for seconds in rank["seconds"].values())
        for seconds in rank["seconds"].values():
            assert {"evaluate", "checkpoint"} <= set(seconds)
    # The rank that comes last waits for nobody; which that is, chance decides.
    assert ranks == 1 or any("wait" in seconds for rank in found for seconds in rank["seconds"].values())


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed here")
def test_without_pytorch_ddp_says_what_to_do(tiny_shards: Path, tmp_path: Path) -> None:
    result = start("ddp", "--dataset", "synthetic", "--data", tiny_shards, "--out", tmp_path, ranks=2)
    assert_one_message(result, 4, "No module named 'torch'", "make peers")


def test_bfloat16_keeps_float32_weights(tiny_shards: Path, tmp_path: Path) -> None:
    for job in JOBS:
        result = start(
            job, "--dataset", "synthetic", "--data", tiny_shards, "--model", "mlp", "--epochs", "1",
            "--dtype", "bfloat16", "--out", tmp_path / job, ranks=2 if job == "pipeline" else 1,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        assert read_run(tmp_path / job / "run.json").dtype == "bfloat16"


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (["--model", "transformer"], 2, "expected one of cnn, mlp, resnet"),
        (["--optimizer", "adamm"], 2, "Did you mean adam"),
        (["--datset", "mnist"], 2, "Did you mean --dataset"),
        (["--batch-size", "0"], 2, "--batch-size"),
        (["--average", "nothing"], 2, "invalid choice"),
        (["--data", "no/such/folder"], 3, "jobs/prepare_data.py --dataset synthetic"),
    ],
)
def test_bad_flags(
    flags: list[str], code: int, text: str, ranks: int, tiny_shards: Path, tmp_path: Path
) -> None:
    given = ["--dataset", "synthetic", "--data", str(tiny_shards), "--out", str(tmp_path), *flags]
    assert_one_message(start("mpi", *given, ranks=ranks), code, text)


def test_a_batch_smaller_than_the_ranks(tiny_shards: Path, tmp_path: Path) -> None:
    result = start(
        "mpi",
        "--dataset",
        "synthetic",
        "--data",
        tiny_shards,
        "--batch-size",
        "2",
        "--out",
        tmp_path,
        ranks=3,
    )
    assert_one_message(result, 2, "at least one example for each of the 3 ranks. Got: 2")


def test_unknown_dataset(tmp_path: Path) -> None:
    assert_one_message(start("mpi", "--dataset", "fashion", "--out", tmp_path), 2, "fashion_mnist")


def test_an_output_folder_that_cannot_be_written(tiny_shards: Path) -> None:
    # Even root cannot make a folder there.
    result = start("mpi", "--dataset", "synthetic", "--data", tiny_shards, "--out", "/proc/results", ranks=2)
    assert_one_message(result, 2, "--out: expected a folder that can be written. Got: /proc/results")


@pytest.mark.parametrize("variables", [("PMI_RANK", "PMI_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")])
def test_four_worlds_of_size_one(variables: tuple[str, str], tmp_path: Path) -> None:
    """What a launcher does that does not speak the library's protocol: four processes, each alone."""
    rank_name, size_name = variables
    if rank_name == "PMI_RANK":
        # MPICH believes these two; the launcher of Open MPI is what it cannot know.
        rank_name, size_name = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"
    processes = [
        subprocess.Popen(
            [sys.executable, "jobs/mpi.py", "--out", str(tmp_path)],
            cwd=ROOT,
            env={**launch.environment(), rank_name: str(rank), size_name: "4"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(4)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [4, 4, 4, 4]
    assert sum("started 4 processes" in output for output in outputs) == 1
    assert "srun --mpi=pmi2" in outputs[0]
    assert not list(tmp_path.iterdir())


def test_a_job_of_one_process_refuses_several(tmp_path: Path) -> None:
    result = start("baseline", "--out", tmp_path, ranks=2)
    assert_one_message(result, 4, "baseline is one process. Got: 2 processes")


def test_a_corrupt_shard_stops_all_ranks_with_one_message(tiny_shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    copy.mkdir()
    for file in tiny_shards.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    shard = copy / "train-00003-of-00004.h5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    result = start("mpi", "--dataset", "synthetic", "--data", copy, "--out", tmp_path / "out", ranks=2)
    assert_one_message(result, 3, "[rank 1 on ", shard.name, "jobs/prepare_data.py")


def test_an_exception_on_one_rank_ends_all_with_one_traceback(tiny_shards: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    model = tmp_path / "broken.py"
    model.write_text(
        "from mpi4py import MPI\n"
        "def build(input_shape, num_classes):\n"
        "    from mpi_train.models.zoo import mlp\n"
        "    if MPI.COMM_WORLD.rank == 1:\n"
        "        raise RuntimeError('only here')\n"
        "    return mlp(input_shape, num_classes)\n"
    )
    result = start(
        "mpi", "--dataset", "synthetic", "--data", tiny_shards, "--model", "broken:build",
        "--out", tmp_path / "out", ranks=3, PYTHONPATH=path,
    )  # fmt: skip
    assert result.returncode != 0
    assert result.stderr.count("Traceback") == 1, result.stderr
    assert "[rank 1 on " in result.stderr
    assert "RuntimeError: only here" in result.stderr


def test_mirrored_refuses_a_batch_that_its_devices_cannot_split(tiny_shards: Path, tmp_path: Path) -> None:
    result = start(
        "mirrored", "--dataset", "synthetic", "--data", tiny_shards, "--devices", "3", "--out", tmp_path
    )
    assert_one_message(result, 2, "a multiple of the 3 devices", "--batch-size 66")


def test_weights_that_diverge_in_the_last_step(tiny_shards: Path, tmp_path: Path) -> None:
    """The training loss is still finite; the evaluation shows it."""
    (tmp_path / "linear.py").write_text(
        "import keras\n"
        "def build(input_shape, num_classes):\n"
        "    layers = [keras.Input(input_shape), keras.layers.Flatten(), keras.layers.Dense(num_classes)]\n"
        "    return keras.Sequential(layers)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = start(
        "mpi", "--dataset", "synthetic", "--data", tiny_shards, "--optimizer", "sgd", "--epochs", "1",
        "--learning-rate", "3e38", "--batch-size", "600", "--model", "linear:build",
        "--out", tmp_path / "out", ranks=2, PYTHONPATH=path,
    )  # fmt: skip
    assert_one_message(result, 5, "the test loss became")


def test_a_model_that_one_rank_cannot_import_stops_all(tiny_shards: Path, tmp_path: Path) -> None:
    model = tmp_path / "elsewhere.py"
    model.write_text(
        "from mpi4py import MPI\n"
        "from mpi_train.models.zoo import mlp\n"
        "if MPI.COMM_WORLD.rank == 1:\n"
        "    raise ImportError('not on this node')\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = start(
        "mpi", "--dataset", "synthetic", "--data", tiny_shards, "--model", "elsewhere:mlp",
        "--out", tmp_path / "out", ranks=3, PYTHONPATH=path,
    )  # fmt: skip
    assert_one_message(result, 2, "[rank 1 on ", "not on this node")


def test_a_loss_that_is_not_finite(tiny_shards: Path, tmp_path: Path) -> None:
    result = start(
        "mpi", "--dataset", "synthetic", "--data", tiny_shards, "--optimizer", "sgd",
        "--learning-rate", "1e38", "--out", tmp_path, ranks=2,
    )  # fmt: skip
    assert_one_message(result, 5, "the loss or the weights became NaN or infinite", "--learning-rate")


# pytest-mpi would take the id "mpi" for its marker.
@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job}.py")
def test_help_needs_neither_data_nor_tensorflow(job: str) -> None:
    words = [sys.executable, "-X", "importtime", f"jobs/{job}.py", "--help"]
    result = subprocess.run(
        words, cwd=ROOT, env=launch.environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert "--batch-size" in result.stdout
    assert "tensorflow" not in result.stderr
