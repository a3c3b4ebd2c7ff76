"""Keras models, each made from the shape of the images and the number of classes.

Inputs are float32 images in [0, 1]. Outputs are logits, in float32 for any precision inside.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable

import keras
from keras import layers

from mpi_train.models.compiling import first_line
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


MODELS: dict[str, Callable[..., keras.Model]] = {"cnn": cnn, "mlp": mlp, "resnet": resnet}


def build(name: str, input_shape: ImageShape, num_classes: int, *, seed: int, dtype: str) -> keras.Model:
    """Build a model whose initial weights depend on ``seed`` alone.

    Args:
        name: Name in ``MODELS``, or ``package.module:function``. The function is called with those of the
            arguments ``input_shape`` and ``num_classes`` that it takes, and returns a Keras model, built or
            not, compiled or not.
        input_shape, num_classes: Shape of an image, and number of classes.
        seed: Seed of the initial weights.
        dtype: Precision of the computation, ``float32``, ``bfloat16`` or ``float16``; weights stay float32.

    Raises:
        UsageError: the model does not exist, or its function fails.
    """
    function = MODELS.get(name) or _users_own(name)
    arguments = _arguments(name, function, {"input_shape": input_shape, "num_classes": num_classes})
    # A keras.json of the user may say otherwise.
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy("float32" if dtype == "float32" else f"mixed_{dtype}")
    try:
        model = function(**arguments)
    except Exception as error:
        raise UsageError(
            f"--model {name}: expected a function that returns a Keras model. Got: {first_line(error)}"
        ) from error
    if not isinstance(model, keras.Model):
        raise UsageError(
            f"--model {name}: expected a function that returns a Keras model. Got: {type(model).__name__}"
        )
    return model


def _arguments(name: str, function: Callable[..., object], offered: dict[str, object]) -> dict[str, object]:
    """Return those of the ``offered`` arguments that a function takes by name."""
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    for parameter in parameters:
        is_needed = parameter.default is parameter.empty and parameter.name not in offered
        if is_needed and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise UsageError(
                f"--model {name}: expected a function of {' and '.join(offered)}, or of none of them. "
                f"Got: the parameter {parameter.name}",
                remedy=f"a default value for {parameter.name}",
            )
    names = {parameter.name for parameter in parameters}
    return {key: value for key, value in offered.items() if takes_all or key in names}


def copied(layer: keras.Layer) -> keras.Layer:
    """Make an equal layer; a function of Python, which Keras loads from no config, is shared."""
    return layer if isinstance(layer, layers.Lambda) else layer.__class__.from_config(layer.get_config())


def clone(model: keras.Model, make: Callable[[keras.Layer], keras.Layer] | None = None) -> keras.Model:
    """Copy a sequential or functional model; ``make`` makes a layer from an old one (default: ``copied``).

    Raises:
        UsageError: a custom layer cannot be made from its config.
    """
    try:
        copy = keras.models.clone_model(model, clone_function=make or copied, recursive=make is not None)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UsageError(
            f"expected layers that Keras can make from their config. Got: {error}",
            remedy="add a get_config to the layer, or use another strategy",
        ) from error
    copy.set_weights(model.get_weights())
    return copy


def _users_own(name: str) -> Callable[..., keras.Model]:
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
    except Exception as error:  # whatever the user's module raises
        raise UsageError(
            f"--model {name}: expected a function that can be imported. Got: {first_line(error)}"
        ) from error
    return function
