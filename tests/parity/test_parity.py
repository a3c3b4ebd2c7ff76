"""The heart of it: N ranks must train the model that one process trains on the same global batches."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
import pytest
from keras import layers

from mpi_train.collectives.averaging import Averaging, Gradients, NoAveraging, Weights, WeightsAndSlots
from mpi_train.collectives.hierarchical import mean_all_reduce
from mpi_train.data.examples import Examples
from mpi_train.data.shards import ShardSet, balanced_range
from mpi_train.models import zoo
from mpi_train.models.flat import FlatModel
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.world import World
from mpi_train.training.replicas import check_equal
from mpi_train.training.steps import epoch_order, plan_steps
from mpi_train.training.sync_batchnorm import synchronised
from mpi_train.training.trainer import Trainer

TOLERANCE = 1e-5

# Ranks and one process round differently, by about 1e-8 a step. Where a ReLU or a max-pool stands on
# its kink, such a difference decides which way a whole gradient goes, and the weights jump apart by
# 1e-4 at once, now and then, with the cnn. So the cnn is followed for as long as that has not
# happened, and a cnn without kinks, and the mlp, for the full distance.
NUM_STEPS = {"mlp": 20, "cnn": 5, f"{__name__}:smooth_cnn": 20}


def smooth_cnn(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """The suite's cnn with tanh for ReLU and average for max."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Conv2D(32, 3, activation="tanh"),
            layers.AveragePooling2D(2),
            layers.Conv2D(64, 3, activation="tanh"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="tanh"),
            layers.Dense(num_classes),
        ]
    )


def momentum() -> keras.Optimizer:
    return keras.optimizers.SGD(0.05, momentum=0.9)


def adam() -> keras.Optimizer:
    return keras.optimizers.Adam(0.001)


def build(name: str = "mlp", dtype: str = "float32") -> keras.Model:
    return zoo.build(name, (28, 28, 1), 10, seed=3, dtype=dtype)


def averaging(kind: str, world: World, flat: FlatModel) -> Averaging:
    if world.size == 1:
        return NoAveraging()
    if kind == "weights+slots":
        return WeightsAndSlots(lambda length: mean_all_reduce(world, length))
    all_reduce = mean_all_reduce(world, flat.num_padded)
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
    """Trains the first steps of an epoch on all ranks; the weights in layer order."""
    examples = data.read("train", world.rank, world.size)
    flat = FlatModel(build(model, dtype))
    trainer = Trainer(flat, optimizer, examples, averaging=averaging(average, world, flat))
    steps = plan_steps(data.num_examples("train"), batch_size, rank=world.rank, size=world.size)
    trainer.train_epoch(epoch_order(1, 1, world.rank, len(examples)), steps[: NUM_STEPS[model]], world)
    check_equal(world, flat.arrays(), when="after training")
    return flat.unflatten(flat.weights.numpy())


def global_batches(data: ShardSet, size: int, batch_size: int, num_steps: int) -> list[Examples]:
    """The examples of each of the first steps, over all ranks together."""
    everything = data.read("train")
    total = len(everything)
    batches = []
    for step in range(num_steps):
        indices: list[int] = []
        for rank in range(size):
            start, stop = balanced_range(total, size, rank)
            steps = plan_steps(total, batch_size, rank=rank, size=size)
            first, count = steps.begins[step].item(), steps.sizes[step].item()
            indices += (start + epoch_order(1, 1, rank, stop - start)[first : first + count]).tolist()
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


SMOOTH = f"{__name__}:smooth_cnn"
CASES = [
    # 4 ranks take three times as long as 2, and show the same: one case does.
    pytest.param(model, average, marks=[pytest.mark.ranks(4)] * ((model, average) == (SMOOTH, "gradients")))
    for model in NUM_STEPS
    for average in ("weights", "gradients", "weights+slots")
]


# 25 leaves 2, 3 and 4 ranks unequal batches in every step.
@pytest.mark.mpi
@pytest.mark.parametrize(("model", "average"), CASES)
def test_ranks_with_momentum_equal_one_keras_process(
    world: World, tiny: ShardSet, model: str, average: str
) -> None:
    ours = train_on_ranks(world, tiny, momentum(), average=average, batch_size=25, model=model)
    theirs = train_with_keras(global_batches(tiny, world.size, 25, NUM_STEPS[model]), momentum(), model)
    assert largest_difference(ours, theirs) < TOLERANCE
    moved = largest_difference(ours, [v.numpy() for v in build(model).trainable_variables])
    assert moved > 100 * TOLERANCE


@pytest.mark.mpi
def test_averaged_gradients_with_adam_equal_one_keras_process(world: World, tiny: ShardSet) -> None:
    ours = train_on_ranks(world, tiny, adam(), average="gradients", batch_size=24)
    theirs = train_with_keras(global_batches(tiny, world.size, 24, 20), adam())
    # Adam divides by the root of tiny second moments, which magnifies the last bits of a gradient.
    assert largest_difference(ours, theirs) < 10 * TOLERANCE


@pytest.mark.mpi(min_size=2)
def test_averaged_weights_with_adam_are_something_else(world: World, tiny: ShardSet) -> None:
    # Each rank divides by the root mean square of its own gradients: no longer linear in them.
    ours = train_on_ranks(world, tiny, adam(), average="weights", batch_size=24)
    theirs = train_with_keras(global_batches(tiny, world.size, 24, 20), adam())
    assert largest_difference(ours, theirs) > 100 * TOLERANCE


def smooth_batchnorm(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Two convolutions with BatchNorm, without kinks."""
    model = keras.Sequential([keras.Input(input_shape)])
    for num_filters in (8, 16):
        model.add(layers.Conv2D(num_filters, 3, strides=2))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.Activation("tanh"))
    model.add(layers.Flatten())
    model.add(layers.Dense(num_classes))
    return model


@pytest.mark.mpi
def test_batchnorm_over_all_ranks_equals_one_keras_process(world: World, tiny: ShardSet) -> None:
    name = f"{__name__}:smooth_batchnorm"
    flat = FlatModel(synchronised(build(name), partial(mean_all_reduce, world) if world.size > 1 else None))
    examples = tiny.read("train", world.rank, world.size)
    trainer = Trainer(flat, momentum(), examples, averaging=averaging("gradients", world, flat))
    # 25 leaves the ranks unequal batches in every step.
    steps = plan_steps(tiny.num_examples("train"), 25, rank=world.rank, size=world.size)
    trainer.train_epoch(epoch_order(1, 1, world.rank, len(examples)), steps[:20], world)
    check_equal(world, flat.arrays(), when="after training")  # the moving statistics, of themselves
    theirs = build(name)
    theirs.compile(momentum(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for batch in global_batches(tiny, world.size, 25, 20):
        theirs.train_on_batch(batch.images[..., None].astype(np.float32) / 255, batch.labels)
    # BatchNorm divides by small spreads: on one rank too, our loop and Keras's round this far apart.
    ours = [weight.numpy() for weight in flat.export().weights]
    assert largest_difference(ours, [weight.numpy() for weight in theirs.weights]) < 10 * TOLERANCE


@pytest.mark.mpi_skip
def test_a_model_without_batchnorm_is_refused() -> None:
    with pytest.raises(UsageError, match="expected a model with BatchNorm"):
        synchronised(build("mlp"), None)


@pytest.mark.mpi
def test_bfloat16_ranks_stay_equal_and_near_float32(world: World, tiny: ShardSet) -> None:
    half = train_on_ranks(world, tiny, momentum(), average="weights", batch_size=24, dtype="bfloat16")
    full = train_on_ranks(world, tiny, momentum(), average="weights", batch_size=24)
    assert all(array.dtype == np.float32 for array in half)
    assert 0 < largest_difference(half, full) < 0.05


# A device that is named again takes its parts one after another: gradient accumulation.
@pytest.mark.parametrize("devices", [["/CPU:0", "/CPU:1"], ["/CPU:0"] * 3], ids=["two", "one_in_turn"])
def test_devices_of_one_process_equal_one_keras_process(devices: list[str], tiny: ShardSet) -> None:
    flat = FlatModel(build())
    trainer = Trainer(flat, momentum(), tiny.read("train"), devices=devices)
    steps = plan_steps(tiny.num_examples("train"), 25, num_parts=len(devices))
    trainer.train_epoch(epoch_order(1, 1, 0, tiny.num_examples("train")), steps[:20], World())
    theirs = train_with_keras(global_batches(tiny, 1, 25, 20), momentum())
    assert largest_difference(flat.unflatten(flat.weights.numpy()), theirs) < TOLERANCE
