"""Interrupted runs that resume: the same bits as a run that was never interrupted."""

from __future__ import annotations

import csv
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from mpi_train.data import synthetic
from mpi_train.data.shards import ShardSet, write_shards
from mpi_train.report.collect import collect
from mpi_train.runs.checkpoints import Checkpoints
from mpi_train.runs.loggers import scalars
from mpi_train.runs.record import RunRecord, read_run
from mpi_train.runtime.world import World
from mpi_train.training.steps import Segment, dealt, epoch_order, plan_steps
from tests.in_process import TrainJob, refused

Start = Callable[..., Any]

pytestmark = pytest.mark.timeout(300)

slow = pytest.mark.slow
STEPS = ["--batch-size", "12", "--checkpoint-every", "7"]
"""43 steps an epoch, and a checkpoint after each 7."""


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> Callable[[World, int, int], None]:
    """Give a function that has a rank get a signal after its n-th checkpoint from now on."""

    def after(world: World, number: int, nth: int) -> None:
        save, saves = Checkpoints.save, []

        def save_and_signal(self: Checkpoints, *args: Any) -> bool:
            saved = save(self, *args)
            if signal.getsignal(number) != signal.SIG_DFL:  # not before the first step
                saves.append(saved)
            # One rank alone gets it; all must stop.
            if len(saves) == nth and world.rank == world.size - 1:
                signal.raise_signal(number)
            return saved

        monkeypatch.setattr(Checkpoints, "save", save_and_signal)

    return after


ALONE = [
    pytest.param("custom", ["--devices", "2"], id="custom", marks=slow),
    pytest.param("baseline", [], id="baseline"),
    pytest.param("baseline", ["--tuned"], id="tuned", marks=slow),
    pytest.param("mirrored", ["--devices", "2"], id="mirrored", marks=slow),
]
RANKS = [
    pytest.param("mpi", [], id="weights"),
    pytest.param("mpi", ["--average", "gradients"], id="gradients", marks=slow),
    pytest.param("mpi", ["--every", "5"], id="local_sgd", marks=slow),
    pytest.param("mpi", ["--model", "resnet", "--sync-batchnorm"], id="batchnorm", marks=slow),
    pytest.param("mpi", ["--optimizer", "lamb", "--dtype", "bfloat16"], id="lamb_bfloat16", marks=slow),
    pytest.param(
        "mpi",
        [
            *("--average", "weights+slots", "--accumulate", "2"),
            *("--lr-scaling", "sqrt", "--warmup-epochs", "3", "--learning-rate", "0.003"),
        ],
        id="slots_accumulate_warmup",
        marks=slow,
    ),
    # Cut by hand: where a measured cut is, two runs may differ.
    pytest.param(
        "pipeline",
        ["--model", "resnet", "--cut", "re_lu_2", "--optimizer", "lamb"],
        id="pipeline",
        marks=slow,
    ),
    pytest.param("federated", ["--server-momentum", "0.5"], id="federated", marks=slow),
]


@pytest.mark.mpi_skip
@pytest.mark.parametrize(("job", "flags"), ALONE)
def test_asked_to_stop_one_process_saves_and_resumes_with_the_same_bits(
    job: str, flags: list[str], train_job: TrainJob, signals: Callable[..., None], world: World
) -> None:
    assert_same_bits(job, flags, train_job, signals, world)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(("job", "flags"), RANKS)
def test_asked_to_stop_ranks_save_and_resume_with_the_same_bits(
    job: str, flags: list[str], train_job: TrainJob, signals: Callable[..., None], world: World
) -> None:
    assert_same_bits(job, flags, train_job, signals, world)


def assert_same_bits(
    job: str, flags: list[str], train_job: TrainJob, signals: Callable[..., None], world: World
) -> None:
    """Stop a run twice, resume it, and compare it with a run that was not stopped."""
    flags = [*STEPS, "--epochs", "4", *flags]
    expected = train_job(job, *flags, "--checkpoint-every", "0", out="whole")
    board = train_job.folder / "board"
    flags = [*flags, "--tensorboard", str(board)]
    # A round of federated averaging is not cut in two, nor are the 32 steps of one execution.
    first, second = {"federated": (1, 1), "tuned": (3, 2)}.get(expected.strategy, (9, 10))
    for number, nth in ((signal.SIGTERM, first), (signal.SIGUSR2, second)):
        with refused(75, f"stopped by {number.name} in epoch"):
            signals(world, number, nth)
            train_job(job, *flags)
        assert not train_job.path("run.json").exists()
    record = train_job(job, *flags)
    assert record.weights_sha256 == expected.weights_sha256
    assert [event["kind"] for event in record.history] == ["resumed", "resumed"]
    assert [epoch.epoch for epoch in record.epochs] == [epoch.epoch for epoch in expected.epochs]
    for mine, theirs in zip(record.epochs, expected.epochs, strict=True):
        assert mine.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert mine.train_accuracy == pytest.approx(theirs.train_accuracy, abs=1e-6)
        assert mine.test_accuracy == theirs.test_accuracy
    assert record.run_id != expected.run_id
    if world.is_root:
        assert_logged(train_job.path(""), board)


@pytest.mark.parametrize(
    ("job", "ranks", "flags"),
    [
        pytest.param("mpi", 2, [], id="mpi.py", marks=slow),
        pytest.param("multiworker", 2, ["--epochs", "12"], id="multiworker.py", marks=slow),
        pytest.param("ddp", 2, ["--epochs", "12"], id="ddp.py", marks=pytest.mark.peers),
    ],
)
def test_a_signal_stops_a_program_and_the_same_command_resumes_it(
    job: str, ranks: int, flags: list[str], start: Start, whole_run: Callable[..., RunRecord], tmp_path: Path
) -> None:
    expected = whole_run(job, ranks, *flags)
    rng = random.Random(len(flags) + ranks)
    flags = [*flags, "--tensorboard", str(tmp_path / "board")]
    stopped = start(job, *flags, ranks=ranks)
    stopped.wait_for_training(rng)
    os.kill(stopped.pid(ranks - 1), signal.SIGTERM)
    assert stopped.ended(within_s=30) == 75, stopped.printed
    assert "stopped by SIGTERM in epoch" in stopped.printed
    assert stopped.printed.count("error: ") == 1
    assert not (stopped.out / "run.json").exists()
    resumed = start(job, *flags, ranks=ranks)
    assert resumed.ended(within_s=120) == 0, resumed.printed
    assert "resumed: " in resumed.printed
    record = resumed.record()
    assert record.weights_sha256 == expected.weights_sha256
    assert [event["kind"] for event in record.history] == ["resumed"]
    assert record.run_id == resumed.run_id == stopped.run_id != expected.run_id
    assert record.started[:10].replace("-", "") == record.run_id[:8]
    assert_logged(resumed.out, tmp_path / "board")


def assert_logged(out: Path, board: Path) -> None:
    """Check that the table of epochs and TensorBoard's log agree with the record."""
    record = read_run(out / "run.json")
    with open(out / "epochs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, epoch in zip(rows, record.epochs, strict=True):
        assert row["run_id"] == record.run_id
        for name in ("epoch", "train_s", "images_per_s", "sync_s", "train_loss", "test_accuracy"):
            assert float(row[name]) == getattr(epoch, name)
    assert float(rows[-1]["total_train_s"]) == record.train_s
    assert [path.name for path in board.iterdir()] == [record.run_id]
    logged: dict[int, dict[str, float]] = {}
    for path in sorted((board / record.run_id).iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            figures = {v.tag: v.simple_value for v in event.summary.value if v.HasField("simple_value")}
            logged.update({event.step: figures} if figures else {})
    assert logged == {epoch.epoch: pytest.approx(scalars(epoch)) for epoch in record.epochs}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(1, 2, marks=pytest.mark.mpi(min_size=2)),
        pytest.param(2, 1, marks=pytest.mark.mpi(min_size=2)),
        pytest.param(3, 4, marks=pytest.mark.mpi(min_size=4)),
        pytest.param(4, 2, marks=pytest.mark.mpi(min_size=4)),
    ],
)
def test_on_another_number_of_ranks_it_resumes_from_the_same_place(
    before: int,
    after: int,
    train_job: TrainJob,
    signals: Callable[..., None],
    world: World,
    capfd: pytest.CaptureFixture[str],
) -> None:
    flags = [*STEPS, "--epochs", "4"]
    with refused(75, "stopped by SIGTERM in epoch 2"):
        signals(World(world.rank, before), signal.SIGTERM, 10)
        train_job("mpi", *flags, ranks=before)
    # Each epoch is checked as it ends to have visited as many examples as there are.
    record = train_job("mpi", *flags, ranks=after)
    if world.is_root:
        assert f"then on {before} ranks and now on {after}" in capfd.readouterr().out
    assert record.world_size == after
    assert record.history[0]["world_size"] == after
    assert len(record.epochs) == 4
    assert record.epochs[-1].train_loss < record.epochs[0].train_loss


@pytest.mark.slow
def test_programs_resume_on_another_number_of_ranks(start: Start) -> None:
    stopped = start("mpi", "--epochs", "30", ranks=3)
    stopped.wait_for_training(random.Random(3))
    os.kill(stopped.pid(0), signal.SIGTERM)
    assert stopped.ended(within_s=30) == 75, stopped.printed
    resumed = start("mpi", "--epochs", "30", ranks=5)
    assert resumed.ended(within_s=120) == 0, resumed.printed
    assert "then on 3 ranks and now on 5" in resumed.printed
    assert len(resumed.record().epochs) == 30


@pytest.mark.parametrize("sizes", [(4, 2), (2, 4), (3, 5), (4, 1, 7, 2), (1, 64)])
@pytest.mark.parametrize("batch_size", [12, 50, 64])
def test_each_example_of_an_epoch_is_visited_once_whatever_the_ranks(
    sizes: tuple[int, ...], batch_size: int
) -> None:
    num_examples, seed, epoch = 509, 3, 2
    rng = np.random.default_rng([*sizes, batch_size])
    segments: list[Segment] = []
    visited: list[int] = []
    left = num_examples
    for number, size in enumerate(sizes):
        total = -(-left // batch_size)
        num_steps = total if number == len(sizes) - 1 else int(rng.integers(1, max(2, total // 2)))
        in_step = np.zeros(num_steps, int)
        for rank in range(size):
            mine = dealt(num_examples, batch_size, seed, epoch, segments, rank, size)
            order = epoch_order(seed, epoch, rank, len(mine), number)
            steps = plan_steps(left, batch_size, rank=rank, size=size)
            in_step += np.where(steps.scales > 0, steps.sizes[..., 0], 0)[:num_steps, 0]
            visited += mine[order[: steps[:num_steps].num_examples]].tolist()
        left -= int(in_step.sum())
        assert (in_step[:-1] == batch_size).all()
        segments.append(Segment(size, num_steps))
    assert sorted(visited) == list(range(num_examples))


def test_chosen_examples_are_those_of_the_whole_set(tiny: ShardSet) -> None:
    numbers = np.array([0, 3, 127, 128, 300, 508])
    everything, some = tiny.read("train"), tiny.read_some("train", numbers)
    assert (some.images == everything.images[numbers]).all()
    assert (some.labels == everything.labels[numbers]).all()
    assert len(tiny.read_some("train", numbers[:0])) == 1


@pytest.mark.mpi_skip
def test_a_finished_run_starts_anew_and_one_of_other_settings_is_not_resumed(
    train_job: TrainJob, capfd: pytest.CaptureFixture[str]
) -> None:
    first = train_job("mpi", "--epochs", "2")
    again = train_job("mpi", "--epochs", "2")
    assert "resumed" not in capfd.readouterr().out
    assert_put_aside(train_job.path(""), first.run_id, again.run_id)
    train_job.path("run.json").unlink()  # as if it had been interrupted
    with refused(2, "other settings: seed is 1 in the checkpoint, 2 in this run", "--resume never"):
        train_job("mpi", "--epochs", "2", "--seed", "2")
    train_job("mpi", "--epochs", "2", "--seed", "2", "--resume", "never")


def assert_put_aside(out: Path, earlier: str, latest: str) -> None:
    """Check that the record of the previous run is kept, and is not taken for a repeat of the latest."""
    assert earlier != latest
    kept = {path.name for path in (out / "earlier" / earlier).iterdir()}
    assert {"run.json", "events.jsonl", "epochs.csv"} <= kept
    assert [run.record.run_id for run in collect([out]).runs] == [latest]
    assert [run.record.run_id for run in collect([out / "earlier"]).runs] == [earlier]


@pytest.mark.mpi(min_size=2)
def test_more_epochs_after_the_end(train_job: TrainJob, world: World) -> None:
    whole = train_job("mpi", "--epochs", "6", out="whole")
    first = train_job("mpi", "--epochs", "4")
    last = train_job.path("checkpoints/epoch-0005-step-0000000.safetensors")
    more = train_job("mpi", "--epochs", "6", "--resume", last)
    assert more.weights_sha256 == whole.weights_sha256
    assert len(more.epochs) == 6
    # What had come to its end stays what it was: this is another run.
    if world.is_root:
        assert_put_aside(train_job.path(""), first.run_id, more.run_id)


@pytest.mark.mpi_skip
def test_fewer_epochs_than_are_done_and_other_shards_are_refused(train_job: TrainJob, tmp_path: Path) -> None:
    train_job("mpi", "--epochs", "4")
    train_job.path("run.json").unlink()  # as if it had been interrupted
    with refused(2, "is beyond 2 epochs. Got: --epochs 2"):
        train_job("mpi", "--epochs", "2")
    assert not train_job.path("run.json").exists()
    other = tmp_path / "other"
    write_shards(synthetic.draw(seed=1, num_train=509, num_test=131), other, num_shards=3, seed=1)
    with refused(2, "other settings: shards_sha256 is "):
        train_job("mpi", "--epochs", "4", "--data", other)


@pytest.mark.mpi
def test_a_checkpoint_that_is_not_there(train_job: TrainJob, shared_path: Path) -> None:
    with refused(3, "no.safetensors: expected a whole checkpoint. Got: No such file or directory"):
        train_job("mpi", "--resume", shared_path / "no.safetensors")
