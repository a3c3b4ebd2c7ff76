"""What the synthetic garments are drawn on and with: pixels' places, dice, and distance fields.

A field holds a number for each pixel of a batch of images; a distance is below zero inside a shape.
Unions are minima, intersections maxima, cuts maxima with the negative (Hart 1996, "Sphere tracing").
"""

from __future__ import annotations

import numpy as np

SIDE = 28
"""Pixels an image is high and wide."""

PIXEL = 2.0 / SIDE
"""Side of a pixel, where the image is the square from -1 to 1."""

Field = np.ndarray
"""float32 (n, SIDE, SIDE), or (n, 1, 1) for one number an image."""

Number = Field | float
Point = tuple[Number, Number]


class Canvas:
    """A batch of images to draw on, each rotated, sheared, stretched and shifted in its own way.

    Attributes:
        rng: Source of all that is random.
        n: Number of images.
        x, y: Field of each pixel's place on the garment.
    """

    def __init__(self, rng: np.random.Generator, n: int) -> None:
        self.rng = rng
        self.n = n
        grid = ((np.arange(SIDE, dtype=np.float32) + 0.5) * PIXEL) - 1.0
        x = grid[None, None, :] - self.normal(0.0, 0.07)
        y = grid[None, :, None] - self.normal(0.0, 0.05)
        angle, shear = self.normal(0.0, 0.13), self.normal(0.0, 0.08)
        cos, sin = np.cos(angle), np.sin(angle)
        self.x: Field = (cos * x + sin * y) * self.uniform(0.95, 1.30)
        self.y: Field = (cos * y - sin * x + shear * x) * self.uniform(0.97, 1.20)

    def uniform(self, low: float, high: float) -> Field:
        return self.rng.uniform(low, high, (self.n, 1, 1)).astype(np.float32)

    def normal(self, mean: float, spread: float) -> Field:
        return self.rng.normal(mean, spread, (self.n, 1, 1)).astype(np.float32)

    def chance(self, probability: float) -> Field:
        """True for about this share of the images, bool (n, 1, 1)."""
        return self.rng.random((self.n, 1, 1)) < probability


def inside(distance: Field) -> Field:
    """1 inside, 0 outside, a ramp one pixel wide between."""
    coverage: Field = np.clip(0.5 - distance / PIXEL, 0.0, 1.0)
    return coverage


def line(distance: Field, half_width: Number, soft: float = PIXEL) -> Field:
    """1 where ``distance`` is near zero, falling to 0 over ``soft``."""
    coverage: Field = np.clip(1.0 - (np.abs(distance) - half_width) / soft, 0.0, 1.0)
    return coverage


def box(x: Field, y: Field, half_width: Number, top: Number, bottom: Number) -> Field:
    """Between ``top`` and ``bottom``, ``half_width`` to both sides of x = 0; all may vary with x and y."""
    distance: Field = np.maximum(np.abs(x) - half_width, np.maximum(top - y, y - bottom))
    return distance


def limb(x: Field, y: Field, start: Point, end: Point, r0: Number, r1: Number) -> Field:
    """A line between two points, with round ends, ``r0`` thick at its start and ``r1`` at its end."""
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    dx, dy = x - start[0], y - start[1]
    t = np.clip((dx * along_x + dy * along_y) / (along_x**2 + along_y**2 + 1e-6), 0.0, 1.0)
    distance: Field = np.hypot(dx - t * along_x, dy - t * along_y) - (r0 + t * (r1 - r0))
    return distance


def ellipse(x: Field, y: Field, a: Number, b: Number) -> Field:
    """Around the origin; only near the outline is it a distance."""
    return (np.sqrt((x / a) ** 2 + (y / b) ** 2) - 1.0) * np.minimum(a, b)
