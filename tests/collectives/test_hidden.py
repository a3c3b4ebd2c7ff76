"""Exchanges beside the computing: delayed averaging, and gradients in buckets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest
import tensorflow as tf
from mpi4py import MPI

from mpi_train.collectives.averaging import Gradients, NoAveraging
from mpi_train.collectives.background import Background
from mpi_train.collectives.base import all_reduce_bytes
from mpi_train.collectives.buckets import BUCKET_BYTES, Buckets, grouped
from mpi_train.collectives.delayed import Delayed
from mpi_train.collectives.exchange_log import Traffic
from mpi_train.collectives.plain import PlainAllReduce
from mpi_train.monitor import timeline
from mpi_train.monitor.spans import TRAINING
from mpi_train.runtime.world import World
from mpi_train.training.replicas import check_equal


@pytest.mark.mpi(min_size=2)
def test_delayed_averaging_corrects_by_what_the_mean_missed(world: World, small, context) -> None:
    ours = small.trainer(lambda flat: Delayed(context(flat)))
    alone = small.trainer(lambda flat: NoAveraging())
    steps = small.steps
    order = small.order(ours)
    run, local_step = (each.prepare(order, steps) for each in (ours, alone))
    mean = handed = np.zeros(ours.flat.num_padded, np.float32)
    for step in range(len(steps)):
        run(step, step + 1)
        local_step(step, step + 1)
        weights = alone.flat.weights.numpy() + (mean - handed)
        if step + 1 < len(steps):
            handed, mean = weights, world.sum(weights) / world.size
        else:
            weights = world.sum(weights) / world.size
        alone.flat.weights.assign(weights)
        assert np.abs(ours.flat.weights.numpy() - weights).max() < 1e-5
    check_equal(world, ours.flat.arrays(), when="after the epoch")


@pytest.mark.mpi(min_size=2)
def test_delayed_averaging_trains_and_leaves_nothing_under_way(world: World, small, context) -> None:
    trainer = small.trainer(lambda flat: Delayed(context(flat)), optimizer="adam")
    first = small.train(trainer)
    check_equal(world, trainer.flat.arrays(), when="after the epoch")
    assert not any(held.numpy().any() for held in trainer.averaging.variables.values())
    each = all_reduce_bytes(4 * trainer.flat.num_padded, world.size)
    for times in first.by_rank:
        assert times.sent_bytes == 11 * each  # ten beside the computing, and that of the last step
        assert times.hidden_s >= 0
        assert min(times.parts_s) >= 0
    assert small.train(trainer, range(2, 6)).mean_loss < 0.7 * first.mean_loss
    check_equal(world, trainer.flat.arrays(), when="after five epochs")


@pytest.mark.mpi(min_size=2)
def test_delayed_averaging_goes_on_from_mid_epoch_to_the_same_bits(world: World, small, context) -> None:
    one, other = (small.trainer(lambda flat: Delayed(context(flat)), optimizer="adam") for _ in range(2))
    steps = small.steps
    order = small.order(one)
    going_on, anew = (trainer.prepare(order, steps) for trainer in (one, other))
    going_on(0, 5)
    one.averaging.finish()
    assert all(held.numpy().any() for held in one.averaging.variables.values())
    for mine, theirs in zip(other.variables, one.variables, strict=True):
        mine.assign(np.array(theirs.numpy()))
    for name, held in other.averaging.variables.items():
        held.assign(np.array(one.averaging.variables[name].numpy()))
    going_on(5, len(steps))
    anew(5, len(steps))
    assert (one.flat.weights.numpy() == other.flat.weights.numpy()).all()


@pytest.mark.mpi(min_size=2)
def test_an_error_on_the_thread_ends_the_step(
    world: World, small, context, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[BaseException] = []

    def hook(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
        said.append(error)  # under MPI it would end all ranks here

    monkeypatch.setattr(sys, "excepthook", hook)
    trainer = small.trainer(lambda flat: Delayed(context(flat)))
    run = trainer.prepare(small.order(trainer), small.steps)
    trainer.averaging._background._comm.Free()
    with pytest.raises(tf.errors.OpError):
        run(0, 3)
    assert isinstance(said[0], MPI.Exception)


@pytest.mark.mpi(min_size=2)
def test_what_a_step_did_not_stand_still_for_is_hidden(world: World) -> None:
    vector = np.full(8, float(world.rank), np.float32)
    mean = np.empty_like(vector)
    background = Background(world, [(vector, mean)])
    background.wait()
    background.start()
    background.wait()
    assert (mean == (world.size - 1) / 2).all()
    assert background.take_traffic(world).sent_bytes == all_reduce_bytes(32, world.size)
    # Rank 0 came last both times: 0.3 and 0.5 s of moving, of which steps stood still for 0.1 and all.
    background._moved_s[:] = [0.3 + world.rank, 0.5 + world.rank, 9.0]
    background._stood_s[:] = [0.1, 0.7]
    background._durations[:] = [1.0]
    traffic = background.take_traffic(world)
    assert vars(traffic) == pytest.approx(
        vars(
            Traffic(
                moving_s=0.8, waiting_s=0.2, sent_bytes=2 * all_reduce_bytes(32, world.size), hidden_s=0.2
            )
        )
    )
    assert background._moved_s == [9.0]  # that one is still waited for


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(("model", "bucket_bytes"), [("mlp", 1), ("cnn", BUCKET_BYTES)])
def test_buckets_give_the_mean_gradient(model: str, bucket_bytes: int, world: World, small, context) -> None:
    trainers = [
        small.trainer(averaging, model=model)
        for averaging in (
            lambda flat: Buckets(context(flat), bucket_bytes),
            lambda flat: Gradients(PlainAllReduce(world, flat.num_padded)),
        )
    ]
    ours, expected = (small.train(trainer) for trainer in trainers)
    check_equal(world, trainers[0].flat.arrays(), when="after the epoch")
    weights = [trainer.flat.weights.numpy() for trainer in trainers]
    assert np.abs(weights[0] - weights[1]).max() < 1e-5
    assert ours.mean_loss == pytest.approx(expected.mean_loss, rel=1e-4)
    for mine, theirs in zip(ours.by_rank, expected.by_rank, strict=True):
        assert mine.sent_bytes == pytest.approx(theirs.sent_bytes, rel=1e-4)


@pytest.mark.mpi(min_size=2)
def test_the_timeline_shows_the_exchange_beside_the_phases(
    world: World, small, context, tmp_path: Path
) -> None:
    timeline.start(world)
    path = Path(world.gather_all(str(tmp_path))[0]) / "trace.json"
    with timeline.kept(path, lambda line: None):
        trainer = small.trainer(lambda flat: Delayed(context(flat)))
        timeline.begin_epoch(1)
        totals = small.train(trainer)
        timeline.end_epoch()
    world.barrier()
    content = json.loads(path.read_text())
    events = content["traceEvents"]
    assert [event["args"]["name"] for event in events if event["name"] == "thread_name"].count(
        "exchange"
    ) == world.size
    for rank, about in enumerate(content["otherData"]["ranks"]):
        pid, tid = rank + 1, 2 * world.size + rank + 1
        beside = [event for event in events if event["ph"] == "X" and event["tid"] == tid]
        moving = [event for event in beside if event["name"] == "all-reduce"]
        # Of one whose last rank began as it ended, by clocks that are a little apart, there is no span.
        assert 5 <= len(moving) <= 10
        assert {event["pid"] for event in beside} == {pid}
        assert {event["args"]["bytes"] for event in moving} == {
            all_reduce_bytes(4 * trainer.flat.num_padded, world.size)
        }
        seconds = about["beside"]["epoch 1"]
        assert seconds["moving"] == pytest.approx(sum(event["dur"] for event in moving) / 1e6, abs=1e-6)
        assert 0 <= seconds["hidden"] <= seconds["moving"]
        phases = [event for event in events if event["ph"] == "X" and event["tid"] == pid]
        train_s = sum(event["dur"] for event in phases if event["name"] in TRAINING) / 1e6
        assert train_s == pytest.approx(sum(totals.by_rank[rank].parts_s), rel=0.1, abs=0.02)


def test_layers_are_put_together_from_the_last_one_on() -> None:
    assert grouped([10, 20, 30, 40], 50) == [range(2, 4), range(2)]
    assert grouped([10, 20, 30, 40], 1) == [range(3, 4), range(2, 3), range(1, 2), range(1)]
    assert grouped([10, 20], 1000) == [range(2)]
