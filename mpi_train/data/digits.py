"""The ten digits of the stand-in for MNIST: strokes of a pen, each drawn through points that vary.

x runs to the right and y down, both from -1 to 1.
"""

from __future__ import annotations

import itertools

import numpy as np

from mpi_train.data.canvas import Canvas, Field, limb

Stroke = list[tuple[float, float]]


def _arc(x: float, y: float, a: float, b: float, start: float, end: float, pieces: int = 9) -> Stroke:
    """Points of an ellipse around (x, y), from one angle to another in degrees; 0 is right, 90 down."""
    angles = np.radians(np.linspace(start, end, pieces + 1))
    return [(x + a * float(np.cos(t)), y + b * float(np.sin(t))) for t in angles]


STROKES: dict[str, list[Stroke]] = {
    "0": [_arc(0, 0, 0.42, 0.68, 0, 360, 14)],
    "1": [[(-0.22, -0.42), (0.05, -0.68), (0.05, 0.68)]],
    "2": [[*_arc(0, -0.32, 0.4, 0.36, 190, 395), (-0.42, 0.66), (0.45, 0.66)]],
    "3": [[*_arc(0, -0.34, 0.36, 0.33, 200, 440), *_arc(0, 0.32, 0.42, 0.36, 280, 520)]],
    "4": [[(0.12, -0.68), (-0.45, 0.2), (0.48, 0.2)], [(0.2, -0.2), (0.2, 0.7)]],
    "5": [[(0.4, -0.66), (-0.3, -0.66), (-0.34, -0.08), *_arc(-0.02, 0.28, 0.42, 0.4, 230, 500)]],
    "6": [[(0.3, -0.68), (-0.2, -0.3), *_arc(0, 0.32, 0.4, 0.36, 180, 540, 12)]],
    "7": [[(-0.42, -0.64), (0.44, -0.64), (-0.08, 0.7)]],
    "8": [_arc(0, -0.34, 0.33, 0.32, 0, 360, 12), _arc(0, 0.34, 0.4, 0.35, 0, 360, 12)],
    "9": [[*_arc(0, -0.3, 0.38, 0.36, 0, 360, 12), (0.3, 0.2), (0.18, 0.7)]],
}
"""In the order of their labels."""


def ink(canvas: Canvas, digit: str) -> Field:
    """Distance to the strokes of ``digit``, in a hand of its own for each image."""
    thick = canvas.uniform(0.07, 0.17)
    # A bend that grows along the paper, and a tremble of each point.
    bend, wide = canvas.normal(0.0, 0.14), canvas.normal(1.0, 0.13)
    distance: Field = np.full(canvas.x.shape, 9.0, np.float32)
    for stroke in STROKES[digit]:
        points = [
            (wide * x + bend * y * y + canvas.normal(0.0, 0.035), y + canvas.normal(0.0, 0.035))
            for x, y in stroke
        ]
        for start, end in itertools.pairwise(points):
            np.minimum(distance, limb(canvas.x, canvas.y, start, end, thick, thick), out=distance)
    return distance
