"""The synthetic stand-in: drawn garments of Fashion-MNIST's shape, size and classes, made from a seed.

For machines with no data and no way to get it. A garment is a shape with shading, filled with cloth
and bent by a random affine map. It is meant to be neither trivial nor solvable, as the real set is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mpi_train.data.canvas import SIDE, Canvas, Field, inside, line
from mpi_train.data.examples import Examples, RawData
from mpi_train.data.garments import GARMENTS, Garment
from mpi_train.data.progress import progress

# Images drawn at once: few enough that the fields of one batch (0.6 MB each) stay in the cache.
_BATCH = 200


def draw(seed: int, num_train: int = 60_000, num_test: int = 10_000) -> RawData:
    """Draws the data set ``synthetic``.

    Args:
        seed: The same seed gives the same images with the same version of NumPy.
        num_train, num_test: Number of images; classes are equally frequent, in random order.

    Returns:
        Images uint8 (n, 28, 28), labels uint8 (n,), ten classes.
    """
    with progress("drawing garments", num_train + num_test) as advance:
        splits = [_draw_split(seed, split, n, advance) for split, n in enumerate((num_train, num_test))]
    return RawData("synthetic", splits[0], splits[1], tuple(GARMENTS))


def _draw_split(seed: int, split: int, num_images: int, advance: Callable[[int], None]) -> Examples:
    rng = np.random.default_rng([seed, split])
    labels = rng.permutation(np.arange(num_images) % len(GARMENTS)).astype(np.uint8)
    images = np.empty((num_images, SIDE, SIDE), np.uint8)
    for label, garment in enumerate(GARMENTS.values()):
        where = np.flatnonzero(labels == label)
        for start in range(0, len(where), _BATCH):
            batch = where[start : start + _BATCH]
            images[batch] = _photograph(Canvas(rng, len(batch)), garment)
            advance(len(batch))
    return Examples(images, labels)


def _photograph(canvas: Canvas, garment: Garment) -> np.ndarray:
    """Fills a garment with cloth, on black, with noise. Returns uint8 (n, SIDE, SIDE)."""
    distance, shading = garment(canvas)
    light: Field = canvas.uniform(0.35, 1.0) * shading * _cloth(canvas)
    # The edge of the cloth is a little darker, as it turns away.
    light *= 1.0 - canvas.uniform(0.0, 0.4) * line(distance, 0.03, 0.08)
    light += canvas.uniform(0.01, 0.09) * canvas.rng.standard_normal(light.shape, np.float32)
    light *= inside(distance)
    pixels: np.ndarray = (np.clip(light, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return pixels


def _cloth(canvas: Canvas) -> Field:
    """Stripes in any direction, checks, or hardly anything; folds; light from one side."""
    angle = canvas.uniform(0.0, np.pi)
    pitch = canvas.uniform(4.0, 22.0)
    phase = canvas.uniform(0.0, 2 * np.pi)
    u = np.cos(angle) * canvas.x + np.sin(angle) * canvas.y
    v = np.cos(angle) * canvas.y - np.sin(angle) * canvas.x
    strength = canvas.uniform(0.0, 0.45) * canvas.chance(0.55)
    # Dark stripes on the plain cloth: on average, striped garments are darker.
    stripes = (
        0.5 * strength * (np.sin(pitch * u + phase) + canvas.chance(0.3) * np.sin(pitch * v - phase) - 1.0)
    )
    folds = canvas.uniform(0.0, 0.15) * np.sin(
        canvas.uniform(2.0, 5.0) * u + canvas.uniform(1.0, 4.0) * v * v + phase
    )
    side = canvas.normal(0.0, 0.12) * canvas.x + canvas.normal(0.0, 0.12) * canvas.y
    cloth: Field = 1.0 + stripes + folds + side
    return cloth
