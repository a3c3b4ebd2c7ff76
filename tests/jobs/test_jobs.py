"""The jobs as a user starts them, with what a user gets wrong: code, one message, no traceback, no hang."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import pytest

from mpi_train.runs.record import RunRecord, read_run
from mpi_train.runtime import launch as launcher
from mpi_train.runtime.world import World
from tests.in_process import TrainJob, config_of, refused
from tests.programs import ROOT, assert_one_message

pytestmark = pytest.mark.timeout(240)

Launch = Callable[..., "subprocess.CompletedProcess[str]"]

JOBS = (
    "baseline", "mpi", "mirrored", "custom", "custom_dataset", "multiworker", "tpu", "pipeline", "federated",
)  # fmt: skip
FEDERATED = ["--fraction", "0.5", "--local-epochs", "2", "--proximal", "0.1", "--trace"]


def assert_complete(record: RunRecord, out: Path, job: str, ranks: int, flags: list[str]) -> None:
    """Check the record of 3 epochs and the files beside it."""
    assert read_run(out / "run.json") == record
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
    keys = [json.loads(line)["key"] for line in (out / "events.jsonl").read_text().splitlines()]
    assert keys.count("epoch_stop") == 3
    assert keys[-1] == "run_stop"
    assert record.confusion is not None
    assert sum(map(sum, record.confusion)) == 131
    correct = sum(record.confusion[label][label] for label in range(10))
    assert correct / 131 == pytest.approx(record.test_accuracy)
    if "--trace" in flags:
        assert_traced(out / "trace.json", ranks)


def assert_traced(path: Path, ranks: int) -> None:
    """Check the phases of every rank and epoch; in some round no client of a rank may be chosen."""
    found = json.loads(path.read_text())["otherData"]["ranks"]
    assert len(found) == ranks
    for rank in found:
        assert list(rank["seconds"]) == ["epoch 1", "epoch 2", "epoch 3"]
        assert any("compute" in seconds for seconds in rank["seconds"].values())
        for seconds in rank["seconds"].values():
            assert {"evaluate", "checkpoint"} <= set(seconds)
    # The rank that comes last waits for nobody; which that is, chance decides.
    assert ranks == 1 or any("wait" in seconds for rank in found for seconds in rank["seconds"].values())


@pytest.mark.mpi_skip
@pytest.mark.parametrize(
    ("job", "flags"),
    [
        ("baseline", []),
        ("baseline", ["--tuned", "--trace"]),
        ("mirrored", ["--devices", "2"]),
        ("custom", ["--devices", "2"]),
        ("custom_dataset", ["--devices", "2"]),
        ("tpu", []),
        ("mpi", []),
    ],
)
def test_one_process_trains_and_leaves_a_record(job: str, flags: list[str], train_job: TrainJob) -> None:
    assert_complete(train_job(job, "--epochs", "3", *flags), train_job.path(""), job, 1, flags)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    ("job", "flags"),
    [
        ("pipeline", ["--micro-batches", "3", "--trace"]),
        ("federated", FEDERATED),
        ("mpi", ["--average", "gradients"]),
        ("mpi", ["--every", "2", "--trace"]),
    ],
)
def test_ranks_train_and_leave_a_record(
    job: str, flags: list[str], train_job: TrainJob, world: World
) -> None:
    record = train_job(job, "--epochs", "3", *flags)
    if world.is_root:
        assert_complete(record, train_job.path(""), job, world.size, flags)


LAUNCHED = {
    "baseline": (1, []),
    "mpi": (2, ["--every", "2", "--trace"]),
    "multiworker": (3, []),
    "mirrored": (1, ["--devices", "2"]),
    "custom": (1, ["--devices", "2"]),
    "custom_dataset": (1, ["--devices", "2"]),
    "tpu": (1, []),
    "pipeline": (4, ["--micro-batches", "3"]),
    "federated": (2, FEDERATED),
}
FIRST = ("baseline", "mpi")


# One job of one process and one of several are started each time; the others differ in what is tested above.
@pytest.mark.parametrize(
    "job",
    [pytest.param(job, marks=[] if job in FIRST else [pytest.mark.slow], id=f"{job}.py") for job in JOBS],
)
def test_each_job_is_a_program(job: str, launch: Launch, tiny_shards: Path, tmp_path: Path) -> None:
    ranks, flags = LAUNCHED[job]
    result = launch(
        job, "--dataset", "synthetic", "--data", tiny_shards, "--model", "mlp", "--epochs", "3",
        "--out", tmp_path, *flags, ranks=ranks,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert_complete(read_run(tmp_path / "run.json"), tmp_path, job, ranks, flags)


# The launch of multiworker with bfloat16 is in tests/parity/test_tensorflow_strategies.py.
@pytest.mark.parametrize(
    "job",
    [
        *(
            pytest.param(job, marks=pytest.mark.mpi(min_size=2), id=f"{job}.py")
            for job in ("mpi", "pipeline", "federated")
        ),
        *(
            pytest.param(job, marks=pytest.mark.mpi_skip, id=f"{job}.py")
            for job in ("baseline", "mirrored", "custom", "custom_dataset", "tpu")
        ),
    ],
)
def test_bfloat16_keeps_float32_weights(job: str, train_job: TrainJob) -> None:
    assert train_job(job, "--epochs", "1", "--dtype", "bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("ranks", "flags", "code", "text"),
    [
        (1, ["--model", "transformer"], 2, "expected one of cnn, mlp, resnet"),
        (3, ["--data", "no/such/folder"], 3, "jobs/prepare_data.py --dataset synthetic"),
    ],
)
def test_bad_flags_give_one_message(
    ranks: int, flags: list[str], code: int, text: str, launch: Launch, tiny_shards: Path, tmp_path: Path
) -> None:
    given = ["--dataset", "synthetic", "--data", str(tiny_shards), "--out", str(tmp_path), *flags]
    assert_one_message(launch("mpi", *given, ranks=ranks), code, text)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--datset", "mnist"], "Did you mean --dataset"),
        (["--batch-size", "0"], "--batch-size"),
        (["--average", "nothing"], "invalid choice"),
    ],
)
def test_bad_flags_are_refused(flags: list[str], text: str) -> None:
    with refused(2, text):
        config_of("mpi", *flags)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--optimizer", "adamm"], "Did you mean adam"),
        (["--dataset", "fashion", "--data", "data/fashion"], "fashion_mnist"),
        # Even root cannot make a folder there.
        (["--out", "/proc/results"], "--out: expected a folder that can be written. Got: /proc/results"),
    ],
    ids=["optimizer", "dataset", "out"],
)
def test_what_cannot_work_is_refused_by_all_ranks(flags: list[str], text: str, train_job: TrainJob) -> None:
    with refused(2, text):
        train_job("mpi", *flags)


@pytest.mark.mpi(min_size=2)
def test_a_batch_smaller_than_the_ranks(train_job: TrainJob, world: World) -> None:
    expected = f"at least one example for each of the {world.size} ranks. Got: {world.size - 1}"
    with refused(2, expected):
        train_job("mpi", "--batch-size", str(world.size - 1))


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed here")
@pytest.mark.mpi_skip
def test_without_pytorch_ddp_says_what_to_do(train_job: TrainJob) -> None:
    with refused(4, "No module named 'torch'", "make peers"):
        train_job("ddp")


@pytest.mark.launches
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
            env={**launcher.environment(), rank_name: str(rank), size_name: "4"},
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


def test_a_job_of_one_process_refuses_several(launch: Launch, tmp_path: Path) -> None:
    result = launch("baseline", "--out", tmp_path, ranks=2)
    assert_one_message(result, 4, "baseline is one process. Got: 2 processes")


@pytest.mark.mpi(min_size=2)
def test_a_corrupt_shard_stops_all_ranks_with_one_message(
    tiny_shards: Path, shared_path: Path, train_job: TrainJob, world: World
) -> None:
    copy = shared_path / "shards"
    shard = copy / "train-00003-of-00004.h5"
    if world.is_root:
        copy.mkdir()
        for file in tiny_shards.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    world.barrier()
    with refused(3, f"[rank {world.size - 1} on ", shard.name, "jobs/prepare_data.py"):
        train_job("mpi", "--data", copy)


def test_an_exception_on_one_rank_ends_all_with_one_traceback(
    launch: Launch, tiny_shards: Path, tmp_path: Path, pythonpath: str
) -> None:
    model = tmp_path / "broken.py"
    model.write_text(
        "from mpi4py import MPI\n"
        "def build(input_shape, num_classes):\n"
        "    from mpi_train.models.zoo import mlp\n"
        "    if MPI.COMM_WORLD.rank == 1:\n"
        "        raise RuntimeError('only here')\n"
        "    return mlp(input_shape, num_classes)\n"
    )
    result = launch(
        "mpi", "--dataset", "synthetic", "--data", tiny_shards, "--model", "broken:build",
        "--out", tmp_path / "out", ranks=2, PYTHONPATH=pythonpath,
    )  # fmt: skip
    assert result.returncode != 0
    assert result.stderr.count("Traceback") == 1, result.stderr
    assert "[rank 1 on " in result.stderr
    assert "RuntimeError: only here" in result.stderr


@pytest.mark.mpi_skip
def test_mirrored_refuses_a_batch_that_its_devices_cannot_split(train_job: TrainJob) -> None:
    with refused(2, "a multiple of the 3 devices", "--batch-size 66"):
        train_job("mirrored", "--devices", "3")


def linear(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Build a model with one layer."""
    layers = [keras.Input(input_shape), keras.layers.Flatten(), keras.layers.Dense(num_classes)]
    return keras.Sequential(layers)


@pytest.mark.mpi
def test_weights_that_diverge_in_the_last_step(train_job: TrainJob) -> None:
    """The training loss is still finite; the evaluation shows it."""
    with refused(5, "the test loss became"):
        train_job(
            "mpi", "--optimizer", "sgd", "--epochs", "1", "--learning-rate", "3e38", "--batch-size", "600",
            "--model", f"{__name__}:linear",
        )  # fmt: skip


@pytest.mark.mpi(min_size=2)
def test_a_model_that_one_rank_cannot_import_stops_all(
    train_job: TrainJob, world: World, shared_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if world.is_root:
        (shared_path / "elsewhere.py").write_text(
            "from mpi4py import MPI\n"
            "from mpi_train.models.zoo import mlp\n"
            "if MPI.COMM_WORLD.rank == 1:\n"
            "    raise ImportError('not on this node')\n"
        )
    world.barrier()
    monkeypatch.syspath_prepend(shared_path)
    with refused(2, "[rank 1 on ", "not on this node"):
        train_job("mpi", "--model", "elsewhere:mlp")


def test_a_loss_that_is_not_finite(launch: Launch, tiny_shards: Path, tmp_path: Path) -> None:
    result = launch(
        "mpi", "--dataset", "synthetic", "--data", tiny_shards, "--optimizer", "sgd",
        "--learning-rate", "1e38", "--out", tmp_path, ranks=2,
    )  # fmt: skip
    assert_one_message(result, 5, "the loss or the weights became NaN or infinite", "--learning-rate")


# pytest-mpi would take the id "mpi" for its marker.
@pytest.mark.launches
@pytest.mark.parametrize("job", JOBS, ids="{}.py".format)
def test_help_needs_neither_data_nor_tensorflow(job: str) -> None:
    words = [sys.executable, "-X", "importtime", f"jobs/{job}.py", "--help"]
    result = subprocess.run(
        words, cwd=ROOT, env=launcher.environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert "--batch-size" in result.stdout
    assert "tensorflow" not in result.stderr
