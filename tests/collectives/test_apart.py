"""Ranks that train apart for a while: gossip and DiLoCo."""

import numpy as np
import pytest

from mpi_train.collectives.averaging import Averaging, NoAveraging, Weights
from mpi_train.collectives.diloco import DiLoCo
from mpi_train.collectives.gossip import Gossip, Neighbours
from mpi_train.collectives.hierarchical import mean_all_reduce
from mpi_train.collectives.registry import DiLoCoOptions
from mpi_train.models.flat import FlatModel
from mpi_train.runtime.world import World
from mpi_train.training.replicas import check_equal


@pytest.mark.ranks(4)
@pytest.mark.mpi(min_size=2)
def test_rumours_reach_everybody_and_keep_the_mean(world: World) -> None:
    meet = Neighbours(world, 16)
    vector = np.full(16, float(world.rank), np.float32)
    mean = (world.size - 1) / 2
    for _ in range(60):
        vector = np.array(meet.mean(vector))
        assert world.sum(vector)[0] / world.size == pytest.approx(mean, rel=1e-5)
    assert vector == pytest.approx(np.full(16, mean), rel=1e-4)
    assert meet.log.bytes_per_call == 64


@pytest.mark.ranks(4)
@pytest.mark.mpi(min_size=2)
def test_a_round_of_rumours_is_the_exact_mean_of_a_power_of_two_of_ranks(world: World) -> None:
    if world.size & (world.size - 1):
        return  # the test before this one is for any number
    meet = Neighbours(world, 16)
    vector = np.full(16, float(world.rank), np.float32)
    for _ in range(world.size.bit_length() - 1):
        vector = np.array(meet.mean(vector))
    assert (vector == (world.size - 1) / 2).all()


@pytest.mark.ranks(4)
@pytest.mark.mpi(min_size=2)
def test_gossip_trains_and_is_one_model_at_the_end_of_an_epoch(world: World, small, context) -> None:
    trainer = small.trainer(lambda flat: Gossip(context(flat)), optimizer="adam")
    first = small.train(trainer).mean_loss
    check_equal(world, trainer.flat.arrays(), when="after the epoch")
    traffic = trainer.averaging.take_traffic(world)
    assert traffic.sent_bytes == 0  # the epoch's was taken by its meter
    assert small.train(trainer, range(2, 6)).mean_loss < 0.7 * first
    check_equal(world, trainer.flat.arrays(), when="after five epochs")


@pytest.mark.mpi(min_size=2)
def test_diloco_without_momentum_is_local_sgd(world: World, small, context) -> None:
    def diloco(flat: FlatModel) -> Averaging:
        options = DiLoCoOptions(outer_rate=1.0, outer_momentum=0.0)
        return DiLoCo(context(flat, collective="diloco", every=4, options=options))

    def local_sgd(flat: FlatModel) -> Averaging:
        return Weights(mean_all_reduce(world, flat.num_padded), every=4)

    ways = [small.trainer(averaging) for averaging in (diloco, local_sgd)]
    for trainer in ways:
        small.train(trainer, range(1, 3))
    ours, expected = (trainer.flat.weights.numpy() for trainer in ways)
    assert np.abs(ours - expected).max() < 1e-5


@pytest.mark.mpi(min_size=2)
def test_dilocos_outer_step_is_nesterovs(world: World, small, context) -> None:
    rate, momentum, every = 0.7, 0.9, 4

    options = DiLoCoOptions(outer_rate=rate, outer_momentum=momentum)
    trainer = small.trainer(
        lambda flat: DiLoCo(context(flat, collective="diloco", every=every, options=options))
    )
    alone = small.trainer(lambda flat: NoAveraging())
    trainer.averaging.begin_epoch(1)
    ours, locally = (each.prepare(small.order(each), small.steps) for each in (trainer, alone))
    origin, velocity = alone.flat.weights.numpy().copy(), 0.0
    for first in range(0, 8, every):
        ours(first, first + every)
        locally(first, first + every)
        gradient = origin - world.sum(alone.flat.weights.numpy()) / world.size
        # Sutskever et al. 2013, in the form in which Keras's and PyTorch's SGD have it.
        velocity = momentum * velocity + gradient
        origin = origin - rate * (gradient + momentum * velocity)
        alone.flat.weights.assign(origin)
        assert np.abs(trainer.flat.weights.numpy() - origin).max() < 1e-5


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("kind", ["gossip", "diloco"])
def test_what_lasts_between_steps_is_all_there_is_to_go_on_with(kind: str, small, context) -> None:
    def averaging(flat: FlatModel) -> Averaging:
        return (
            Gossip(context(flat)) if kind == "gossip" else DiLoCo(context(flat, collective="diloco", every=4))
        )

    one, other = (small.trainer(averaging, optimizer="adam") for _ in range(2))
    for trainer in (one, other):
        trainer.averaging.begin_epoch(1)
    going_on, anew = (trainer.prepare(small.order(trainer), small.steps) for trainer in (one, other))
    going_on(0, 5)
    for mine, theirs in zip(other.variables, one.variables, strict=True):
        mine.assign(np.array(theirs.numpy()))
    held = one.averaging.variables
    assert held
    for name, mine in other.averaging.variables.items():
        mine.assign(np.array(held[name].numpy()))
    going_on(5, len(small.steps))
    anew(5, len(small.steps))
    assert (one.flat.weights.numpy() == other.flat.weights.numpy()).all()
