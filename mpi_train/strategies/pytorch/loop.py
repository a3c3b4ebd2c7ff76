"""Training and evaluation in PyTorch, with the step layout of the suite's own loop and Keras's optimizers."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mpi_train.data.examples import Examples
from mpi_train.runtime.errors import UsageError
from mpi_train.strategies.pytorch.models import keras_views
from mpi_train.training.evaluation import BATCH, Scores
from mpi_train.training.loop import RunSteps
from mpi_train.training.steps import Steps


class Loop:
    """Training of a model on the examples of this process.

    Args:
        model: Model that averages the gradients over the ranks in its backward pass.
        optimizer: Optimizer of its parameters.
        examples: This process's part of the training set.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, examples: Examples) -> None:
        self.model, self.optimizer = model, optimizer
        self.feed(examples)

    def feed(self, examples: Examples) -> None:
        """Train on these ``examples`` from now on."""
        self.examples = examples
        self._images, self._labels = _as_tensors(examples)

    def weights(self) -> list[np.ndarray]:
        """Return the trainable weights, as views."""
        return [parameter.detach().numpy() for parameter in self.model.parameters()]

    def warm_up(self, order: np.ndarray, steps: Steps) -> None:
        """Run steps of both sizes once and undo them; arguments as for ``prepare``.

        PyTorch makes kernels, buckets and optimizer state when they are first used.
        """
        variables = keras_views(self.model)
        before = [variable.clone() for variable in variables]
        run = self.prepare(order, steps)
        run(0, 1)
        run(len(steps) - 1, len(steps))
        for variable, value in zip(variables, before, strict=True):
            variable.copy_(value)
        for state in self.optimizer_state():
            state.zero_()

    def optimizer_state(self) -> list[torch.Tensor]:
        """Return the state of the optimizer, which exists after its first step."""
        return [
            value
            for parameter in self.model.parameters()
            for value in self.optimizer.state[parameter].values()
            if value is not None
        ]

    def prepare(self, order: np.ndarray, steps: Steps) -> RunSteps:
        """Return the function that trains steps of an epoch; arguments as for ``Trainer.prepare``."""
        numbers = torch.from_numpy(order)
        begins, sizes = steps.begins[:, 0, 0].tolist(), steps.sizes[:, 0, 0].tolist()
        scales = steps.scales[:, 0].tolist()

        def run(first: int, stop: int) -> tuple[float, float, int]:
            self.model.train()
            totals = torch.zeros(2)
            for step in range(first, stop):
                some = numbers[begins[step] : begins[step] + sizes[step]]
                totals += self._step(self._images[some], self._labels[some], scales[step])
            loss, correct = totals.tolist()
            return loss, correct, steps[first:stop].num_examples

        return run

    def _step(self, images: torch.Tensor, labels: torch.Tensor, scale: float) -> torch.Tensor:
        """Run one step; return the sums of the loss and of the correct predictions, 0 if none count."""
        outputs = self.model(as_input(images))
        loss = functional.cross_entropy(outputs, labels, reduction="sum")
        self.optimizer.zero_grad()
        (loss * scale).backward()
        self.optimizer.step()
        correct = (outputs.detach().argmax(1) == labels).sum()
        return torch.stack([loss.detach(), correct]) * (scale > 0)


class Evaluator:
    """Evaluation of a model on one rank's part of the test set; see ``training.evaluation``."""

    def __init__(self, model: nn.Module, examples: Examples) -> None:
        self._model, self._examples = model, examples
        self._images, self._labels = _as_tensors(examples)

    def evaluate(self) -> Scores:
        """Evaluate the model on this rank's part."""
        self._model.train(False)
        losses, predicted = [torch.zeros(0)], [torch.zeros(0, dtype=torch.int64)]
        with torch.inference_mode():
            for images, labels in zip(self._images.split(BATCH), self._labels.split(BATCH), strict=True):
                outputs = self._model(as_input(images))
                losses.append(functional.cross_entropy(outputs, labels, reduction="none"))
                predicted.append(outputs.argmax(1))
        winners = torch.cat(predicted).numpy().astype(np.int32)
        return Scores(self._examples.labels, torch.cat(losses).numpy(), winners)


def as_input(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 (n, h, w) or (n, h, w, c) to float32 (n, c, h, w) in [0, 1], channels last in memory."""
    scaled = images.to(torch.float32).mul_(1 / 255)
    return scaled[:, None] if images.ndim == 3 else scaled.permute(0, 3, 1, 2)


def _as_tensors(examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(examples.images), torch.from_numpy(examples.labels).long()


class Adam(torch.optim.Adam):
    """Adam that adds epsilon before the bias correction, like Keras (Kingma & Ba 2015, end of section 2)."""

    def __init__(self, parameters: list[nn.Parameter], like: keras.optimizers.Adam) -> None:
        self._like = like
        betas, rate = (like.beta_1, like.beta_2), float(like.learning_rate)
        super().__init__(parameters, lr=rate, betas=betas, eps=like.epsilon, fused=True)

    def step(self, closure: Any = None) -> Any:
        group = self.param_groups[0]
        done = self.state.get(group["params"][0], {}).get("step", 0)
        group["eps"] = self._like.epsilon / math.sqrt(1 - self._like.beta_2 ** (int(done) + 1))
        return super().step(closure)


def optimizer_like(like: keras.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Return PyTorch's equivalent of the Keras optimizer ``like``, for ``model``.

    Raises:
        UsageError: there is none.
    """
    parameters = list(model.parameters())
    if type(like) is keras.optimizers.Adam:
        return Adam(parameters, like)
    if type(like) is keras.optimizers.SGD:
        return torch.optim.SGD(parameters, lr=float(like.learning_rate), fused=True)
    raise UsageError(
        f"--optimizer: expected adam or sgd, the optimizers in PyTorch. Got: {like.name}",
        remedy="one of them, or another strategy, which takes any Keras optimizer",
    )
