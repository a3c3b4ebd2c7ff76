"""Keras's training step on ranks: any loss, any metric, several inputs and outputs, own random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from mpi_train.collectives.averaging import Averaging, Gradients, NoAveraging
from mpi_train.collectives.hierarchical import mean_all_reduce
from mpi_train.data.examples import Examples
from mpi_train.data.shards import balanced_range
from mpi_train.models.compiling import compile_model
from mpi_train.models.flat import FlatModel
from mpi_train.runtime.world import World
from mpi_train.training.evaluation import Evaluator
from mpi_train.training.inputs import first_batch
from mpi_train.training.objective import Objective
from mpi_train.training.replicas import offset_seeds_by_rank
from mpi_train.training.steps import epoch_batches, plan_steps
from mpi_train.training.trainer import Trainer
from tests.conformance.models import FORMS

COUNT, BATCH = 125, 20


def some(arrays: Any, start: int, stop: int) -> Any:
    return tf.nest.map_structure(lambda array: array[start:stop], arrays)


def trained(
    world: World,
    model: keras.Model,
    examples: Examples,
    num_devices: int = 1,
    begin: Callable[[], object] = lambda: None,
) -> tuple[list[np.ndarray], float, dict[str, float], dict[str, float]]:
    """Train one epoch on all ranks: weights, loss, metrics, and metrics of an evaluation."""
    start, stop = balanced_range(COUNT, world.size, world.rank)
    own = Examples(some(examples.images, start, stop), some(examples.labels, start, stop))
    objective = Objective(model, examples)
    flat = FlatModel(model, states=objective.states)
    offset_seeds_by_rank(world, flat.seeds)
    averaging: Averaging = NoAveraging()
    if world.size > 1:
        averaging = Gradients(mean_all_reduce(world, flat.num_padded))
    devices = ["/CPU:0"] * num_devices
    trainer = Trainer(flat, model.optimizer, own, objective, averaging=averaging, devices=devices)
    steps = plan_steps((1, 1), COUNT, BATCH, rank=world.rank, size=world.size, num_parts=num_devices)
    begin()
    totals = trainer.train_epoch(steps, world)
    _, sums = Evaluator(objective, flat.values, own).evaluate().means(world)
    metrics, tested = objective.results(totals.metrics), objective.results(sums)
    return flat.unflatten(flat.weights.numpy()), totals.mean_loss, metrics, tested


def fitted(
    model: keras.Model, examples: Examples
) -> tuple[list[np.ndarray], float, dict[str, float], dict[str, float]]:
    """Train one epoch by Keras fit on the same global batches; the same results."""
    order, _ = epoch_batches((1, 1), COUNT, BATCH)
    x, y = (tf.nest.map_structure(lambda a: a[order], each) for each in (examples.images, examples.labels))
    history = model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0).history
    loss = history.pop("loss")[0]
    tested = model.evaluate(examples.images, examples.labels, COUNT, verbose=0, return_dict=True)
    tested.pop("loss")
    weights = [variable.numpy() for variable in model.trainable_variables]
    return weights, loss, {name: values[0] for name, values in history.items()}, tested


def assert_as_fit(world: World, make: Callable[[], keras.Model], examples: Examples, **options: Any) -> None:
    def fresh() -> keras.Model:
        keras.utils.set_random_seed(3)
        return make()

    ours, theirs = trained(world, fresh(), examples, **options), fitted(fresh(), examples)
    for own, other in zip(ours[0], theirs[0], strict=True):
        np.testing.assert_allclose(own, other, atol=1e-5)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-5)
    for own, other in zip(ours[2:], theirs[2:], strict=True):
        assert own == pytest.approx(other, rel=1e-4, abs=1e-6)


def regression() -> keras.Model:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, activation="tanh"), layers.Dense(1)])
    metrics = ["mae", keras.metrics.RootMeanSquaredError(), keras.metrics.R2Score()]
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", metrics=metrics)
    return model


@pytest.mark.mpi
@pytest.mark.parametrize("num_devices", [1, 3])
def test_a_regression(num_devices: int, world: World) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(COUNT, 6)).astype(np.float32)
    y = (x[:, :1] - 2 * x[:, 1:2] + 0.1 * rng.normal(size=(COUNT, 1))).astype(np.float32)
    assert_as_fit(world, regression, Examples(x, y), num_devices=num_devices)


def two_in_two_out() -> keras.Model:
    words, numbers = keras.Input((5,), dtype="int32", name="words"), keras.Input((3,), name="numbers")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(11, 4)(words))
    x = layers.Dense(8, activation="tanh")(layers.Concatenate()([x, numbers]))
    outputs = {
        "kind": layers.Dense(4, name="kind")(x),
        "chance": layers.Dense(1, "sigmoid", name="chance")(x),
    }
    model = keras.Model({"words": words, "numbers": numbers}, outputs)
    model.compile(
        keras.optimizers.SGD(0.1),
        loss={
            "kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "chance": "binary_crossentropy",
        },
        loss_weights={"kind": 1.0, "chance": 0.5},
        metrics={
            "kind": ["accuracy"],
            "chance": [keras.metrics.AUC(name="auc"), keras.metrics.F1Score(average="macro", threshold=0.5)],
        },
    )
    return model


@pytest.mark.mpi
def test_two_inputs_and_two_outputs_with_metrics_that_are_no_means(world: World) -> None:
    rng = np.random.default_rng(1)
    x = {
        "words": rng.integers(0, 11, (COUNT, 5)).astype(np.int32),
        "numbers": rng.normal(size=(COUNT, 3)).astype(np.float32),
    }
    y = {
        "kind": rng.integers(0, 4, COUNT).astype(np.int32),
        "chance": rng.integers(0, 2, (COUNT, 1)).astype(np.float32),
    }
    assert_as_fit(world, two_in_two_out, Examples(x, y))


def images() -> Examples:
    rng = np.random.default_rng(2)
    return Examples(
        rng.integers(0, 256, (COUNT, 28, 28), np.uint8), rng.integers(0, 10, COUNT).astype(np.uint8)
    )


def objective_of_form(name: str) -> Objective:
    model, examples = FORMS[name].make((28, 28, 1), 10), images()
    compile_model(model, *first_batch(examples), num_classes=10)
    return Objective(model, examples)


@pytest.mark.trains
@pytest.mark.parametrize(
    ("name", "sums"),
    [("l2", set()), ("activity", set()), ("add_loss_mean", set()), ("add_loss_weights", set()),
     ("add_loss_sum", {1}), ("loss_sum", {0})],
)  # fmt: skip
def test_a_loss_is_a_mean_or_a_sum_over_examples(name: str, sums: set[int]) -> None:
    objective = objective_of_form(name)
    assert objective._sums == sums
    assert not objective.couples


@pytest.mark.trains
def test_a_loss_that_couples_examples_is_noticed() -> None:
    def contrast(y: Any, outputs: Any) -> Any:
        return tf.reduce_mean(tf.square(tf.matmul(outputs, outputs, transpose_b=True)))

    model, examples = FORMS["rescaling"].make((28, 28, 1), 10), images()
    model.compile("sgd", contrast)
    assert Objective(model, examples).couples


@pytest.mark.trains
@pytest.mark.parametrize(
    ("name", "from_logits"),
    [("softmax_layer", False), ("softmax_of_tf", False), ("softmax_of_ops", False), ("nested_softmax", False),
     ("average_of_softmax", False), ("sigmoid_outputs", False), ("zero_logits", True), ("l2", True)],
)  # fmt: skip
def test_outputs_are_recognised_as_probabilities_or_logits(name: str, from_logits: bool) -> None:
    assert objective_of_form(name).whole.loss.from_logits is from_logits


@pytest.mark.trains
def test_flags_replace_what_the_model_was_compiled_with_and_say_so() -> None:
    examples = images()
    model = FORMS["smoothed"].make((28, 28, 1), 10)
    notes = compile_model(model, *first_batch(examples), num_classes=10, optimizer="adam", learning_rate=0.01)
    assert type(model.optimizer) is keras.optimizers.Adam
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    assert model.loss.__name__ == "loss"
    assert any("--optimizer adam replaces" in note for note in notes)


@pytest.mark.mpi
def test_each_rank_part_and_step_draws_numbers_of_its_own(world: World) -> None:
    drawn: list[float] = []

    @keras.saving.register_keras_serializable("tests")
    class Telling(layers.Layer):
        def call(self, inputs: Any, training: bool = False) -> Any:
            if not training:
                return inputs
            noise = keras.random.normal(())  # without a seed
            noise = tf.py_function(lambda value: drawn.append(float(value)) or value, [noise], tf.float32)
            return inputs + tf.ensure_shape(noise, ())

    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), Telling(), layers.Dense(10)])
    examples = images()
    compile_model(model, *first_batch(examples), num_classes=10, optimizer="sgd")
    trained(world, model, examples, num_devices=2, begin=drawn.clear)
    everyone = [value for rank in world.gather_all(drawn) for value in rank]
    assert len(everyone) >= 2 * world.size * (COUNT // BATCH)
    assert len(set(everyone)) == len(everyone)
