"""Keras models, each made from the shape of the images and the number of classes.

Inputs are float32 images in [0, 1]. Outputs are logits, in float32 for any precision inside.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable

import keras
from keras import layers

from mpi_train.runtime.errors import UsageError

ImageShape = tuple[int, int, int]
"""Height, width, channels."""


def cnn(input_shape: ImageShape, num_classes: int) -> keras.Model:
    """Make two convolutions and a dense layer: 225,034 weights for 28x28x1 images and 10 classes."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(num_classes, dtype="float32"),
        ],
        name="cnn",
    )


def mlp(input_shape: ImageShape, num_classes: int) -> keras.Model:
    """Make a model of one hidden layer: 101,770 weights for 28x28x1 images and 10 classes."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(num_classes, dtype="float32"),
        ],
        name="mlp",
    )


def resnet(input_shape: ImageShape, num_classes: int) -> keras.Model:
    """Make a model of three residual stages with BatchNorm (He et al. 2015, section 4.2, n = 1)."""
    inputs = keras.Input(input_shape)
    x = _conv_bn(inputs, 16, relu=True)
    for num_filters, stride in ((16, 1), (32, 2), (64, 2)):
        shortcut = x if stride == 1 else _conv_bn(x, num_filters, size=1, stride=stride)
        x = _conv_bn(x, num_filters, stride=stride, relu=True)
        x = _conv_bn(x, num_filters)
        x = layers.ReLU()(layers.Add()([x, shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(num_classes, dtype="float32")(x), name="resnet")


def _conv_bn(
    x: keras.KerasTensor, num_filters: int, *, size: int = 3, stride: int = 1, relu: bool = False
) -> keras.KerasTensor:
    # BatchNorm subtracts the mean, so a bias before it would have no effect.
    x = layers.Conv2D(num_filters, size, strides=stride, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU()(x) if relu else x


MODELS: dict[str, Callable[[ImageShape, int], keras.Model]] = {"cnn": cnn, "mlp": mlp, "resnet": resnet}


def build(name: str, input_shape: ImageShape, num_classes: int, *, seed: int, dtype: str) -> keras.Model:
    """Build a model whose initial weights depend on ``seed`` alone.

    Args:
        name: Name in ``MODELS``, or ``package.module:function``. The function is called with
            ``input_shape`` and ``num_classes`` and returns a built Keras model.
        input_shape, num_classes: Shape of an image, and length of the output.
        seed: Seed of the initial weights.
        dtype: ``float32``, or ``bfloat16`` for Keras's mixed precision.

    Raises:
        UsageError: the model does not exist, or does not fit the data.
    """
    function = MODELS.get(name) or _users_own(name)
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy("mixed_bfloat16" if dtype == "bfloat16" else "float32")
    model = function(input_shape, num_classes)
    expected = (None, num_classes)
    received: object = type(model).__name__
    if isinstance(model, keras.Model) and model.built:
        received = model.compute_output_shape((None, *input_shape))
    if received != expected:
        raise UsageError(
            f"--model {name}: expected a built Keras model with output {expected}. Got: {received}"
        )
    return model


def clone(model: keras.Model, make: Callable[[keras.Layer], keras.Layer] | None = None) -> keras.Model:
    """Copy a sequential or functional model; ``make`` makes a layer from an old one (default: an equal one).

    Raises:
        UsageError: a custom layer cannot be made from its config.
    """
    try:
        copy = keras.models.clone_model(model, clone_function=make, recursive=make is not None)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UsageError(
            f"expected layers that Keras can make from their config. Got: {error}",
            remedy="add a get_config to the layer, or use another strategy",
        ) from error
    copy.set_weights(model.get_weights())
    return copy


def _users_own(name: str) -> Callable[[ImageShape, int], keras.Model]:
    module_name, colon, function_name = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.3)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"--model: expected one of {', '.join(MODELS)}, or package.module:function. Got: {name}.{hint}"
        )
    # Python puts the folder of the script on the path, not the working directory.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        if not callable(function):
            raise TypeError(f"{name} is not callable")
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(f"--model {name}: expected a function that can be imported. Got: {error}") from error
    return function


def returns_probabilities(model: keras.Model) -> bool:
    """Return True if the model ends in a softmax, so that its loss must not apply another."""
    last = model.layers[-1]
    return isinstance(last, layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax
