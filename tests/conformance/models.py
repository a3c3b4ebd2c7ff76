"""Keras models in the forms that people write, each small, for the conformance suite.

Every function is a ``--model`` of its own. ``FORMS`` says what is expected of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops, regularizers

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Form:
    """A form of model.

    Attributes:
        make: Function that makes the model.
        text: What is particular about it.
        chance: True if it draws random numbers: only the statistics of a training can be compared.
        batchnorm: True if it normalises by the statistics of each part of a batch.
        uncut: What pipeline says of it, if it cannot train it in stages.
        own_step: True if it has a ``train_step`` of its own, which only ``fit`` runs.
        dtype: Precision of the computation.
    """

    make: Callable[..., keras.Model]
    text: str
    chance: bool = False
    batchnorm: bool = False
    uncut: str = ""
    own_step: bool = False
    dtype: str = "float32"


FORMS: dict[str, Form] = {}


def form(text: str, **marks: Any) -> Callable[[Callable[..., keras.Model]], Callable[..., keras.Model]]:
    """Register a function that makes a model."""

    def register(make: Callable[..., keras.Model]) -> Callable[..., keras.Model]:
        FORMS[make.__name__] = Form(make, text, **marks)
        return make

    return register


def chain(input_shape: Shape, num_classes: int, *middle: keras.Layer, **last: Any) -> keras.Model:
    """Make a Sequential model: flattened pixels, a hidden layer, ``middle``, one output for each class."""
    first = [keras.Input(input_shape), layers.AveragePooling2D(4), layers.Flatten()]
    hidden = layers.Dense(16, activation="tanh")
    return keras.Sequential([*first, hidden, *middle, layers.Dense(num_classes, **last)])


# ---- Losses of layers and weights -----------------------------------------------------------------------


@form("kernel_regularizer and bias_regularizer")
def l2(input_shape: Shape, num_classes: int) -> keras.Model:
    decay = regularizers.L2(0.05)
    hidden = layers.Dense(16, activation="tanh", kernel_regularizer=decay, bias_regularizer=decay)
    return chain(input_shape, num_classes, hidden, kernel_regularizer=decay)


@form("L1L2 on a convolution")
def l1_l2_cnn(input_shape: Shape, num_classes: int) -> keras.Model:
    decay = regularizers.L1L2(0.001, 0.01)
    conv = layers.Conv2D(4, 3, strides=2, activation="tanh", kernel_regularizer=decay)
    return keras.Sequential([keras.Input(input_shape), conv, layers.Flatten(), layers.Dense(num_classes)])


@form("activity_regularizer")
def activity(input_shape: Shape, num_classes: int) -> keras.Model:
    middle = layers.Dense(16, activation="tanh", activity_regularizer=regularizers.L2(0.1))
    return chain(input_shape, num_classes, middle)


@form("layers.ActivityRegularization")
def activity_layer(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, layers.ActivityRegularization(l1=0.01))


@keras.saving.register_keras_serializable("conformance")
class Penalty(layers.Layer):
    """Layer that adds a loss of its inputs."""

    def __init__(self, reduce: str = "mean", **options: Any) -> None:
        super().__init__(**options)
        self.reduce = reduce

    def call(self, inputs: Any) -> Any:
        self.add_loss(0.05 * getattr(ops, self.reduce)(ops.square(inputs)))
        return inputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "reduce": self.reduce}


@form("add_loss of a mean over the batch")
def add_loss_mean(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, Penalty())


@form("add_loss of a sum over the batch")
def add_loss_sum(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, Penalty("sum"))


@keras.saving.register_keras_serializable("conformance")
class WeightPenalty(layers.Dense):
    """Layer that adds a loss of its weights alone."""

    def call(self, inputs: Any) -> Any:
        self.add_loss(0.05 * ops.sum(ops.square(self.kernel)))
        return super().call(inputs)


@form("add_loss of the weights alone")
def add_loss_weights(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, WeightPenalty(16, activation="tanh"))


@form("a loss with reduction sum")
def loss_sum(input_shape: Shape, num_classes: int) -> keras.Model:
    model = chain(input_shape, num_classes)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    model.compile(keras.optimizers.SGD(0.002), loss, metrics=["accuracy"])
    return model


# ---- Constraints ----------------------------------------------------------------------------------------


@form("kernel_constraint MaxNorm")
def max_norm(input_shape: Shape, num_classes: int) -> keras.Model:
    bound = keras.constraints.MaxNorm(0.5)
    return chain(input_shape, num_classes, layers.Dense(16, activation="tanh", kernel_constraint=bound))


@form("NonNeg and UnitNorm constraints")
def non_negative(input_shape: Shape, num_classes: int) -> keras.Model:
    middle = layers.Dense(16, "tanh", kernel_constraint="unit_norm", bias_constraint="non_neg")
    return chain(input_shape, num_classes, middle)


# ---- Outputs --------------------------------------------------------------------------------------------


@form("a softmax layer in last place")
def softmax_layer(input_shape: Shape, num_classes: int) -> keras.Model:
    model = chain(input_shape, num_classes)
    model.add(layers.Softmax())
    return model


@form("activation softmax")
def softmax_activation(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, activation="softmax")


@form("activation tf.nn.softmax")
def softmax_of_tf(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, activation=tf.nn.softmax)


@form("ops.softmax at the end of a functional model")
def softmax_of_ops(input_shape: Shape, num_classes: int) -> keras.Model:
    inputs = keras.Input(input_shape)
    x = layers.Dense(16, activation="tanh")(layers.Flatten()(layers.AveragePooling2D(4)(inputs)))
    return keras.Model(inputs, ops.softmax(layers.Dense(num_classes)(x)))


@form("a model within a model, with softmax")
def nested_softmax(input_shape: Shape, num_classes: int) -> keras.Model:
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, chain(input_shape, num_classes, activation="softmax")(inputs))


@form("the mean of two softmax outputs")
def average_of_softmax(input_shape: Shape, num_classes: int) -> keras.Model:
    inputs = keras.Input(input_shape)
    x = layers.Dense(16, activation="tanh")(layers.Flatten()(layers.AveragePooling2D(4)(inputs)))
    outputs = [layers.Dense(num_classes, activation="softmax")(x) for _ in range(2)]
    return keras.Model(inputs, layers.Average()(outputs))


@form("sigmoid outputs")
def sigmoid_outputs(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, activation="sigmoid")


@form("logits that are all 0 at first")
def zero_logits(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, kernel_initializer="zeros")


# ---- Subclasses -----------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("conformance")
class Plain(keras.Model):
    """Subclass whose ``call`` has no ``training``, not built."""

    def __init__(self, num_classes: int = 10, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes = num_classes
        self.pool, self.flatten = layers.AveragePooling2D(4), layers.Flatten()
        self.hidden, self.out = layers.Dense(16, activation="tanh"), layers.Dense(num_classes)

    def call(self, inputs: Any) -> Any:
        return self.out(self.hidden(self.flatten(self.pool(inputs))))

    def get_config(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}


@form("a subclass, not built, whose call has no training", uncut="can be cut")
def subclass(num_classes: int) -> keras.Model:
    return Plain(num_classes)


@keras.saving.register_keras_serializable("conformance")
class Trained(Plain):
    """Subclass whose ``call`` takes ``training``."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        return super().call(inputs * 2.0 if training else inputs)


@form("a subclass that is built by a call", uncut="can be cut")
def subclass_called(input_shape: Shape, num_classes: int) -> keras.Model:
    model = Trained(num_classes)
    model(ops.zeros((1, *input_shape)))
    return model


@keras.saving.register_keras_serializable("conformance")
class OwnLoss(Plain):
    """Subclass with a loss of its own."""

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None
    ) -> Any:
        loss = super().compute_loss(x, y, y_pred, sample_weight)
        return loss + 0.05 * ops.mean(ops.square(y_pred))


@form("own compute_loss", uncut="can be cut")
def own_compute_loss(num_classes: int) -> keras.Model:
    return OwnLoss(num_classes)


@keras.saving.register_keras_serializable("conformance")
class OwnStep(Plain):
    """Subclass with a training step of its own."""

    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


@form("own train_step", uncut="can be cut", own_step=True)
def own_train_step(num_classes: int) -> keras.Model:
    return OwnStep(num_classes)


# ---- Chance ---------------------------------------------------------------------------------------------


@form("dropout", chance=True)
def dropout(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, layers.Dropout(0.3))


@form("Gaussian noise with a seed", chance=True)
def noise(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, layers.GaussianNoise(0.1, seed=7))


@keras.saving.register_keras_serializable("conformance")
class Unseeded(layers.Layer):
    """Layer that draws by keras.random without a seed."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        return inputs + keras.random.normal(ops.shape(inputs), stddev=0.1) if training else inputs


@form("keras.random without a seed", chance=True)
def unseeded(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, Unseeded())


@form("augmentation", chance=True)
def augmented(input_shape: Shape, num_classes: int) -> keras.Model:
    inputs = keras.Input(input_shape)
    x = layers.RandomTranslation(0.1, 0.1)(layers.RandomFlip("horizontal")(inputs))
    x = layers.Flatten()(layers.AveragePooling2D(4)(layers.RandomContrast(0.1)(x)))
    x = layers.Dense(16, activation="tanh")(x)
    return keras.Model(inputs, layers.Dense(num_classes)(x))


# ---- States ---------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("conformance")
class Flagged(layers.Layer):
    """Layer with a bool and an integer among its states."""

    def build(self, input_shape: Any) -> None:
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="ones")
        self.is_ready = self.add_weight(shape=(), dtype="bool", initializer="zeros", trainable=False)
        self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, inputs: Any, training: bool = False) -> Any:
        if training:
            self.is_ready.assign(ops.ones((), "bool"))
            self.count.assign(self.count + 1)
        return inputs * self.scale


@form("states that are bools and integers")
def flags_and_counters(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, Flagged())


@form("spectral normalisation: weights that a call assigns")
def spectral_norm(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, layers.SpectralNormalization(layers.Dense(16, activation="tanh")))


@form("BatchNorm", batchnorm=True)
def batchnorm(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, layers.BatchNormalization())


@keras.saving.register_keras_serializable("conformance")
class NormedBlock(layers.Layer):
    """Layer with a BatchNorm inside."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.dense, self.norm = layers.Dense(16), layers.BatchNormalization()

    def build(self, input_shape: Any) -> None:
        self.dense.build(input_shape)
        self.norm.build((*input_shape[:-1], 16))

    def call(self, inputs: Any, training: bool = False) -> Any:
        return ops.tanh(self.norm(self.dense(inputs), training=training))


@form("BatchNorm inside an own layer", batchnorm=True)
def batchnorm_inside(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, NormedBlock())


@form("LayerNormalization and GroupNormalization")
def layer_norm(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, layers.LayerNormalization(), layers.GroupNormalization(4))


# ---- Graphs ---------------------------------------------------------------------------------------------


@form("a shared layer and two branches", uncut="can be cut")
def shared(input_shape: Shape, num_classes: int) -> keras.Model:
    inputs = keras.Input(input_shape)
    dense, pool = layers.Dense(8, activation="tanh"), layers.AveragePooling2D(4)
    left = dense(layers.Flatten()(pool(inputs)))
    right = dense(layers.Flatten()(pool(1.0 - inputs)))
    x = layers.Concatenate()([left, right, layers.Multiply()([left, right])])
    return keras.Model(inputs, layers.Dense(num_classes)(x))


@form("a residual connection")
def residual(input_shape: Shape, num_classes: int) -> keras.Model:
    inputs = keras.Input(input_shape)
    x = layers.Dense(16)(layers.Flatten()(layers.AveragePooling2D(4)(inputs)))
    x = layers.Add()([x, layers.Dense(16, activation="tanh")(x)])
    return keras.Model(inputs, layers.Dense(num_classes)(x))


@form("a frozen part")
def frozen(input_shape: Shape, num_classes: int) -> keras.Model:
    model = chain(input_shape, num_classes, layers.Dense(16, activation="tanh"))
    model.layers[2].trainable = False
    return model


@form("Lambda")
def lambda_layer(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes, layers.Lambda(lambda x: x * 2.0 - 1.0))


@form("self-attention over rows")
def attention(input_shape: Shape, num_classes: int) -> keras.Model:
    inputs = keras.Input(input_shape)
    rows = layers.Reshape((input_shape[0], -1))(inputs)
    x = layers.Dense(8)(rows)
    x = layers.MultiHeadAttention(2, 4)(x, x)
    return keras.Model(inputs, layers.Dense(num_classes)(layers.GlobalAveragePooling1D()(x)))


@form("LSTM over rows, input without the channel")
def lstm(input_shape: Shape, num_classes: int) -> keras.Model:
    return keras.Sequential([keras.Input(input_shape[:2]), layers.LSTM(8), layers.Dense(num_classes)])


@form("GRU with dropout", chance=True)
def gru_dropout(input_shape: Shape, num_classes: int) -> keras.Model:
    gru = layers.GRU(8, dropout=0.2, recurrent_dropout=0.2)
    return keras.Sequential([keras.Input(input_shape[:2]), gru, layers.Dense(num_classes)])


@form("Conv1D on rows, input without the channel")
def conv1d(input_shape: Shape, num_classes: int) -> keras.Model:
    conv = layers.Conv1D(8, 3, activation="tanh")
    return keras.Sequential(
        [keras.Input(input_shape[:2]), conv, layers.GlobalAveragePooling1D(), layers.Dense(num_classes)]
    )


@form("no arguments")
def no_arguments() -> keras.Model:
    return chain((28, 28, 1), 10)


@form("Rescaling first")
def rescaling(input_shape: Shape, num_classes: int) -> keras.Model:
    inputs = keras.Input(input_shape)
    x = layers.Flatten()(layers.AveragePooling2D(4)(layers.Rescaling(2.0, -1.0)(inputs)))
    x = layers.Dense(16, activation="tanh")(x)
    return keras.Model(inputs, layers.Dense(num_classes)(x))


# ---- Compiled models ------------------------------------------------------------------------------------


@form("compiled: label smoothing by one-hot targets inside the loss")
def smoothed(input_shape: Shape, num_classes: int) -> keras.Model:
    def loss(y: Any, outputs: Any) -> Any:
        return keras.losses.categorical_crossentropy(
            ops.one_hot(ops.cast(y, "int32"), num_classes), outputs, from_logits=True, label_smoothing=0.1
        )

    model = chain(input_shape, num_classes)
    model.compile("sgd", loss, metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(3)])
    return model


def compiled(input_shape: Shape, num_classes: int, optimizer: keras.Optimizer) -> keras.Model:
    """Make a chain that is compiled with an optimizer."""
    model = chain(input_shape, num_classes)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


@form("compiled: SGD with momentum and a learning-rate schedule")
def schedule(input_shape: Shape, num_classes: int) -> keras.Model:
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.7)
    return compiled(input_shape, num_classes, keras.optimizers.SGD(rate, momentum=0.9))


@form("compiled: clipnorm")
def clipnorm(input_shape: Shape, num_classes: int) -> keras.Model:
    return compiled(input_shape, num_classes, keras.optimizers.SGD(0.1, clipnorm=0.05))


@form("compiled: global_clipnorm", uncut="norm of all weights")
def global_clipnorm(input_shape: Shape, num_classes: int) -> keras.Model:
    return compiled(input_shape, num_classes, keras.optimizers.SGD(0.1, global_clipnorm=0.05))


@form("compiled: clipvalue")
def clipvalue(input_shape: Shape, num_classes: int) -> keras.Model:
    return compiled(input_shape, num_classes, keras.optimizers.SGD(0.1, clipvalue=0.01))


@form("compiled: weight decay without the biases")
def weight_decay(input_shape: Shape, num_classes: int) -> keras.Model:
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return compiled(input_shape, num_classes, optimizer)


@form("compiled: moving average of the weights")
def ema(input_shape: Shape, num_classes: int) -> keras.Model:
    return compiled(input_shape, num_classes, keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9))


@form("mixed_bfloat16, last layer too", dtype="bfloat16")
def bfloat16(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes)


@form("mixed_float16 with loss scaling", dtype="float16")
def float16(input_shape: Shape, num_classes: int) -> keras.Model:
    return chain(input_shape, num_classes)
