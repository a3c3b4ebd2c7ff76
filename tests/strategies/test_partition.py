"""Models cut into stages, and the order in which these take their micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import keras
import numpy as np
import pytest
from keras import layers

from mpi_train.models import zoo
from mpi_train.runtime.errors import UsageError
from mpi_train.strategies.pipeline import partition
from mpi_train.strategies.pipeline.schedule import bubble, in_flight, one_forward_one_backward

pytestmark = pytest.mark.mpi_skip


def blocks_of(name: str = "cnn", dtype: str = "float32") -> tuple[keras.Model, list[partition.Block]]:
    model = zoo.build(name, (28, 28, 1), 10, seed=1, dtype=dtype)
    return model, partition.blocks_of(model)


def shared_layer(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    inputs = keras.Input(input_shape)
    x = layers.Flatten()(inputs)
    twice = layers.Dense(x.shape[1])
    return keras.Model(inputs, layers.Dense(num_classes)(twice(twice(x))))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "num_pieces"), [("cnn", 7), ("mlp", 3), ("resnet", 11)])
def test_stages_in_a_row_are_the_model(name: str, num_pieces: int, dtype: str) -> None:
    model, pieces = blocks_of(name, dtype)
    assert len(pieces) == num_pieces
    starts = partition.balanced(pieces, [1.0] * num_pieces, 2)
    parts = [partition.stage_of(pieces, starts, number) for number in range(2)]
    weights = [weight.numpy() for part in parts for weight in part.weights]
    for ours, theirs in zip(weights, model.weights, strict=True):
        assert (ours == theirs.numpy()).all()
    images = np.random.default_rng(1).random((3, 28, 28, 1), np.float32)
    assert np.allclose(parts[1](parts[0](images)), model(images), rtol=1e-5, atol=1e-5)
    # Of its own: what trains one stage leaves the model, and the other stage, as they are.
    parts[0].trainable_variables[0].assign_add(1.0 + parts[0].trainable_variables[0])
    assert (model.trainable_variables[0].numpy() == weights[0]).all()


def half_used(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    inputs = keras.Input(input_shape)
    first, _ = keras.ops.split(layers.Dense(32)(layers.Flatten()(inputs)), 2, axis=1)
    return keras.Model(inputs, layers.Dense(num_classes)(layers.Dense(8)(first)))


def test_what_nobody_uses_is_no_obstacle() -> None:
    model, pieces = blocks_of(f"{__name__}:half_used")
    assert len(pieces) == 5
    starts = partition.balanced(pieces, [1.0] * 5, 3)
    parts = [partition.stage_of(pieces, starts, number) for number in range(3)]
    images = np.random.default_rng(1).random((3, 28, 28, 1), np.float32)
    assert np.allclose(parts[2](parts[1](parts[0](images))), model(images), rtol=1e-5, atol=1e-5)


def test_a_residual_block_is_not_cut() -> None:
    _, pieces = blocks_of("resnet")
    additions = [piece for piece in pieces if piece.name.startswith("add")]
    assert len(additions) == 3
    assert all(len(piece.model.trainable_variables) >= 6 for piece in additions)


def test_measured_costs_are_those_of_the_layers() -> None:
    model, pieces = blocks_of("cnn")
    before = [weight.numpy() for weight in model.weights]
    costs = partition.costs_of(pieces, 64)
    assert len(costs) == len(pieces)
    by_name = {piece.name.rstrip("_0123456789"): cost for piece, cost in zip(pieces, costs, strict=True)}
    assert by_name["conv2d"] > by_name["flatten"] > 0
    assert all((b == w.numpy()).all() for b, w in zip(before, model.weights, strict=True))


@pytest.mark.parametrize(
    "costs",
    [[1] * 7, [9, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 9], [4, 1, 4, 1, 1, 4, 1], [1, 7, 3, 9, 2, 1, 5]],
)
@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_the_slowest_stage_is_as_fast_as_can_be(costs: list[float], num_stages: int) -> None:
    _, pieces = blocks_of("cnn")
    # A stage of pooling or flattening alone would have nothing to train.
    assert [piece.can_stand_alone for piece in pieces] == [True, False, True, False, False, True, True]

    def slowest(starts: Sequence[int]) -> float:
        return max(sum(costs[start:stop]) for start, stop in pairwise([0, *starts, 7]))

    def trains(starts: Sequence[int]) -> bool:
        return all(
            any(piece.can_stand_alone for piece in pieces[start:stop])
            for start, stop in pairwise([0, *starts, 7])
        )

    found = partition.balanced(pieces, costs, num_stages)
    assert trains(found)
    assert slowest(found) == min(map(slowest, filter(trains, combinations(range(1, 7), num_stages - 1))))


@pytest.mark.parametrize(
    ("num_ranks", "num_stages"), [(1, 1), (2, 2), (3, 3), (4, 4), (6, 3), (5, 1), (8, 4)]
)
def test_as_many_stages_as_ranks_and_model_allow(num_ranks: int, num_stages: int) -> None:
    _, pieces = blocks_of("cnn")
    assert partition.num_stages(pieces, None, num_ranks) == num_stages
    assert partition.num_stages(pieces, 1, num_ranks) == 1
    with pytest.raises(UsageError, match=f"expected a divisor of the number of ranks, {num_ranks}"):
        partition.num_stages(pieces, num_ranks + 1, num_ranks)


def test_what_cannot_be_cut_is_said() -> None:
    _, pieces = blocks_of("cnn")
    names = [piece.name for piece in pieces]
    assert partition.cut_after(pieces, [names[1], names[2]], 3) == [2, 3]
    for cut, text in (
        ([names[2], names[1]], "in this order, for 3 stages"),
        (["nowhere", names[1]], "Got: nowhere,max_pooling2d"),
        ([names[1]], "expected 2 of conv2d"),
        ([names[2], names[3]], "expected layers with weights in each stage"),
    ):
        with pytest.raises(UsageError, match=text):
            partition.cut_after(pieces, cut, 3)
    with pytest.raises(UsageError, match=r"at most 4, the number of blocks with weights\. Got: 5"):
        partition.balanced(pieces, [1.0] * 7, 5)
    model = zoo.build(f"{__name__}:shared_layer", (28, 28, 1), 10, seed=1, dtype="float32")
    with pytest.raises(UsageError, match="expected a model that can be cut"):
        partition.blocks_of(model)


@pytest.mark.parametrize("num_micro_batches", [1, 2, 4, 9])
@pytest.mark.parametrize("num_stages", [1, 2, 3, 5])
def test_stages_that_are_equally_fast_wait_as_long_as_theory_says(
    num_stages: int, num_micro_batches: int
) -> None:
    """Plays the schedule with passes of one unit of time, each as soon as what it needs is there."""
    orders = [one_forward_one_backward(s, num_stages, num_micro_batches) for s in range(num_stages)]
    ends: dict[tuple[int, str, int], int] = {}
    clocks, turns = [0] * num_stages, [0] * num_stages
    while any(turn < len(order) for turn, order in zip(turns, orders, strict=True)):
        moved = False
        for stage, order in enumerate(orders):
            if turns[stage] == len(order):
                continue
            direction, part = order[turns[stage]]
            other = stage - 1 if direction == "forward" else stage + 1
            needs = (other, direction, part)
            if 0 <= other < num_stages and needs not in ends:
                continue
            clocks[stage] = max(clocks[stage], ends.get(needs, 0)) + 1
            ends[stage, direction, part] = clocks[stage]
            turns[stage] += 1
            moved = True
        assert moved, "the stages wait for each other"
    busy = 2 * num_micro_batches
    assert 1 - busy / max(clocks) == pytest.approx(bubble(num_stages, num_micro_batches))


def test_no_more_micro_batches_are_in_flight_than_stages_follow() -> None:
    for stage in range(4):
        held, most = 0, 0
        for direction, _ in one_forward_one_backward(stage, 4, 8):
            held += 1 if direction == "forward" else -1
            most = max(most, held)
        assert (held, most) == (0, in_flight(stage, 4, 8)) == (0, 4 - stage)
