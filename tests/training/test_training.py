"""The model in a flat buffer, the optimizers on it, what else ranks have in common."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mpi_train.collectives.averaging import Weights, WeightsAndSlots
from mpi_train.collectives.hierarchical import mean_all_reduce
from mpi_train.collectives.plain import PlainAllReduce
from mpi_train.data import synthetic
from mpi_train.data.shards import ShardSet
from mpi_train.models import optimizers, zoo
from mpi_train.models.flat import FlatModel, digest_of
from mpi_train.runtime.aligned import aligned_empty, as_tensor
from mpi_train.runtime.errors import DivergedError, UsageError
from mpi_train.runtime.watchdog import activity
from mpi_train.runtime.world import World
from mpi_train.training.evaluation import Evaluator
from mpi_train.training.replicas import average_statistics, check_equal, offset_seeds_by_rank, start_equal
from mpi_train.training.steps import epoch_order, plan_steps
from mpi_train.training.trainer import Trainer


def build(name: str = "mlp", seed: int = 3) -> keras.Model:
    return zoo.build(name, (28, 28, 1), 10, seed=seed, dtype="float32")


@pytest.mark.parametrize(("name", "num_weights"), [("cnn", 225_034), ("mlp", 101_770)])
def test_models_have_the_documented_number_of_weights(name: str, num_weights: int) -> None:
    assert build(name).count_params() == num_weights


@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet"])
def test_models_take_their_shape_from_the_data(name: str) -> None:
    raw = synthetic.draw(1, 48, 16, "synthetic_cifar10")
    flat = FlatModel(zoo.build(name, (32, 32, 3), 10, seed=1, dtype="float32"))
    trainer = Trainer(flat, optimizers.build("adam", None), raw.train)
    totals = trainer.train_epoch(epoch_order(1, 1, 0, 48), plan_steps(48, 16), World())
    assert totals.count == 48
    assert 0 < totals.mean_loss < 10


def test_models_depend_on_the_seed_alone() -> None:
    assert digest_of(build(seed=1)) == digest_of(build(seed=1)) != digest_of(build(seed=2))


def a_users_model(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    layers = [keras.Input(input_shape), keras.layers.Flatten(), keras.layers.Dropout(0.5)]
    return keras.Sequential([*layers, keras.layers.Dense(num_classes, activation="softmax")])


def without_output(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    return keras.Sequential([keras.Input(input_shape), keras.layers.Flatten()])


def test_a_users_model_is_imported() -> None:
    model = zoo.build(f"{__name__}:a_users_model", (28, 28, 1), 10, seed=1, dtype="float32")
    assert zoo.returns_probabilities(model)
    assert not zoo.returns_probabilities(build())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cnnn", "Did you mean cnn"),
        ("no.such:thing", "can be imported"),
        (":build", "can be imported"),
        ("os:name", "is not callable"),
        (f"{__name__}:nothing", "can be imported"),
        (f"{__name__}:without_output", "expected a built Keras model with output"),
    ],
)
def test_bad_models_are_usage_errors(name: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        zoo.build(name, (28, 28, 1), 10, seed=1, dtype="float32")
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_the_flat_model_predicts_what_keras_predicts(name: str) -> None:
    model = build(name)
    flat = FlatModel(model)
    images = np.random.default_rng(0).random((4, 28, 28, 1), np.float32)
    assert np.allclose(flat.predict(images), model(images, training=False), atol=1e-6)
    before = digest_of(model)
    assert digest_of(flat.export()) == before


def test_slices_of_the_buffer_are_aligned() -> None:
    flat = FlatModel(build("cnn"))
    assert all(start % 16 == 0 for start in flat.starts)
    arrays = [np.random.default_rng(i).random(s, np.float32) for i, s in enumerate(flat.shapes)]
    buffer = flat.flatten(arrays)
    assert all((a == b).all() for a, b in zip(arrays, flat.unflatten(buffer), strict=True))
    assert (flat.concat([tf.constant(a) for a in arrays]).numpy() == buffer).all()


def train(trainer: Trainer, data: ShardSet, world: World, num_epochs: int = 1) -> float:
    total = data.num_examples("train")
    steps = plan_steps(total, 48, rank=world.rank, size=world.size)
    count = len(data.read("train", world.rank, world.size))
    for epoch in range(1, num_epochs + 1):
        totals = trainer.train_epoch(epoch_order(1, epoch, world.rank, count), steps, world)
    return totals.mean_loss


@pytest.mark.trains
@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_each_optimizer_does_to_the_buffer_what_keras_does_to_layers(name: str, tiny: ShardSet) -> None:
    examples = tiny.read("train")
    flat = FlatModel(build())
    trainer = Trainer(flat, optimizers.build(name, 0.001), examples)
    train(trainer, tiny, World())
    model = build()
    model.compile(optimizers.build(name, 0.001), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    order = epoch_order(1, 1, 0, len(examples))
    for start in range(0, len(order), 48):
        batch = order[start : start + 48]
        model.train_on_batch(
            examples.images[batch][..., None].astype(np.float32) / 255, examples.labels[batch]
        )
    for ours, theirs in zip(flat.unflatten(flat.weights.numpy()), model.trainable_variables, strict=True):
        assert np.abs(ours - theirs.numpy()).max() < 1e-4


@pytest.mark.parametrize("name", ["sdg", "loss_scale_optimizer"])
def test_unknown_optimizers_are_usage_errors(name: str) -> None:
    with pytest.raises(UsageError, match="--optimizer: expected one of"):
        optimizers.build(name, None)


@pytest.mark.mpi
def test_training_brings_the_loss_down_and_keeps_ranks_equal(world: World, tiny: ShardSet) -> None:
    model = build("resnet", seed=world.rank)
    flat = FlatModel(model)
    reduce = mean_all_reduce(world, flat.num_padded) if world.size > 1 else None
    optimizer = optimizers.build("adam", 0.003)
    trainer = Trainer(
        flat,
        optimizer,
        tiny.read("train", world.rank, world.size),
        averaging=Weights(reduce) if reduce else None,
    )
    # Built from different seeds on purpose: the broadcast makes them one model.
    start_equal(world, trainer.variables)
    check_equal(world, [v.numpy() for v in trainer.variables], when="at the start")
    first = train(trainer, tiny, world)
    last = train(trainer, tiny, world, num_epochs=3)
    assert last < 0.8 * first
    if world.size > 1:
        with pytest.raises(DivergedError):
            check_equal(world, [v.numpy() for v in flat.moving_statistics], when="before averaging")
    average_statistics(world, flat, len(trainer.examples))
    check_equal(world, flat.arrays(), when="after the epoch")


@pytest.mark.mpi
def test_local_sgd_meets_at_the_end_of_the_epoch(world: World, tiny: ShardSet) -> None:
    flat = FlatModel(build())
    reduce = PlainAllReduce(world, flat.num_padded)
    trainer = Trainer(
        flat,
        optimizers.build("sgd", 0.05),
        tiny.read("train", world.rank, world.size),
        averaging=Weights(reduce, every=4),
    )
    train(trainer, tiny, world)
    check_equal(world, flat.arrays(), when="after the epoch")


@pytest.mark.mpi
def test_post_local_sgd_averages_each_step_at_first(world: World, tiny: ShardSet) -> None:
    flat = FlatModel(build())
    averaging = Weights(PlainAllReduce(world, flat.num_padded), every=4, local_from=2)
    trainer = Trainer(
        flat,
        optimizers.build("sgd", 0.05),
        tiny.read("train", world.rank, world.size),
        averaging=averaging,
    )
    counts = []
    for epoch in (1, 2):
        averaging.begin_epoch(epoch)
        before = activity.calls
        train(trainer, tiny, world)
        counts.append(activity.calls - before)
    assert counts == [11, 3]  # 509 examples in batches of 48: 11 steps; after the 4th, the 8th and the last
    check_equal(world, flat.arrays(), when="after the epoch")


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["adam", "lamb"])
def test_slots_are_averaged_with_the_weights(name: str, world: World, tiny: ShardSet) -> None:
    flat = FlatModel(build())
    trainer = Trainer(
        flat,
        optimizers.build(name, 0.001),
        tiny.read("train", world.rank, world.size),
        averaging=WeightsAndSlots(lambda length: PlainAllReduce(world, length)),
    )
    first = train(trainer, tiny, world)
    assert train(trainer, tiny, world) < first
    check_equal(world, [v.numpy() for v in trainer.variables], when="after the epoch")


@pytest.mark.parametrize("factor", [4.0, 0.5])
def test_the_learning_rate_changes_over_the_first_steps(factor: float, tiny: ShardSet) -> None:
    flat = FlatModel(build())
    optimizer = optimizers.build("sgd", 0.1)
    optimizers.LearningRate(factor).apply_to(optimizer)
    trainer = Trainer(flat, optimizer, tiny.read("train"), warmup=(1 / factor, 10))
    run = trainer.prepare(epoch_order(1, 1, 0, 509), plan_steps(509, 12))
    rates = []
    for step in range(20):
        run(step, step + 1)
        rates.append(float(optimizer.learning_rate))
    final = 0.1 * factor
    rising = [0.1 + (final - 0.1) * step / 10 for step in range(10)]
    assert rates == pytest.approx([*rising, *[final] * 10])
    assert trainer.update.slow_down() == pytest.approx(final / 2)
    run(20, 21)
    assert float(optimizer.learning_rate) == pytest.approx(final / 2)


@pytest.mark.mpi
def test_statistics_are_averaged_by_examples(world: World) -> None:
    flat = FlatModel(build("resnet"))
    for state in flat.moving_statistics:
        state.assign(tf.fill(state.shape, float(world.rank)))
    weights = np.arange(1, world.size + 1)
    average_statistics(world, flat, int(weights[world.rank]))
    expected = (np.arange(world.size) * weights).sum() / weights.sum()
    assert all(np.allclose(state.numpy(), expected) for state in flat.moving_statistics)


@pytest.mark.mpi
def test_dropout_has_a_seed_of_its_own_on_each_rank(world: World) -> None:
    model = zoo.build(f"{__name__}:a_users_model", (28, 28, 1), 10, seed=1, dtype="float32")
    flat = FlatModel(model)
    offset_seeds_by_rank(world, flat.states)
    (seeds,) = [state.numpy().tolist() for state in flat.states]
    assert len({tuple(s) for s in world.gather_all(seeds)}) == world.size


@pytest.mark.ranks(4)
@pytest.mark.mpi
def test_evaluation_is_that_of_one_process_on_the_whole_test_set(world: World, tiny: ShardSet) -> None:
    model = build()
    evaluator = Evaluator(
        FlatModel(model).predict, tiny.read("test", world.rank, world.size), from_logits=True
    )
    scores = evaluator.evaluate()
    loss, accuracy = scores.means(world)
    everything = tiny.read("test")
    outputs = model(everything.images[..., None].astype(np.float32) / 255)
    expected = keras.losses.sparse_categorical_crossentropy(everything.labels, outputs, from_logits=True)
    assert loss == pytest.approx(float(tf.reduce_mean(expected)), rel=1e-5)
    winners = np.argmax(outputs, 1)
    assert accuracy == pytest.approx(float(np.mean(winners == everything.labels)))
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (everything.labels, winners), 1)
    assert scores.confusion(world, 10) == confusion.tolist()


@pytest.mark.parametrize("offset", [0, 1, 16])
def test_tensors_share_the_memory_of_aligned_arrays_and_of_no_others(offset: int) -> None:
    memory = aligned_empty((4096 + 64,), np.uint8)
    array = memory[offset : offset + 4096].reshape(64, 64)
    array[...] = np.arange(4096, dtype=np.uint8).reshape(64, 64)
    tensor = as_tensor(array)
    assert (tf.gather(tensor, [3, 63]).numpy() == array[[3, 63]]).all()
    before = tensor.numpy().copy()
    array += 1
    assert (tensor.numpy() == (array if offset == 0 else before)).all()
    assert (as_tensor(array[:, ::2]).numpy() == array[:, ::2]).all()


@pytest.mark.slow
@pytest.mark.trains
def test_a_batch_too_small_for_all_devices_does_not_make_batchnorm_nan(tiny: ShardSet) -> None:
    flat = FlatModel(build("resnet"))
    trainer = Trainer(flat, optimizers.build("sgd", 0.01), tiny.read("train"), devices=["/CPU:0", "/CPU:1"])
    # 509 examples in batches of 127: one is left for two devices.
    trainer.train_epoch(epoch_order(1, 1, 0, 509), plan_steps(509, 127, num_parts=2), World())
    assert all(np.isfinite(array).all() for array in flat.arrays())
