"""The heart of it: N ranks must train the model that one process trains on the same global batches."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mpi_train import models
from mpi_train.averaging import Gradients, Nothing, Weights
from mpi_train.collectives import MeanAllReduce
from mpi_train.data.examples import Examples
from mpi_train.data.shards import ShardSet, balanced_range
from mpi_train.equality import check_equal
from mpi_train.flat import FlatModel
from mpi_train.order import Steps, epoch_order, plan_steps
from mpi_train.trainer import Trainer
from mpi_train.world import World

NUM_STEPS = 20
TOLERANCE = 1e-5


def momentum() -> keras.Optimizer:
    return keras.optimizers.SGD(0.05, momentum=0.9)


def adam() -> keras.Optimizer:
    return keras.optimizers.Adam(0.001)


def build(name: str = "mlp", dtype: str = "float32") -> keras.Model:
    return models.build(name, (28, 28, 1), 10, seed=3, dtype=dtype)


def averaging(kind: str, world: World, flat: FlatModel) -> Nothing:
    if world.size == 1:
        return Nothing()
    all_reduce = MeanAllReduce(world, flat.num_padded)
    return Weights(all_reduce) if kind == "weights" else Gradients(all_reduce)


def train_on_ranks(
    world: World,
    data: ShardSet,
    optimizer: keras.Optimizer,
    *,
    average: str,
    batch_size: int,
    model: str = "mlp",
    dtype: str = "float32",
) -> list[np.ndarray]:
    """Trains the first 20 steps of an epoch on all ranks; the weights in layer order."""
    examples = data.read("train", world.rank, world.size)
    flat = FlatModel(build(model, dtype))
    trainer = Trainer(flat, optimizer, examples, averaging=averaging(average, world, flat))
    steps = plan_steps(data.num_examples("train"), batch_size, rank=world.rank, size=world.size)
    first = Steps(steps.bounds[: NUM_STEPS + 1], steps.scales[:NUM_STEPS])
    trainer.train_epoch(epoch_order(1, 1, world.rank, len(examples)), first, world)
    check_equal(world, flat.arrays(), when="after 20 steps")
    return flat.unflatten(flat.weights.numpy())


def global_batches(data: ShardSet, size: int, batch_size: int) -> list[Examples]:
    """The examples of each of the first 20 steps, over all ranks together."""
    everything = data.read("train")
    total = len(everything)
    batches = []
    for step in range(NUM_STEPS):
        indices: list[int] = []
        for rank in range(size):
            start, stop = balanced_range(total, size, rank)
            bounds = plan_steps(total, batch_size, rank=rank, size=size).bounds
            order = epoch_order(1, 1, rank, stop - start)
            indices += (start + order[bounds[step] : bounds[step + 1]]).tolist()
        batches.append(Examples(everything.images[indices], everything.labels[indices]))
    return batches


def train_with_keras(
    batches: list[Examples], optimizer: keras.Optimizer, model_name: str = "mlp"
) -> list[np.ndarray]:
    """Feeds the batches to Keras's own training step; the weights in layer order."""
    model = build(model_name)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for batch in batches:
        model.train_on_batch(batch.images[..., None].astype(np.float32) / 255, batch.labels)
    return [variable.numpy() for variable in model.trainable_variables]


def largest_difference(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


# 24 divides by 2, 3 and 4 ranks; 25 leaves the ranks unequal batches in every step.
@pytest.mark.mpi
@pytest.mark.parametrize("batch_size", [24, 25])
@pytest.mark.parametrize("average", ["weights", "gradients"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_ranks_with_momentum_equal_one_keras_process(
    world: World, tiny: ShardSet, average: str, batch_size: int, model: str
) -> None:
    ours = train_on_ranks(world, tiny, momentum(), average=average, batch_size=batch_size, model=model)
    theirs = train_with_keras(global_batches(tiny, world.size, batch_size), momentum(), model)
    assert largest_difference(ours, theirs) < TOLERANCE
    moved = largest_difference(ours, [v.numpy() for v in build(model).trainable_variables])
    assert moved > 100 * TOLERANCE


@pytest.mark.mpi
def test_averaged_gradients_with_adam_equal_one_keras_process(world: World, tiny: ShardSet) -> None:
    ours = train_on_ranks(world, tiny, adam(), average="gradients", batch_size=24)
    theirs = train_with_keras(global_batches(tiny, world.size, 24), adam())
    # Adam divides by the root of tiny second moments, which magnifies the last bits of a gradient.
    assert largest_difference(ours, theirs) < 10 * TOLERANCE


@pytest.mark.mpi(min_size=2)
def test_averaged_weights_with_adam_are_something_else(world: World, tiny: ShardSet) -> None:
    # Each rank divides by the root mean square of its own gradients: no longer linear in them.
    ours = train_on_ranks(world, tiny, adam(), average="weights", batch_size=24)
    theirs = train_with_keras(global_batches(tiny, world.size, 24), adam())
    assert largest_difference(ours, theirs) > 100 * TOLERANCE


@pytest.mark.mpi
def test_bfloat16_ranks_stay_equal_and_near_float32(world: World, tiny: ShardSet) -> None:
    half = train_on_ranks(world, tiny, momentum(), average="weights", batch_size=24, dtype="bfloat16")
    full = train_on_ranks(world, tiny, momentum(), average="weights", batch_size=24)
    assert all(array.dtype == np.float32 for array in half)
    assert 0 < largest_difference(half, full) < 0.05


def test_devices_of_one_process_equal_one_keras_process(tiny: ShardSet) -> None:
    flat = FlatModel(build())
    trainer = Trainer(flat, momentum(), tiny.read("train"), devices=["/CPU:0", "/CPU:1"])
    steps = plan_steps(tiny.num_examples("train"), 25)
    first = Steps(steps.bounds[: NUM_STEPS + 1], steps.scales[:NUM_STEPS])
    trainer.train_epoch(epoch_order(1, 1, 0, tiny.num_examples("train")), first, World())
    theirs = train_with_keras(global_batches(tiny, 1, 25), momentum())
    assert largest_difference(flat.unflatten(flat.weights.numpy()), theirs) < TOLERANCE
