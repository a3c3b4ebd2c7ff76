"""PyTorch's ``DistributedDataParallel`` over gloo, as a yardstick: the same work in another framework.

It uses the same shards in the same order, the initial weights of Keras, the same update and the same record,
on CPUs only. TensorFlow only draws the weights.
"""

from __future__ import annotations

import sys
import time

import keras
import numpy as np

from mpi_train.runs import epochs
from mpi_train.runs.checkpoints import Arrays
from mpi_train.runs.config import RanksConfig, one_example_a_rank
from mpi_train.runs.record import RunRecord
from mpi_train.runs.resumable import ResumableRun
from mpi_train.runs.run import Run
from mpi_train.runtime import addresses, devices
from mpi_train.runtime.errors import PlatformError
from mpi_train.runtime.files import digest
from mpi_train.runtime.world import World
from mpi_train.training.loop import run_chunks
from mpi_train.training.replicas import check_equal, mean_over_ranks
from mpi_train.training.steps import epoch_order, plan_steps

try:
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel
except ImportError as error:
    raise PlatformError(
        f"expected PyTorch in this environment. Got: {error}",
        remedy="make peers, then mpiexec -n 2 .venv-peers/bin/python jobs/ddp.py",
    ) from error

from mpi_train.strategies.custom_loop import build
from mpi_train.strategies.pytorch import models as torch_models
from mpi_train.strategies.pytorch.loop import Evaluator, Loop, optimizer_like


def train(config: RanksConfig, world: World, threads: int) -> RunRecord:
    """Train on all ranks of ``world`` and write the record."""
    torch.set_num_threads(threads)
    run = Run("ddp", config, world, threads)
    address = addresses.addresses(world)[0]
    hook = sys.excepthook
    distributed.init_process_group(
        "gloo", init_method=f"tcp://{address}", rank=world.rank, world_size=world.size
    )
    # PyTorch puts its hook before ours, and would hold back the traceback until ours has ended all ranks.
    sys.excepthook = hook
    try:
        record = _train(run)
    except RuntimeError as error:
        if "gloo" in str(error):
            # The rank at the other end is gone. Meanwhile the watchdog names it and ends this process.
            time.sleep(2)
        raise
    distributed.destroy_process_group()
    return record


def _train(run: Run) -> RunRecord:
    config, world = run.config, run.world
    one_example_a_rank(config.batch_size, world.size)
    examples, test_examples = run.read("train"), run.read("test")
    devices.start_tensorflow()
    with world.together():
        model = torch_models.build(config.model, run.input_shape, run.num_classes, dtype=config.dtype)
        like, keras_optimizer = build(run)
        optimizer = optimizer_like(keras_optimizer, model)
    variables = torch_models.keras_views(model)
    for variable, first in zip(variables, like.variables, strict=True):
        variable.copy_(torch.from_numpy(first.numpy()))
    # Moving statistics are averaged once an epoch, like under mpi. PyTorch would send those of the root at
    # every step.
    parallel = DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)
    loop = Loop(parallel, optimizer, examples)
    evaluator = Evaluator(model, test_examples)
    steps = plan_steps(run.num_train, config.batch_size, rank=world.rank, size=world.size)
    run.lap("build")
    loop.warm_up(epoch_order(config.seed, 0, world.rank, len(examples)), steps)

    def train_epoch(resumable: ResumableRun) -> None:
        epoch = epochs.begin_epoch(resumable, examples)
        if epoch.examples is not loop.examples:
            loop.feed(epoch.examples)
        run_steps, num_steps = loop.prepare(epoch.order, epoch.steps), len(epoch.steps)
        rest = run_chunks(run_steps, num_steps, world, resumable, weights=loop.weights, first=epoch.first)
        _average_statistics(world, model, len(examples))
        check_equal(world, [v.numpy() for v in variables], when=f"after epoch {epoch.number}")
        resumable.end_epoch(rest, evaluator.evaluate)

    return epochs.train_epochs(
        run,
        _State(variables, loop, keras_optimizer),
        train_epoch,
        model=(like.name, like.count_params()),
        optimizer=keras_optimizer,
        sync={"average": "gradients", "every": 1},
        weights_sha256=lambda: digest(variable.numpy() for variable in variables),
    )


def _average_statistics(world: World, model: torch.nn.Module, num_examples: int) -> None:
    """Replace BatchNorm's moving statistics by their mean over the ranks, weighted by examples."""
    moving = [buffer.numpy() for buffer in model.buffers() if buffer.is_floating_point()]
    for array, mean in zip(moving, mean_over_ranks(world, moving, num_examples), strict=True):
        array[...] = mean


class _State:
    """State of the PyTorch training for a checkpoint, with weights in the layout of the Keras model.

    The Keras optimizer ``like`` holds the learning rate for the record.
    """

    def __init__(self, variables: list[torch.Tensor], loop: Loop, like: keras.Optimizer) -> None:
        self._group, self._like = loop.optimizer.param_groups[0], like
        self._tensors = {
            **{f"model/{i}": variable for i, variable in enumerate(variables)},
            **{f"optimizer/{i}": tensor for i, tensor in enumerate(loop.optimizer_state())},
        }

    def arrays(self) -> Arrays:
        """Copy all tensors and the learning rate."""
        copies = {name: np.array(tensor.numpy()) for name, tensor in self._tensors.items()}
        return {**copies, "learning_rate": np.array(self._group["lr"])}

    def restore(self, arrays: Arrays, *, same_size: bool) -> None:
        """Load all tensors and the learning rate; see ``State``."""
        for name, tensor in self._tensors.items():
            tensor.copy_(torch.from_numpy(arrays[name]))
        self._set_rate(float(arrays["learning_rate"]))

    def slow_down(self) -> float:
        """Halve the learning rate and return it."""
        self._set_rate(self._group["lr"] / 2)
        return float(self._group["lr"])

    def _set_rate(self, rate: float) -> None:
        self._group["lr"] = rate
        self._like.learning_rate = rate
