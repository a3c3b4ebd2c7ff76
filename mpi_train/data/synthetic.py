"""Synthetic stand-ins: random images of the shape, size and number of classes of the real data sets.

Each class is a smooth random pattern. An image shows the pattern of its class shifted by some pixels, blended
with the pattern of another class, scaled in brightness and covered with noise. A linear model learns a part
of it, the cnn more, and none reaches 100%, because in some images the other pattern is the stronger one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpi_train.data.examples import Examples, RawData

NUM_CLASSES = 10

_GRID = 7  # Sides of the coarse grid of random values that a pattern interpolates.
_MAX_SHIFT = 4  # Pixels, in each direction.
_MAX_BLEND = 33  # Weight of the other pattern, in 64ths.
_MAX_NOISE = 70  # Of 255 levels of brightness.
_BATCH = 2000  # Images computed at once, to bound the memory.


@dataclass(frozen=True)
class StandIn:
    """A synthetic data set."""

    stands_for: str  # name of the real data set
    image_shape: tuple[int, ...]  # (height, width) or (height, width, channels)
    num_train: int
    num_test: int = 10_000


STAND_INS = {
    "synthetic": StandIn("fashion_mnist", (28, 28), 60_000),
    "synthetic_mnist": StandIn("mnist", (28, 28), 60_000),
    "synthetic_cifar10": StandIn("cifar10", (32, 32, 3), 50_000),
}
"""Stand-ins by the names that ``--dataset`` takes."""


def stand_in_for(dataset: str) -> str | None:
    """Return the name of the stand-in for a real data set, or None if there is none."""
    return next((name for name, kind in STAND_INS.items() if kind.stands_for == dataset), None)


def draw(
    seed: int, num_train: int | None = None, num_test: int | None = None, name: str = "synthetic"
) -> RawData:
    """Draw a synthetic data set.

    All arithmetic is on integers, so that equal seeds give equal bytes on every machine. There are as many
    images as in the real data set, or ``num_train`` and ``num_test``. Classes are equally frequent.
    """
    kind = STAND_INS[name]
    stream = name.encode()[-1]  # Different images for data sets of the same shape.
    patterns = _patterns(np.random.default_rng([seed, stream, 2]), kind.image_shape)
    train, test = (
        _draw_split(np.random.default_rng([seed, stream, split]), patterns, num_images, kind.image_shape)
        for split, num_images in enumerate((num_train or kind.num_train, num_test or kind.num_test))
    )
    return RawData(name, train, test, tuple(f"pattern {label}" for label in range(NUM_CLASSES)))


def _patterns(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return patterns from 0 to 255, int32 (NUM_CLASSES, height, width, ...), with a margin for shifts."""
    height, width = (side + 2 * _MAX_SHIFT for side in shape[:2])
    coarse = rng.integers(-160, 256, (NUM_CLASSES, _GRID, _GRID, *shape[2:]), np.int32)
    return np.maximum(_stretched(_stretched(coarse, 1, height), 2, width), 0)


def _stretched(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Interpolate linearly along ``axis`` to ``size`` values."""
    place = np.arange(size) * (_GRID - 1) * 64 // size
    weights = (place % 64).reshape([-1 if dim == axis else 1 for dim in range(array.ndim)])
    lower, upper = array.take(place // 64, axis), array.take(place // 64 + 1, axis)
    stretched: np.ndarray = (lower * (64 - weights) + upper * weights) // 64
    return stretched


def _draw_split(
    rng: np.random.Generator, patterns: np.ndarray, num_images: int, shape: tuple[int, ...]
) -> Examples:
    labels = rng.permutation(np.arange(num_images) % NUM_CLASSES)
    others = (labels + rng.integers(1, NUM_CLASSES, num_images)) % NUM_CLASSES
    # One view for each class and shift: (class, shift in y, shift in x, height, width, ...).
    views = np.lib.stride_tricks.sliding_window_view(patterns, shape[:2], axis=(1, 2))
    views = np.moveaxis(views, (-2, -1), (3, 4)).astype(np.uint8)
    images = np.empty((num_images, *shape), np.uint8)
    for start in range(0, num_images, _BATCH):
        batch = slice(start, start + _BATCH)
        n = len(labels[batch])
        one_per_image = (n, *[1] * len(shape))
        shift = rng.integers(0, 2 * _MAX_SHIFT + 1, (4, n))
        blend = rng.integers(0, _MAX_BLEND + 1, one_per_image, np.int32)
        light = views[labels[batch], shift[0], shift[1]] * (64 - blend)
        light += views[others[batch], shift[2], shift[3]] * blend
        light *= rng.integers(32, 65, one_per_image, np.int32)
        light //= 64 * 64
        light += rng.integers(-_MAX_NOISE, _MAX_NOISE + 1, light.shape, np.int8)
        images[batch] = np.clip(light, 0, 255, out=light)
    return Examples(images, labels.astype(np.uint8))
