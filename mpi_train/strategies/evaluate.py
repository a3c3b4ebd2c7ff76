"""Evaluation of a trained model that a run has left, on a data set in shards."""

from __future__ import annotations

import keras

from mpi_train.data.shards import ShardSet
from mpi_train.models import zoo
from mpi_train.models.compiling import compile_model, first_line
from mpi_train.runtime import devices
from mpi_train.runtime.errors import DataError
from mpi_train.runtime.world import World
from mpi_train.strategies.config import EvaluateConfig
from mpi_train.strategies.replicated import values_of
from mpi_train.training.evaluation import Evaluator
from mpi_train.training.inputs import first_batch
from mpi_train.training.objective import Objective


def evaluate(config: EvaluateConfig, world: World, threads: int) -> None:
    """Evaluate a saved model on all ranks, each on its part of the data; the root prints the result.

    Raises:
        DataError: the file is no model that Keras can load, or the shards cannot be read; on all ranks.
        UsageError: the model does not fit the data; on all ranks.
    """
    with world.together():
        devices.own_device(world)
        shards = ShardSet.open(config.data_dir, config.dataset)
        examples = shards.read(config.split, world.rank, world.size)
        model = _load(config, shards)
        if not model.compiled:
            compile_model(model, *first_batch(examples), num_classes=shards.manifest.num_classes)
        objective = Objective(model, examples)
    scores = Evaluator(objective, values_of(objective), examples).evaluate()
    loss, sums = scores.means(world)
    results = {"loss": loss, **objective.results(sums)}
    if world.is_root:
        figures = "  ".join(f"{name} {value:.6f}" for name, value in results.items())
        count = f"{shards.num_examples(config.split):,} examples ({config.split})"
        print(f"{config.saved_model} on {count}: {figures}")


def _load(config: EvaluateConfig, shards: ShardSet) -> keras.Model:
    """Load the model or, if the file holds weights alone, build it by its function first."""
    shape = shards.manifest.image_shape
    built: keras.Model | None = None
    if config.model is not None:  # its module may register layers that the file needs
        image_shape = (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)
        classes = shards.manifest.num_classes
        built = zoo.build(config.model, image_shape, classes, seed=1, dtype="float32")
    try:
        if config.saved_model.suffix == ".keras":
            # Older formats may hold code, and so may this one, which is then refused.
            return keras.saving.load_model(config.saved_model, safe_mode=True)
        if built is None:
            raise ValueError("no .keras file, but weights alone")
        built(keras.ops.zeros((1, *image_shape)))
        built.load_weights(config.saved_model)
    except Exception as error:  # whatever a damaged file or a user's layer raises
        raise DataError(
            f"{config.saved_model}: expected a model that Keras can load. Got: {first_line(error)}",
            remedy="--model package.module:function, whose module defines its layers",
        ) from error
    return built
