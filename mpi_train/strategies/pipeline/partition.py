"""Partition of a Keras model into stages, each with its own layers and weights.

A cut is possible where a single tensor passes from the layers before to the layers after: between any two
layers of a chain and around a residual block, but not within one.
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
"""Number of timings of a block; the shortest counts."""


@dataclass(frozen=True)
class Block:
    """Layers between two neighbouring possible cuts of a model.

    Attributes:
        name: Name of the last layer.
        before, after: Tensors at both ends, in the graph of the whole model.
        model: Model of the block alone, with the layers of the whole model.
    """

    name: str
    before: keras.KerasTensor
    after: keras.KerasTensor
    model: keras.Model

    @property
    def can_stand_alone(self) -> bool:
        """True if a stage can consist of this block alone: it has weights."""
        return bool(self.model.trainable_variables)


def blocks_of(model: keras.Model) -> list[Block]:
    """Cut a model into as many blocks as possible, in the order of the data.

    Raises:
        UsageError: the model is no graph of layers with one input, each called once.
    """
    try:
        # This makes a graph of a Sequential too.
        graph = keras.Model(model.inputs, model.outputs)
        nodes = [
            (operation.name, keras.tree.flatten(operation.input), keras.tree.flatten(operation.output))
            for operation in graph.operations
            if not isinstance(operation, keras.layers.InputLayer)
        ]
        (before,) = graph.inputs
        made = {id(before), *(id(tensor) for _, _, outputs in nodes for tensor in outputs)}
        # Keras knows only the first call of a layer; the output of a second one would have no source.
        if any(id(tensor) not in made for _, inputs, _ in nodes for tensor in inputs):
            raise ValueError("a layer is called twice")
        (end,) = graph.outputs
    except (AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            "expected a model that can be cut: Sequential or functional, of one input, each layer called "
            f"once. Got: {type(model).__name__} {model.name}",
            remedy="another --model, or another strategy",
        ) from error
    blocks = []
    last_use = {id(tensor): number for number, (_, inputs, _) in enumerate(nodes) for tensor in inputs}
    last_use[id(end)] = len(nodes)
    waiting = {id(before)}
    for number, (name, _, outputs) in enumerate(nodes):
        waiting |= {id(tensor) for tensor in outputs}
        waiting = {tensor for tensor in waiting if last_use.get(tensor, -1) > number}
        if waiting == {id(outputs[0])}:
            blocks.append(Block(name, before, outputs[0], keras.Model(before, outputs[0])))
            before = outputs[0]
    return blocks


def num_stages(blocks: Sequence[Block], asked: int | None, num_ranks: int) -> int:
    """Return the requested number of stages, or as many as the model and the ranks allow.

    Raises:
        UsageError: the ranks do not divide evenly by the number of stages.
    """
    if asked is None:
        possible = sum(block.can_stand_alone for block in blocks)
        return max(count for count in range(1, possible + 1) if num_ranks % count == 0)
    if num_ranks % asked:
        raise UsageError(f"--stages: expected a divisor of the number of ranks, {num_ranks}. Got: {asked}")
    return asked


def costs_of(blocks: Sequence[Block], num_examples: int) -> list[float]:
    """Measure the seconds of the forward and backward pass of ``num_examples`` through each block."""
    return [_cost(block.model, num_examples) for block in blocks]


def _cost(model: keras.Model, num_examples: int) -> float:
    (symbolic,) = model.inputs
    images = tf.random.uniform((num_examples, *symbolic.shape[1:]), dtype=symbolic.dtype)
    weights = [variable.value for variable in model.trainable_variables]
    states = [variable.value for variable in model.non_trainable_variables]

    @tf.function(autograph=False)
    def passes(images: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(images)
            # A stateless call leaves the statistics as they were.
            outputs, _ = model.stateless_call(weights, states, images, training=True)
        return [g for g in tape.gradient(outputs, [images, *weights]) if g is not None]

    durations = []
    for _ in range(1 + _TIMES):
        start = time.perf_counter()
        for gradient in passes(images):
            gradient.numpy()
        durations.append(time.perf_counter() - start)
    return min(durations[1:])


def balanced(blocks: Sequence[Block], costs: Sequence[float], num_stages: int) -> list[int]:
    """Group blocks into stages so that the slowest stage is as fast as possible.

    Returns:
        Number of the first block of each stage after the first, ascending. Each stage has a block that can
        stand alone.

    Raises:
        UsageError: there are fewer blocks with weights than stages.
    """
    able = [0, *itertools.accumulate(block.can_stand_alone for block in blocks)]
    if able[-1] < num_stages:
        raise UsageError(
            f"--stages: expected at most {able[-1]}, the number of blocks with weights. Got: {num_stages}",
            remedy="fewer ranks, or --stages with fewer, or a deeper --model",
        )
    total = [0.0, *itertools.accumulate(costs)]
    # best[i]: time of the slowest stage in the best partition of the blocks from i on, and its cuts. It is
    # known for no stage first, then for one stage more in each pass.
    best: dict[int, tuple[float, tuple[int, ...]]] = {len(costs): (0.0, ())}
    for _ in range(num_stages):
        best = {
            i: min((max(total[j] - total[i], best[j][0]), (j, *best[j][1])) for j in ends)
            for i in range(len(costs))
            if (ends := [j for j in best if able[j] > able[i]])
        }
    return list(best[0][1][:-1])


def cut_after(blocks: Sequence[Block], names: Sequence[str], num_stages: int) -> list[int]:
    """Group blocks into stages that end with the named layers; return the same as ``balanced``.

    Raises:
        UsageError: the model cannot be cut there, or a stage would have no weights.
    """
    places = [block.name for block in blocks[:-1]]
    unknown = [name for name in names if name not in places]
    starts = [places.index(name) + 1 for name in names if name in places]
    if unknown or starts != sorted(set(starts)) or len(starts) != num_stages - 1:
        raise UsageError(
            f"--cut: expected {num_stages - 1} of {', '.join(places)}, in this order, for {num_stages} "
            f"stages. Got: {','.join(names)}"
        )
    for start, stop in itertools.pairwise([0, *starts, len(blocks)]):
        if not any(block.can_stand_alone for block in blocks[start:stop]):
            raise UsageError(
                f"--cut: expected layers with weights in each stage. Got: none between "
                f"{'the images' if start == 0 else blocks[start - 1].name} and {blocks[stop - 1].name}"
            )
    return starts


def stage_of(blocks: Sequence[Block], starts: Sequence[int], number: int) -> keras.Model:
    """Copy stage ``number``, from 0, so that the whole model need not stay in memory; see ``zoo.clone``."""
    edges = [0, *starts, len(blocks)]
    first, last = blocks[edges[number]], blocks[edges[number + 1] - 1]
    return zoo.clone(keras.Model(first.before, last.after))
