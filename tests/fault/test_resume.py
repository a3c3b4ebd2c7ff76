"""A run that is interrupted, and goes on: the same bits as one that never was."""

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
from mpi_train.runs.loggers.base import scalars
from mpi_train.training.steps import Segment, dealt, epoch_order, plan_steps

Start = Callable[..., Any]

pytestmark = [pytest.mark.mpi_skip, pytest.mark.timeout(300)]

slow = pytest.mark.slow
WAYS = [
    pytest.param("mpi", 2, [], id="weights"),
    pytest.param("mpi", 2, ["--average", "gradients"], id="gradients", marks=slow),
    pytest.param("mpi", 3, ["--every", "5"], id="local_sgd", marks=slow),
    pytest.param(
        "mpi", 2, ["--model", "resnet", "--sync-batchnorm", "--epochs", "8"], id="batchnorm", marks=slow
    ),
    pytest.param("mpi", 2, ["--optimizer", "lamb", "--dtype", "bfloat16"], id="lamb_bfloat16", marks=slow),
    pytest.param(
        "mpi",
        2,
        [
            *("--average", "weights+slots", "--accumulate", "2"),
            *("--lr-scaling", "sqrt", "--warmup-epochs", "25", "--learning-rate", "0.003"),
        ],
        id="slots_accumulate_warmup",
        marks=slow,
    ),
    pytest.param("custom", 1, ["--devices", "2"], id="custom", marks=slow),
    pytest.param("baseline", 1, [], id="baseline"),
    pytest.param("baseline", 1, ["--tuned"], id="tuned", marks=slow),
    pytest.param("mirrored", 1, ["--devices", "2"], id="mirrored", marks=slow),
    pytest.param("multiworker", 2, ["--epochs", "12"], id="multiworker", marks=slow),
    # Cut by hand: where a measured cut is, two runs may differ.
    pytest.param(
        "pipeline",
        2,
        ["--model", "resnet", "--cut", "re_lu_2", "--optimizer", "lamb", "--epochs", "6"],
        id="pipeline",
        marks=slow,
    ),
    pytest.param("federated", 2, ["--server-momentum", "0.5"], id="federated", marks=slow),
    pytest.param("ddp", 2, ["--epochs", "12"], id="ddp", marks=pytest.mark.peers),
]


@pytest.mark.parametrize(("job", "ranks", "flags"), WAYS)
def test_asked_to_stop_a_run_saves_and_goes_on_with_the_same_bits(
    job: str, ranks: int, flags: list[str], start: Start, tmp_path: Path
) -> None:
    whole = start(job, *flags, "--checkpoint-every", "0", ranks=ranks, out="whole")
    assert whole.ended(within_s=120) == 0, whole.printed
    rng = random.Random(len(flags) + ranks)
    flags = [*flags, "--tensorboard", str(tmp_path / "board")]
    for number in (signal.SIGTERM, signal.SIGUSR2):
        stopped = start(job, *flags, ranks=ranks)
        stopped.wait_for_training(rng)
        # One rank alone gets it; all must stop.
        os.kill(stopped.pid(ranks - 1), number)
        assert stopped.ended(within_s=30) == 75, stopped.printed
        assert f"stopped by {number.name} in epoch" in stopped.printed
        assert stopped.printed.count("error: ") == 1
        assert not (stopped.out / "run.json").exists()
        run_id = stopped.run_id
    resumed = start(job, *flags, ranks=ranks)
    assert resumed.ended(within_s=120) == 0, resumed.printed
    assert "resumed: " in resumed.printed
    record, expected = resumed.record(), whole.record()
    assert record.weights_sha256 == expected.weights_sha256
    assert [event["kind"] for event in record.history] == ["resumed", "resumed"]
    assert [epoch.epoch for epoch in record.epochs] == [epoch.epoch for epoch in expected.epochs]
    for mine, theirs in zip(record.epochs, expected.epochs, strict=True):
        assert mine.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert mine.train_accuracy == pytest.approx(theirs.train_accuracy, abs=1e-6)
        assert mine.test_accuracy == theirs.test_accuracy
    assert record.run_id == resumed.run_id == run_id != whole.run_id
    assert record.started[:10].replace("-", "") == run_id[:8]
    assert_told(resumed, tmp_path / "board")


def assert_told(job: Any, board: Path) -> None:
    """The table of epochs and TensorBoard's log, written by several processes, are what the record says."""
    record = job.record()
    with open(job.out / "epochs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, epoch in zip(rows, record.epochs, strict=True):
        assert row["run_id"] == record.run_id
        for name in ("epoch", "train_s", "images_per_s", "sync_s", "train_loss", "test_accuracy"):
            assert float(row[name]) == getattr(epoch, name)
    assert float(rows[-1]["total_train_s"]) == record.train_s
    assert [path.name for path in board.iterdir()] == [record.run_id]
    told: dict[int, dict[str, float]] = {}
    for path in sorted((board / record.run_id).iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            figures = {v.tag: v.simple_value for v in event.summary.value if v.HasField("simple_value")}
            told.update({event.step: figures} if figures else {})
    assert told == {epoch.epoch: pytest.approx(scalars(epoch)) for epoch in record.epochs}


@pytest.mark.parametrize(
    ("before", "after"), [pytest.param(4, 2, marks=slow), pytest.param(2, 4, marks=slow), (3, 5)]
)
def test_on_another_number_of_ranks_it_goes_on_from_the_same_place(
    before: int, after: int, start: Start
) -> None:
    stopped = start("mpi", "--epochs", "30", ranks=before)
    stopped.wait_for_training(random.Random(before))
    os.kill(stopped.pid(0), signal.SIGTERM)
    assert stopped.ended(within_s=30) == 75, stopped.printed
    resumed = start("mpi", "--epochs", "30", ranks=after)
    # Each epoch is checked as it ends to have visited as many examples as there are.
    assert resumed.ended(within_s=120) == 0, resumed.printed
    assert f"then on {before} ranks and now on {after}" in resumed.printed
    record = resumed.record()
    assert record.world_size == after
    assert record.history[0]["world_size"] == after
    assert len(record.epochs) == 30
    assert record.epochs[-1].train_loss < record.epochs[0].train_loss


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


def test_a_finished_run_starts_anew_and_one_of_other_settings_is_not_gone_on_with(start: Start) -> None:
    first = start("mpi", "--epochs", "2")
    assert first.ended(within_s=60) == 0, first.printed
    once = first.record()
    again = start("mpi", "--epochs", "2")
    assert again.ended(within_s=60) == 0, again.printed
    assert "resumed" not in again.printed
    assert_put_aside(first.out, once.run_id, again.record().run_id)
    (first.out / "run.json").unlink()  # as if it had been interrupted
    other = start("mpi", "--epochs", "2", "--seed", "2")
    assert other.ended(within_s=60) == 2
    assert "other settings: seed is 1 in the checkpoint, 2 in this run" in other.printed
    assert "--resume never" in other.printed
    anew = start("mpi", "--epochs", "2", "--seed", "2", "--resume", "never")
    assert anew.ended(within_s=60) == 0, anew.printed


def assert_put_aside(out: Path, earlier: str, latest: str) -> None:
    """The record of the earlier run is kept, and is not taken for a repeat of the latest."""
    assert earlier < latest
    kept = {path.name for path in (out / "earlier" / earlier).iterdir()}
    assert kept == {"run.json", "events.jsonl", "epochs.csv"}
    assert [run.record.run_id for run in collect([out]).runs] == [latest]
    assert [run.record.run_id for run in collect([out / "earlier"]).runs] == [earlier]


def test_more_epochs_after_the_end(start: Start) -> None:
    whole = start("mpi", "--epochs", "6", ranks=2, out="whole")
    assert whole.ended(within_s=60) == 0, whole.printed
    first = start("mpi", "--epochs", "4", ranks=2)
    assert first.ended(within_s=60) == 0, first.printed
    last = first.out / "checkpoints/epoch-0005-step-0000000.safetensors"
    more = start("mpi", "--epochs", "6", "--resume", str(last), ranks=2)
    assert more.ended(within_s=60) == 0, more.printed
    assert more.record().weights_sha256 == whole.record().weights_sha256
    # What had come to its end stays what it was: this is another run.
    assert_put_aside(first.out, first.run_id, more.run_id)
    assert len(more.record().epochs) == 6


def test_fewer_epochs_than_are_done_and_other_shards_are_refused(start: Start, tmp_path: Path) -> None:
    first = start("mpi", "--epochs", "4")
    assert first.ended(within_s=60) == 0, first.printed
    (first.out / "run.json").unlink()  # as if it had been interrupted
    fewer = start("mpi", "--epochs", "2")
    assert fewer.ended(within_s=60) == 2
    assert "is further than 2 epochs. Got: --epochs 2" in fewer.printed
    assert not (first.out / "run.json").exists()
    other = tmp_path / "other"
    write_shards(synthetic.draw(seed=1, num_train=509, num_test=131), other, num_shards=3, seed=1)
    recut = start("mpi", "--epochs", "4", "--data", str(other))
    assert recut.ended(within_s=60) == 2
    assert "other settings: shards_sha256 is " in recut.printed


def test_a_checkpoint_that_is_not_there(start: Start, tmp_path: Path) -> None:
    job = start("mpi", "--resume", str(tmp_path / "no.ckpt"), ranks=2)
    assert job.ended(within_s=60) == 3
    assert "no.ckpt: expected a whole checkpoint. Got: No such file or directory" in job.printed
    assert job.printed.count("error: ") == 1
