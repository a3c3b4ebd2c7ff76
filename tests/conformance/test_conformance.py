"""Every strategy trains every form of model as Keras ``fit`` does on the same global batches.

A cell of the table model x strategy is compared with ``fit`` after an epoch of 21 steps, of which the last is
partial: weights, loss and metrics. ``make conformance`` runs all cells and writes docs/conformance.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from mpi_train.data.shards import ShardSet
from mpi_train.runs.run import Run
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.world import World
from mpi_train.training.inputs import as_input
from mpi_train.training.steps import epoch_batches
from tests.conformance.models import FORMS, Form
from tests.in_process import TrainJob

BATCH, SEED = 25, 1
FLAGS = ("--batch-size", BATCH, "--epochs", 1, "--seed", SEED)
STRATEGIES: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "mirrored": ("--devices", "1"),
    "custom": ("--devices", "3"),
    "custom_dataset": ("--devices", "3"),
    "tpu": (),
    "mpi": ("--average", "gradients"),
    "multiworker": (),
    "pipeline": ("--stages", "2", "--micro-batches", "2"),
}
ON_RANKS = ("mpi", "multiworker", "pipeline")
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-3, "float16": 2e-3}
STATISTICAL = 0.25
"""Bound of the relative difference of the losses where random layers or local BatchNorm play a part."""

# One of each kind; make conformance takes all.
KINDS = (
    "l2", "activity", "add_loss_sum", "loss_sum", "max_norm", "softmax_of_ops", "zero_logits", "subclass",
    "own_compute_loss", "own_train_step", "unseeded", "flags_and_counters", "spectral_norm", "lstm",
    "smoothed", "schedule", "clipnorm", "weight_decay", "float16",
)  # fmt: skip
IN_SHORT = {
    "custom": KINDS,
    "mpi": KINDS,
    "custom_dataset": ("l2", "max_norm", "subclass", "unseeded", "flags_and_counters", "clipnorm", "float16"),
    "pipeline": ("l2", "add_loss_sum", "max_norm", "subclass", "spectral_norm"),
    "baseline": ("own_train_step",),
    "mirrored": ("unseeded",),
}


@dataclass(frozen=True)
class Trained:
    """Result of a training."""

    weights: list[np.ndarray]
    loss: float
    metrics: dict[str, float]
    test_loss: float


def flags_of(name: str, form: Form) -> list[Any]:
    """Return the flags that train a form; one that is compiled brings its own optimizer."""
    own = form.text.startswith("compiled") or name == "loss_sum"
    chosen = [] if own else ["--optimizer", "sgd", "--learning-rate", "0.05"]
    return [*FLAGS, "--model", f"tests.conformance.models:{name}", "--dtype", form.dtype, *chosen]


def weights_of(model: keras.Model) -> list[np.ndarray]:
    """Return the trainable weights."""
    return [np.array(variable.numpy()) for variable in model.trainable_variables]


def reference(name: str, form: Form, data: ShardSet) -> Trained:
    """Train by plain Keras: the model's function, ``compile``, ``fit`` on the batches of the first epoch."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(SEED)
    keras.config.set_dtype_policy("float32" if form.dtype == "float32" else f"mixed_{form.dtype}")
    offered = {"input_shape": (28, 28, 1), "num_classes": 10}
    names = form.make.__code__.co_varnames[: form.make.__code__.co_argcount]
    model = form.make(**{key: value for key, value in offered.items() if key in names})
    if not model.compiled:
        ends_in_probabilities = "softmax" in name or "sigmoid" in name
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not ends_in_probabilities)
        model.compile(keras.optimizers.SGD(0.05), loss, metrics=["accuracy"])
    train, test = data.read("train"), data.read("test")
    order, _ = epoch_batches((SEED, 1), len(train), BATCH)
    images, labels = as_input(tf.constant(train.images[order])).numpy(), train.labels[order].astype(np.int32)
    trained = model.fit(images, labels, batch_size=BATCH, shuffle=False, verbose=0).history
    # The moving average of the weights takes their place at the end of fit, after its last evaluation.
    images, labels = as_input(tf.constant(test.images)).numpy(), test.labels.astype(np.int32)
    tested = model.evaluate(images, labels, 128, verbose=0, return_dict=True)
    keras.config.set_dtype_policy("float32")
    metrics = {key: values[0] for key, values in trained.items() if key != "loss"}
    return Trained(weights_of(model), trained["loss"][0], metrics, tested["loss"])


@pytest.fixture
def trained_models(monkeypatch: pytest.MonkeyPatch) -> list[list[np.ndarray]]:
    """Collect the weights of the models that runs would save."""
    found: list[list[np.ndarray]] = []
    monkeypatch.setattr(Run, "save_model", lambda _, model: found.append(weights_of(model)))
    return found


def cells() -> Iterator[Any]:
    """Yield the cells of the table."""
    for name in FORMS:
        for strategy in STRATEGIES:
            marks = [pytest.mark.trains]
            marks += [pytest.mark.mpi(min_size=2)] if strategy in ON_RANKS else [pytest.mark.mpi_skip]
            if name not in IN_SHORT.get(strategy, ()):
                marks += [pytest.mark.slow, pytest.mark.long]
            yield pytest.param(name, strategy, id=f"{name}-{strategy}", marks=marks)


@pytest.mark.parametrize(("name", "strategy"), list(cells()))
def test_trains_as_fit(
    name: str,
    strategy: str,
    train_job: TrainJob,
    tiny: ShardSet,
    world: World,
    trained_models: list[list[np.ndarray]],
    record_cell: Any,
) -> None:
    form = FORMS[name]
    flags = [*flags_of(name, form), *STRATEGIES[strategy]]
    refusal = None
    if form.own_step and strategy not in ("baseline", "mirrored"):
        refusal = "train_step of its own"
    elif strategy == "pipeline" and form.uncut:
        refusal = form.uncut
    if refusal is not None:
        with pytest.raises(UsageError, match=refusal) as caught:
            train_job(strategy, *flags)
        record_cell(name, strategy, "refused", str(caught.value))
        return
    record = train_job(strategy, *flags)
    if not world.is_root:
        return
    expected = reference(name, form, tiny)
    loss, metrics = record.epochs[0].train_loss, record.epochs[0].train_metrics
    assert metrics.keys() == expected.metrics.keys()
    if form.chance or (form.batchnorm and strategy != "baseline"):
        apart = abs(loss / expected.loss - 1)
        assert apart < STATISTICAL
        record_cell(name, strategy, "statistical", f"{apart:.1%}")
        return
    (weights,) = trained_models
    tolerance = TOLERANCE[form.dtype]
    apart = max(float(np.abs(a - b).max()) for a, b in zip(weights, expected.weights, strict=True))
    assert apart <= tolerance
    assert loss == pytest.approx(expected.loss, rel=tolerance)
    assert metrics == pytest.approx(expected.metrics, rel=max(tolerance, 1e-5), abs=tolerance)
    # The test loss of a sum depends on the batches of the evaluation, which each rank has of its own.
    is_sum = name in ("add_loss_sum", "loss_sum") and world.size > 1
    if name != "ema" and not is_sum:
        assert record.epochs[0].test_loss == pytest.approx(expected.test_loss, rel=tolerance)
    record_cell(name, strategy, "exact", f"{apart:.1e}")
