"""The collectives that send fewer bytes: what is exact, what is late, and that ranks stay equal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from mpi_train.collectives import averaging as policies
from mpi_train.collectives.averaging import Averaging
from mpi_train.collectives.bfloat16 import BFloat16AllReduce
from mpi_train.collectives.config import ExchangeConfig
from mpi_train.collectives.registry import COLLECTIVES, TopKOptions
from mpi_train.collectives.topk import TopK
from mpi_train.data.shards import ShardSet
from mpi_train.models import optimizers, zoo
from mpi_train.models.flat import FlatModel
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.world import World
from mpi_train.training.replicas import check_equal
from mpi_train.training.steps import epoch_order, plan_steps
from mpi_train.training.trainer import Trainer

pytestmark = pytest.mark.mpi(min_size=2)

WAYS = ["bfloat16", "powersgd", "topk"]


def build(name: str = "mlp", device: str = "/CPU:0") -> FlatModel:
    return FlatModel(zoo.build(name, (28, 28, 1), 10, seed=3, dtype="float32"), device)


def averaging(world: World, flat: FlatModel, collective: str, seed: int = 1, **settings: Any) -> Averaging:
    kind = COLLECTIVES[collective].options
    options = kind(**settings) if kind else None
    config = ExchangeConfig(collective=collective, average="gradients", options=options)
    return policies.build(config, world, flat, seed=seed)


def draw(flat: FlatModel, *seed: int) -> np.ndarray:
    """A gradient: the padding is none of it."""
    rng = np.random.default_rng(seed)
    return flat.flatten([rng.standard_normal(shape, np.float32) for shape in flat.shapes])


class Exchange:
    """What gradients become on their way through an averaging, step by step."""

    def __init__(self, kind: Averaging) -> None:
        self._kind = kind
        self._run = tf.function(kind.gradient, autograph=False)

    def __call__(self, gradient: np.ndarray) -> np.ndarray:
        return np.array(self._run(tf.constant(gradient)))

    def unsent(self, world: World, flat: FlatModel) -> np.ndarray:
        """What the ranks keep for later, as a mean over them."""
        kept = {name: held.numpy() for name, held in self._kind.variables.items() if "error" in name}
        if "error" not in kept:
            shapes = [kept.get(f"error/{index}", np.zeros(shape)) for index, shape in enumerate(flat.shapes)]
            kept = {"error": flat.flatten(shapes)}
        return np.mean(world.gather_all(np.array(kept["error"])), axis=0)


@pytest.mark.ranks(4)
@pytest.mark.parametrize("length", [1, 16, 1001, 300_000])
def test_bfloat16_is_the_mean_within_two_roundings(world: World, length: int) -> None:
    reduce = BFloat16AllReduce(world, length)
    for call in range(5):
        vectors = [
            np.random.default_rng([call, rank]).standard_normal(length, np.float32)
            for rank in range(world.size)
        ]
        mean = reduce.mean(vectors[world.rank])
        exact = np.mean(vectors, axis=0, dtype=np.float64)
        # 8 bits of precision: half a unit in the last of them, where a number sets out and of the mean.
        rounding = 2.0**-8 * (np.mean(np.abs(vectors), axis=0) + np.abs(exact))
        assert (np.abs(mean - exact) <= 1.01 * rounding).all()
        check_equal(world, [mean], when=f"call {call}")


def test_bfloat16_is_exact_where_8_bits_are_enough(world: World) -> None:
    vectors = [np.random.default_rng(rank).integers(-8, 8, 1000) for rank in range(world.size)]
    mine = (world.size * vectors[world.rank]).astype(np.float32)
    assert (BFloat16AllReduce(world, 1000).mean(mine) == np.sum(vectors, axis=0)).all()


@pytest.mark.ranks(4)
def test_each_sends_as_little_as_it_says(world: World) -> None:
    flat = build("cnn")
    gradient, sent = draw(flat, world.rank), {}
    for name in ("plain", *WAYS):
        kind = averaging(world, flat, name)
        exchange = Exchange(kind)
        for _ in range(3):
            exchange(gradient)
        traffic = kind.take_traffic(world)
        assert traffic.moving_s + traffic.waiting_s == pytest.approx(kind.exchange_s())
        assert traffic.moving_s > 0
        sent[name] = traffic.sent_bytes / 3
    assert sent["bfloat16"] == pytest.approx(sent["plain"] / 2, abs=1)
    # Two kernels of (288, 64) and (1600, 128) and one of (128, 10), in rank 4; the other numbers as they are.
    numbers = 4 * (288 + 64 + 1600 + 128 + 128 + 10) + 288 + 32 + 64 + 128 + 10
    assert sent["powersgd"] == pytest.approx(2 * 4 * numbers * (world.size - 1) / world.size, abs=2)
    assert sent["topk"] == 8 * round(TopKOptions().topk_fraction * flat.num_padded) * (world.size - 1)


def test_powersgd_is_exact_where_the_rank_is_enough(world: World) -> None:
    flat = build()
    exchange = Exchange(averaging(world, flat, "powersgd", powersgd_rank=4))

    def low_rank(rank: int) -> list[np.ndarray]:
        """One step of one of at most four ranks: kernels of rank 1, and biases."""
        rng = np.random.default_rng([world.size, rank])
        draw = rng.standard_normal
        return [
            np.outer(draw(shape[0]), draw(shape[1])) if len(shape) == 2 else draw(shape)
            for shape in flat.shapes
        ]

    gradients = [flat.flatten(low_rank(min(rank, 3))) for rank in range(world.size)]
    for _ in range(2):
        mean = exchange(gradients[world.rank])
        assert np.allclose(mean, np.mean(gradients, axis=0), atol=1e-4)
        check_equal(world, [mean], when="after a step")


@pytest.mark.ranks(4)
@pytest.mark.parametrize("name", ["powersgd", "topk"])
def test_what_is_not_sent_is_kept(name: str, world: World) -> None:
    flat = build()
    exchange = Exchange(averaging(world, flat, name))
    given = applied = np.zeros(flat.num_padded)
    for step in range(20):
        gradients = [draw(flat, step, rank) for rank in range(world.size)]
        given = given + np.mean(gradients, axis=0)
        applied = applied + exchange(gradients[world.rank])
    unsent = exchange.unsent(world, flat)
    assert np.abs(unsent).max() > 1
    assert np.allclose(applied + unsent, given, atol=1e-4)


@pytest.mark.parametrize(("name", "settings"), [("powersgd", {}), ("topk", {"topk_fraction": 0.05})])
def test_a_gradient_that_stays_the_same_arrives(name: str, settings: dict[str, Any], world: World) -> None:
    flat = build()
    exchange = Exchange(averaging(world, flat, name, **settings))
    gradient = draw(flat, world.rank)

    def unsent_after(num_steps: int) -> float:
        for _ in range(num_steps):
            exchange(gradient)
        return float(np.linalg.norm(exchange.unsent(world, flat)))

    # What is late does not grow any more, so that its part of all that was given goes to 0.
    early = unsent_after(50)
    assert unsent_after(50) < 1.1 * early
    assert early < 50 * np.linalg.norm(np.mean(world.gather_all(gradient), axis=0))


@pytest.mark.ranks(4)
def test_topk_of_all_numbers_is_the_mean(world: World) -> None:
    vectors = [np.random.default_rng(rank).standard_normal(5000, np.float32) for rank in range(world.size)]
    reduce = TopK(world, 5000, 1.0)
    for _ in range(3):
        assert np.allclose(reduce.mean(vectors[world.rank]), np.mean(vectors, axis=0), atol=1e-6)
    assert not reduce.variables["error"].numpy().any()


def test_topk_sends_the_largest_and_no_more_where_many_are_alike(world: World) -> None:
    reduce = TopK(world, 1000, 0.01)
    vector = np.zeros(1000, np.float32)
    vector[500:] = 1
    vector[[3, 997]] = 5, -7
    mean = reduce.mean(vector)
    assert (mean[3], mean[997], np.count_nonzero(mean)) == (5, -7, 10)
    assert np.array_equal(mean + reduce.variables["error"].numpy(), vector)
    assert reduce.mean(np.zeros(1000, np.float32)).sum() == 10


def test_powersgd_finds_its_way_back_from_a_gradient_of_zeros(world: World) -> None:
    flat = build()
    exchange = Exchange(averaging(world, flat, "powersgd"))
    for _ in range(2):
        assert not exchange(np.zeros(flat.num_padded, np.float32)).any()
    gradient = draw(flat, 0)
    means = flat.unflatten(exchange(gradient))
    for mean, whole in zip(means, flat.unflatten(gradient), strict=True):
        assert np.vdot(mean, whole) > 0.01 * np.vdot(whole, whole)


def test_powersgd_computes_where_the_weights_are(world: World) -> None:
    flat = build(device="/CPU:1")
    kind = averaging(world, flat, "powersgd")
    assert {held.device for held in kind.variables.values()} == {flat.weights.value.device}  # type: ignore[attr-defined]
    check_equal(world, [Exchange(kind)(draw(flat, world.rank))], when="after a step")


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
def test_what_is_no_number_reaches_all_ranks(name: str, value: float, world: World) -> None:
    flat = build()
    exchange = Exchange(averaging(world, flat, name))
    gradient = draw(flat, world.rank)
    if world.rank == 1:
        gradient[flat.sizes[0] - 1] = value
    assert not np.isfinite(exchange(gradient)).all()


def test_a_rank_that_saves_nothing_is_refused(world: World) -> None:
    with pytest.raises(UsageError, match=r"--powersgd-rank: expected .* Got: 100"):
        averaging(world, build(), "powersgd", powersgd_rank=100)


class Training:
    """A small model on the ranks' shards, an epoch of 11 steps at a time."""

    def __init__(self, world: World, tiny: ShardSet, name: str, **settings: Any) -> None:
        self._world, self._flat = world, build()
        examples = tiny.read("train", world.rank, world.size)
        self._count = len(examples)
        self.kind = averaging(world, self._flat, name, **settings)
        self.trainer = Trainer(self._flat, optimizers.build("adam", 0.003), examples, averaging=self.kind)
        self._steps = plan_steps(tiny.num_examples("train"), 48, rank=world.rank, size=world.size)

    def epoch(self, number: int, first: int = 0) -> float:
        """Trains from step ``first`` on; the mean loss."""
        totals = self.trainer.train_epoch(self._order(number), self._steps, self._world, first=first)
        check_equal(self._world, self._flat.arrays(), when=f"after epoch {number}")
        return totals.mean_loss

    def some(self, number: int, stop: int) -> None:
        self.trainer.prepare(self._order(number), self._steps)(0, stop)

    def warm_up(self) -> None:
        self.trainer.warm_up(self._order(0), self._steps)

    def _order(self, number: int) -> np.ndarray:
        return epoch_order(1, number, self._world.rank, self._count)

    def held(self) -> Iterator[Any]:
        yield from (*self.trainer.variables, *self.kind.variables.values())

    def arrays(self) -> list[np.ndarray]:
        return [np.array(each.numpy()) for each in self.held()]


@pytest.fixture(scope="module")
def expected(world: World, tiny: ShardSet) -> list[float]:
    """The losses of four epochs with whole gradients."""
    whole = Training(world, tiny, "plain")
    return [whole.epoch(number) for number in range(1, 5)]


@pytest.mark.parametrize(
    ("name", "settings"), [("bfloat16", {}), ("powersgd", {}), ("topk", {"topk_fraction": 0.08})]
)
def test_training_comes_near_to_where_whole_gradients_bring_it(
    name: str, settings: dict[str, Any], expected: list[float], world: World, tiny: ShardSet
) -> None:
    less = Training(world, tiny, name, **settings)
    losses = [less.epoch(number) for number in range(1, 9)]
    assert losses[3] < 1.5 * expected[3]
    assert losses[7] < expected[3]


@pytest.mark.parametrize("name", WAYS)
def test_training_goes_on_in_the_same_bits(name: str, world: World, tiny: ShardSet) -> None:
    one = Training(world, tiny, name)
    one.epoch(1)
    one.some(2, stop=4)
    saved = one.arrays()
    one.epoch(2, first=4)

    other = Training(world, tiny, name, seed=7)
    other.some(1, stop=1)
    for held, value in zip(other.held(), saved, strict=True):
        held.assign(value)
    other.warm_up()
    for before, after in zip(saved, other.arrays(), strict=True):
        assert np.array_equal(before, after)
    other.epoch(2, first=4)
    for expected, found in zip(one.arrays(), other.arrays(), strict=True):
        assert np.array_equal(expected, found)
