"""Compilation of a model: its own loss, metrics and optimizer, those of the command line, or defaults.

A model that its function has compiled keeps what it was compiled with; a flag of the command line replaces
the part that it names. A model that was not compiled gets the cross-entropy that fits its outputs.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mpi_train.models import optimizers
from mpi_train.runtime.errors import UsageError

_ERRORS = (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError, tf.errors.OpError)
"""Errors that Keras and TensorFlow raise where a model, its data or its loss do not fit."""
_PROBE = 64
"""Examples of noise on which the outputs of a model that was not compiled are looked at."""


def compile_model(
    model: keras.Model,
    images: Any,
    labels: Any,
    *,
    num_classes: int,
    optimizer: str | None = None,
    learning_rate: float | None = None,
    loss: str | None = None,
    metrics: Sequence[str] = (),
) -> list[str]:
    """Compile ``model`` for training, in place.

    Args:
        model: A Keras model, compiled or not.
        images, labels: A few inputs and targets, as the model gets them.
        num_classes: Number of classes of the labels, if they are class numbers.
        optimizer, learning_rate, loss, metrics: Choices of the command line; None or empty if not made.

    Returns:
        Sentences about what was chosen that a user might not expect.

    Raises:
        UsageError: the model does not take the images, or its outputs, loss or metrics do not fit.
    """
    arguments: dict[str, Any] = dict(model._compile_config.config) if model.compiled else {}
    outputs = _call(model, images)
    notes = [
        f"{layer.name} multiplies the images by {layer.scale:.2g}: they come scaled to [0, 1] already"
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.Rescaling) and isinstance(layer.scale, float) and layer.scale < 0.01
    ]
    if not model.compiled:
        arguments["loss"], arguments["metrics"] = _fitting(model, images, labels, outputs, num_classes)
        if isinstance(arguments["loss"], str):
            notes.append(f"loss: {arguments['loss']}, as the targets are no class numbers")
    for name, chosen in (("loss", loss), ("metrics", list(metrics))):
        if chosen:
            if model.compiled:
                notes.append(f"--{name} replaces the {name} that {model.name} was compiled with")
            arguments[name] = chosen
    own = arguments.get("optimizer")
    if optimizer is not None or own is None:
        if own is not None:
            notes.append(
                f"--optimizer {optimizer} replaces the optimizer that {model.name} was compiled with"
            )
        arguments["optimizer"] = optimizers.build(optimizer or "adam", learning_rate)
    elif learning_rate is not None:
        own = keras.optimizers.get(own)
        config = {**own.get_config(), "learning_rate": learning_rate}
        arguments["optimizer"] = type(own).from_config(config)
        notes.append(
            f"--learning-rate {learning_rate:g} replaces the one that {model.name} was compiled with"
        )
    try:
        model.compile(**arguments)
        # The loss and the metrics are built on the first targets.
        model.compute_loss(images, labels, outputs, None)
        model.compute_metrics(images, labels, outputs, None)
    except _ERRORS as error:
        raise UsageError(
            f"--model {model.name}: expected a loss and metrics that fit its outputs and the targets. "
            f"Got: {first_line(error)}",
            remedy="another --loss or --metrics, or compile the model in its function",
        ) from error
    model.reset_metrics()
    return notes


def optimizer_name(optimizer: keras.Optimizer) -> str:
    """Return the name of an optimizer, such as ``adam``, whether or not another one scales its loss."""
    return type(getattr(optimizer, "inner_optimizer", optimizer)).__name__.lower()


def main_metric(model: keras.Model) -> tuple[str, bool]:
    """Return the name of the first metric that a built model was compiled with, and True if it should grow.

    Without metrics it is the loss.
    """
    compiled = model._compile_metrics
    if compiled is None or not compiled.metrics:
        return "loss", False
    name = next(iter(compiled.result()))
    direction = getattr(compiled.metrics[0], "_direction", None)
    falls = any(word in name.lower() for word in ("loss", "error", "entropy", "divergence", "mse", "mae"))
    return name, not falls if direction is None else direction == "up"


def has_own_train_step(model: keras.Model) -> bool:
    """Return True if the model's class replaces Keras's training step, which only ``fit`` then runs."""
    return type(model).train_step is not keras.Model.train_step


def architecture_of(model: keras.Model) -> str:
    """Return a digest of a compiled model: layers, options, connections, loss, metrics, optimizer.

    Classes that are not Keras's own count with their source text.
    """
    layers = list(model._flatten_layers())
    parts = [repr([(tuple(v.shape), str(v.dtype), v.trainable) for v in model.variables])]
    parts += [_config_of(part) for part in (*layers, model.optimizer)]
    parts.append(repr([(key, str(value)) for key, value in sorted(model.get_compile_config().items())]))
    with suppress(OSError, TypeError):
        parts += [inspect.getsource(type(layer)) for layer in layers if not _is_keras(layer)]
    text = "\n".join(parts)
    for number, layer in enumerate(layers):  # Keras numbers the names of all layers of a process
        text = re.sub(rf"\b{re.escape(layer.name)}\b", f"layer-{number}", text)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_keras(layer: object) -> bool:
    return type(layer).__module__.partition(".")[0] == "keras"


def _config_of(part: Any) -> str:
    try:
        return json.dumps(part.get_config(), sort_keys=True, default=str)
    except Exception:  # a layer without get_config
        return type(part).__name__


def first_line(error: Exception) -> str:
    """Return the type and the first line of an error's message, cut to 200 characters."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__


def _call(model: keras.Model, images: Any) -> Any:
    try:
        return model(images, training=False) if model._call_has_training_arg else model(images)
    except _ERRORS as error:
        shapes = keras.tree.map_structure(lambda array: tuple(array.shape[1:]), images)
        raise UsageError(
            f"--model {model.name}: expected a model that takes inputs of shape {shapes}. "
            f"Got: {first_line(error)}"
        ) from error


def _fitting(
    model: keras.Model, images: Any, labels: Any, outputs: Any, num_classes: int
) -> tuple[Any, list[str]]:
    """Return the loss and the metrics that fit the outputs of a model and its targets."""
    (first, *others), targets = keras.tree.flatten(outputs), keras.tree.flatten(labels)
    if others or len(targets) > 1:
        raise UsageError(
            f"--model {model.name}: expected a compiled model, as it has {1 + len(others)} outputs. "
            "Got: one that is not compiled",
            remedy="compile it in its function, with a loss for each output",
        )
    if not targets[0].dtype.is_integer:
        return "mean_squared_error", ["mean_absolute_error"]
    if tuple(first.shape[1:]) != (num_classes,):
        raise UsageError(
            f"--model {model.name}: expected output {(None, num_classes)}, one number for each class. "
            f"Got: {(None, *first.shape[1:])}",
            remedy="as many outputs as classes, or compile the model with a loss of your own",
        )
    from_logits = not _are_probabilities(model, images)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits), ["accuracy"]


def _are_probabilities(model: keras.Model, images: Any) -> bool:
    """Return True if the outputs are numbers from 0 to 1, whatever the size of the inputs, and not all 0.

    Logits leave that range for one of so many examples, unless they are all 0 at first.
    """
    rng = np.random.default_rng(0)

    def noise(array: Any, scale: float) -> Any:
        if not array.dtype.is_floating:
            return keras.ops.repeat(array[:1], _PROBE, axis=0)
        return keras.ops.cast(rng.normal(0, scale, (_PROBE, *array.shape[1:])), array.dtype)

    for scale in (1.0, 100.0):
        inputs = keras.tree.map_structure(lambda array, scale=scale: noise(array, scale), images)
        outputs = keras.ops.convert_to_numpy(keras.ops.cast(_call(model, inputs), "float32"))
        if not (outputs >= 0).all() or not (outputs <= 1.001).all() or not outputs.any():
            return False
    return True
