"""The models of ``mpi_train.models.zoo`` in PyTorch: the same layers, for the same weights.

Keras's conventions replace PyTorch's: ``same`` padding, the moving variance of BatchNorm, the order of pixels
in ``Flatten``.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from mpi_train.models.zoo import ImageShape
from mpi_train.runtime.errors import UsageError


class Classifier(nn.Module):
    """A classifier with a body of any precision and a head in float32.

    Args:
        body: Module from float32 images (n, channels, height, width) in [0, 1] to features (n, num_features).
        head: Layer from features to logits.
        mixed: True if the body computes in bfloat16, with PyTorch's autocast.
    """

    def __init__(self, body: nn.Module, head: nn.Linear, *, mixed: bool) -> None:
        super().__init__()
        self.body, self.head, self._mixed = body, head, mixed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._mixed):
            features = self.body(images)
        return self.head(features.float())


class Flatten(nn.Module):
    """Flatten pixels row by row with their channels together, without a copy of channels-last images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


class SameConv(nn.Conv2d):
    """Convolution without bias, ``same`` padding; an odd padded pixel goes below and to the right."""

    def __init__(self, num_in: int, num_out: int, *, size: int = 3, stride: int = 1) -> None:
        super().__init__(num_in, num_out, size, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size, stride = self.kernel_size[0], self.stride[0]
        height, width = (max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[2:])
        if height % 2 or width % 2:
            edges = (width // 2, width - width // 2, height // 2, height - height // 2)
            return functional.conv2d(functional.pad(x, edges), self.weight, stride=stride)
        return functional.conv2d(x, self.weight, stride=stride, padding=(height // 2, width // 2))


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm whose moving variance follows the biased variance; PyTorch multiplies it by n / (n - 1)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels, eps=1e-3, momentum=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        count = x.numel() // x.shape[1]
        step = torch.zeros_like(self.running_var)
        moments = (self.running_mean, step, self.weight, self.bias)
        y = functional.batch_norm(x, *moments, True, self.momentum, self.eps)
        self.running_var.mul_(1 - self.momentum).add_(step * ((count - 1) / count))
        return y


class Residual(nn.Module):
    """Residual block of two convolutions; its parts have the order of Keras's variables, by depth."""

    def __init__(self, num_in: int, num_out: int, *, stride: int) -> None:
        super().__init__()
        self.first = SameConv(num_in, num_out, stride=stride)
        self.first_norm = BatchNorm(num_out)
        self.second = SameConv(num_out, num_out)
        self.shortcut = nn.Identity() if stride == 1 else SameConv(num_in, num_out, size=1, stride=stride)
        self.second_norm = BatchNorm(num_out)
        self.shortcut_norm = nn.Identity() if stride == 1 else BatchNorm(num_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        return functional.relu(y + self.shortcut_norm(self.shortcut(x)))


def cnn(input_shape: ImageShape) -> tuple[nn.Module, int]:
    """Make the body of ``mpi_train.models.zoo.cnn``; return it and the number of its features."""
    height, width, num_channels = input_shape
    height, width = (((n - 2) // 2 - 2) // 2 for n in (height, width))
    first = (nn.Conv2d(num_channels, 32, 3), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, *second, Flatten(), nn.Linear(height * width * 64, 128), nn.ReLU()), 128


def mlp(input_shape: ImageShape) -> tuple[nn.Module, int]:
    """Make the body of ``mpi_train.models.zoo.mlp``, as ``cnn`` does."""
    return nn.Sequential(Flatten(), nn.Linear(math.prod(input_shape), 128), nn.ReLU()), 128


def resnet(input_shape: ImageShape) -> tuple[nn.Module, int]:
    """Make the body of ``mpi_train.models.zoo.resnet``, as ``cnn`` does."""
    stem = (SameConv(input_shape[2], 16), BatchNorm(16), nn.ReLU())
    blocks = (Residual(16, 16, stride=1), Residual(16, 32, stride=2), Residual(32, 64, stride=2))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), Flatten()), 64


MODELS = {"cnn": cnn, "mlp": mlp, "resnet": resnet}


def build(name: str, input_shape: ImageShape, num_classes: int, *, dtype: str) -> Classifier:
    """Build a model for the CPU; arguments as ``mpi_train.models.zoo.build``.

    Raises:
        UsageError: the model does not exist in PyTorch.
    """
    if name not in MODELS:
        raise UsageError(
            f"--model: expected one of {', '.join(MODELS)}, the models in PyTorch. Got: {name}",
            remedy="one of them, or another strategy, which trains any Keras model",
        )
    body, num_features = MODELS[name](input_shape)
    model = Classifier(body, nn.Linear(num_features, num_classes), mixed=dtype == "bfloat16")
    return model.to(memory_format=torch.channels_last)


def keras_views(model: nn.Module) -> list[torch.Tensor]:
    """Return weights and moving statistics in the order and the layout of the Keras model's ``variables``.

    They are views, so that writing to them changes the model.
    """
    orders = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}  # of a convolution, a dense layer and BatchNorm
    views: list[torch.Tensor] = []
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            continue
        views.append(layer.weight.detach().permute(orders[layer.weight.ndim]))
        if layer.bias is not None:
            views.append(layer.bias.detach())
        if isinstance(layer, nn.BatchNorm2d):
            views += [layer.running_mean, layer.running_var]
    return views
