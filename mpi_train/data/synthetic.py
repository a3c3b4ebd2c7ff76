"""The synthetic stand-ins: drawn images of the shape, size and number of classes of real sets.

Made from a seed, for machines with no data and no way to get it. ``synthetic`` stands for Fashion-MNIST:
a garment is a shape with shading, filled with cloth and bent by a random affine map. ``synthetic_mnist``
are digits of random strokes, ``synthetic_cifar10`` the garments in colour before coloured walls. They are
meant to be neither trivial nor solvable, as the real sets are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mpi_train.data.canvas import SIDE, Canvas, Field, inside, line
from mpi_train.data.digits import STROKES, ink
from mpi_train.data.examples import Examples, RawData
from mpi_train.data.garments import GARMENTS, Garment
from mpi_train.data.progress_bar import progress

# Images drawn at once: few enough that the fields of one batch (0.6 MB each) stay in the cache.
_BATCH = 200


@dataclass(frozen=True)
class StandIn:
    """A data set that is drawn.

    Attributes:
        stands_for: The real one.
        class_names: Name of each label, from label 0.
        image_shape: Of one image.
        num_train, num_test: Number of examples.
        paint: Gives images, uint8 (n, *image_shape), of one class.
    """

    stands_for: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    num_train: int
    num_test: int
    paint: Callable[[Canvas, str], np.ndarray]


def draw(
    seed: int, num_train: int | None = None, num_test: int | None = None, name: str = "synthetic"
) -> RawData:
    """Draws a data set.

    Args:
        seed: The same seed gives the same images with the same version of NumPy.
        num_train, num_test: Number of images (default: as in the real set); classes are equally frequent,
            in random order.
        name: One of ``STAND_INS``.
    """
    kind = STAND_INS[name]
    counts = (num_train or kind.num_train, num_test or kind.num_test)
    with progress(f"drawing {name}", sum(counts)) as advance:
        splits = [_draw_split(kind, seed, split, n, advance) for split, n in enumerate(counts)]
    return RawData(name, splits[0], splits[1], kind.class_names)


def _draw_split(
    kind: StandIn, seed: int, split: int, num_images: int, advance: Callable[[int], None]
) -> Examples:
    rng = np.random.default_rng([seed, split])
    labels = rng.permutation(np.arange(num_images) % len(kind.class_names)).astype(np.uint8)
    images = np.empty((num_images, *kind.image_shape), np.uint8)
    for label, name in enumerate(kind.class_names):
        where = np.flatnonzero(labels == label)
        for start in range(0, len(where), _BATCH):
            batch = where[start : start + _BATCH]
            images[batch] = kind.paint(Canvas(rng, len(batch)), name)
            advance(len(batch))
    return Examples(images, labels)


def _garment(canvas: Canvas, name: str) -> np.ndarray:
    return _photograph(canvas, GARMENTS[name])


def _digit(canvas: Canvas, name: str) -> np.ndarray:
    """White ink of varying strength on black. Returns uint8 (n, SIDE, SIDE)."""
    grey = inside(ink(canvas, name)) * canvas.uniform(0.75, 1.0)
    return _pixels(grey)


def _garment_in_colour(canvas: Canvas, name: str) -> np.ndarray:
    """A garment of one colour before a wall of another. Returns uint8 (n, 32, 32, 3)."""
    grey = _photograph(canvas, GARMENTS[name])[..., np.newaxis] / np.float32(255.0)
    # From the picture's 28 pixels to 32: the wall goes on around it.
    grey = np.pad(grey, ((0, 0), (2, 2), (2, 2), (0, 0)))
    cloth = canvas.rng.uniform(0.35, 1.0, (canvas.n, 1, 1, 3)).astype(np.float32)
    wall = canvas.rng.uniform(0.0, 0.7, (canvas.n, 1, 1, 3)).astype(np.float32)
    height = np.linspace(-0.5, 0.5, 32, dtype=np.float32)[None, :, None, None]
    wall = wall + height * canvas.rng.normal(0.0, 0.25, (canvas.n, 1, 1, 3)).astype(np.float32)
    noise = 0.04 * canvas.rng.standard_normal((canvas.n, 32, 32, 3), np.float32)
    light = np.where(grey > 0, grey * cloth, wall) + noise
    return _pixels(light)


def _photograph(canvas: Canvas, garment: Garment) -> np.ndarray:
    """Fills a garment with cloth, on black, with noise. Returns uint8 (n, SIDE, SIDE)."""
    distance, shading = garment(canvas)
    light: Field = canvas.uniform(0.35, 1.0) * shading * _cloth(canvas)
    # The edge of the cloth is a little darker, as it turns away.
    light *= 1.0 - canvas.uniform(0.0, 0.4) * line(distance, 0.03, 0.08)
    light += canvas.uniform(0.01, 0.09) * canvas.rng.standard_normal(light.shape, np.float32)
    light *= inside(distance)
    return _pixels(light)


def _pixels(light: np.ndarray) -> np.ndarray:
    """From 0 to 1 into uint8; what is beyond is cut off."""
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


STAND_INS = {
    "synthetic": StandIn("fashion_mnist", tuple(GARMENTS), (SIDE, SIDE), 60_000, 10_000, _garment),
    "synthetic_mnist": StandIn("mnist", tuple(STROKES), (SIDE, SIDE), 60_000, 10_000, _digit),
    "synthetic_cifar10": StandIn("cifar10", tuple(GARMENTS), (32, 32, 3), 50_000, 10_000, _garment_in_colour),
}
"""By the names that ``--dataset`` takes."""


def stand_in_for(dataset: str) -> str:
    """The name of the drawn data set that stands for a real one."""
    return next(name for name, kind in STAND_INS.items() if kind.stands_for == dataset)
