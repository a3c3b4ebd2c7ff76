"""A Keras model cut into stages, one after another, each with layers and weights of its own.

It can be cut where a single tensor passes from what comes before to what comes after: between any two
layers of a chain, and around a residual block, but not within one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import tensorflow as tf

from mpi_train.models import zoo
from mpi_train.runtime.errors import UsageError

_TIMES = 5
"""How often a piece is timed; the shortest counts."""


@dataclass(frozen=True)
class Piece:
    """What lies between two neighbouring places where a model can be cut.

    Attributes:
        name: Of its last layer.
        before, after: The tensors that pass at its ends, in the graph of the whole.
        model: It alone, with the layers of the whole.
    """

    name: str
    before: keras.KerasTensor
    after: keras.KerasTensor
    model: keras.Model

    @property
    def can_stand_alone(self) -> bool:
        """Whether a stage may be this piece alone: it must have weights."""
        return bool(self.model.trainable_variables)


def pieces_of(model: keras.Model) -> list[Piece]:
    """The model in as many pieces as it can be cut into, in the order of the data.

    Raises:
        UsageError: it is no graph of layers with one input, each called once.
    """
    try:
        # A Sequential is a graph too, once it is asked for as one.
        graph = keras.Model(model.inputs, model.outputs)
        nodes = [
            (operation.name, keras.tree.flatten(operation.input), keras.tree.flatten(operation.output))
            for operation in graph.operations
            if not isinstance(operation, keras.layers.InputLayer)
        ]
        (before,) = graph.inputs
        made = {id(before), *(id(tensor) for _, _, outputs in nodes for tensor in outputs)}
        # Keras tells of a layer's first call alone; what a second one returned would come from nowhere.
        if any(id(tensor) not in made for _, inputs, _ in nodes for tensor in inputs):
            raise ValueError("a layer is called twice")
        (end,) = graph.outputs
    except (AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            "expected a model that can be cut: Sequential or functional, of one input, each layer called "
            f"once. Got: {type(model).__name__} {model.name}",
            remedy="--model with another one, or another strategy",
        ) from error
    pieces = []
    last_use = {id(tensor): number for number, (_, inputs, _) in enumerate(nodes) for tensor in inputs}
    last_use[id(end)] = len(nodes)
    waiting = {id(before)}
    for number, (name, _, outputs) in enumerate(nodes):
        waiting |= {id(tensor) for tensor in outputs}
        waiting = {tensor for tensor in waiting if last_use.get(tensor, -1) > number}
        if waiting == {id(outputs[0])}:
            pieces.append(Piece(name, before, outputs[0], keras.Model(before, outputs[0])))
            before = outputs[0]
    return pieces


def how_many(pieces: Sequence[Piece], asked: int | None, num_ranks: int) -> int:
    """The number of stages: what was asked for, or as many as the model and the number of ranks allow.

    Raises:
        UsageError: so many stages do not go round.
    """
    if asked is None:
        possible = sum(piece.can_stand_alone for piece in pieces)
        return max(count for count in range(1, possible + 1) if num_ranks % count == 0)
    if num_ranks % asked:
        raise UsageError(f"--stages: expected a divisor of the number of ranks, {num_ranks}. Got: {asked}")
    return asked


def costs_of(pieces: Sequence[Piece], num_examples: int) -> list[float]:
    """Seconds that each piece takes for the forward and backward pass of ``num_examples``, measured here."""
    return [_cost(piece.model, num_examples) for piece in pieces]


def _cost(model: keras.Model, num_examples: int) -> float:
    (symbolic,) = model.inputs
    images = tf.random.uniform((num_examples, *symbolic.shape[1:]), dtype=symbolic.dtype)
    weights = [variable.value for variable in model.trainable_variables]
    states = [variable.value for variable in model.non_trainable_variables]

    @tf.function(autograph=False)
    def passes(images: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(images)
            # Without the statistics that it would leave behind.
            outputs, _ = model.stateless_call(weights, states, images, training=True)
        return [g for g in tape.gradient(outputs, [images, *weights]) if g is not None]

    durations = []
    for _ in range(1 + _TIMES):
        start = time.perf_counter()
        for gradient in passes(images):
            gradient.numpy()
        durations.append(time.perf_counter() - start)
    return min(durations[1:])


def balanced(pieces: Sequence[Piece], costs: Sequence[float], num_stages: int) -> list[int]:
    """Cuts pieces in a row into stages so that the slowest of them is as fast as can be.

    Args:
        pieces: In the order of the data. Each stage has one that can stand alone.
        costs: Of each piece.
        num_stages: How many.

    Returns:
        The number of the first piece of each stage after the first, ascending.

    Raises:
        UsageError: there are fewer such pieces than stages.
    """
    able = [0, *itertools.accumulate(piece.can_stand_alone for piece in pieces)]
    if able[-1] < num_stages:
        raise UsageError(
            f"--stages: the model has {able[-1]} pieces with weights. Got: {num_stages} stages",
            remedy="fewer ranks, or --stages with fewer, or a deeper --model",
        )
    count = len(costs)
    total = [0.0, *itertools.accumulate(costs)]
    # best[i]: the slowest stage of the pieces from i on, cut as well as can be, and where they are cut.
    best: dict[int, tuple[float, tuple[int, ...]]] = {
        i: (total[count] - total[i], ()) for i in range(count) if able[count] > able[i]
    }
    for _ in range(num_stages - 1):
        best = {
            i: min(
                (max(total[j] - total[i], best[j][0]), (j, *best[j][1]))
                for j in best
                if j > i and able[j] > able[i]
            )
            for i in range(count)
            if any(j > i and able[j] > able[i] for j in best)
        }
    return list(best[0][1])


def cut_after(pieces: Sequence[Piece], names: Sequence[str], num_stages: int) -> list[int]:
    """Where stages begin that end with the layers of these names; as ``balanced`` returns it.

    Raises:
        UsageError: the model cannot be cut there, or a stage would have no weights.
    """
    places = [piece.name for piece in pieces[:-1]]
    unknown = [name for name in names if name not in places]
    starts = [places.index(name) + 1 for name in names if name in places]
    if unknown or starts != sorted(set(starts)) or len(starts) != num_stages - 1:
        raise UsageError(
            f"--cut: expected {num_stages - 1} of {', '.join(places)}, in this order, for {num_stages} "
            f"stages. Got: {','.join(names)}"
        )
    for start, stop in itertools.pairwise([0, *starts, len(pieces)]):
        if not any(piece.can_stand_alone for piece in pieces[start:stop]):
            raise UsageError(
                f"--cut: expected layers with weights in each stage. Got: none between "
                f"{'the images' if start == 0 else pieces[start - 1].name} and {pieces[stop - 1].name}"
            )
    return starts


def stage_of(pieces: Sequence[Piece], starts: Sequence[int], number: int) -> keras.Model:
    """A stage with layers and weights of its own, so that the rest need not stay in memory.

    Args:
        pieces: Of the whole model.
        starts: As from ``balanced``.
        number: Of the stage, from 0 on.

    Raises:
        UsageError: a layer of the user's own cannot be made again from its config.
    """
    edges = [0, *starts, len(pieces)]
    first, last = pieces[edges[number]], pieces[edges[number + 1] - 1]
    shared = keras.Model(first.before, last.after)
    return zoo.clone(shared)
