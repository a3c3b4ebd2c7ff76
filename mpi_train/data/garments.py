"""The ten kinds of garment of the synthetic stand-in, as shapes with random proportions.

x runs to the right and y down, both from -1 to 1. Kinds overlap as they do in the real set: a shirt
whose buttons do not show is a pullover, a high sneaker is a boot.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mpi_train.data.canvas import Canvas, Field, box, ellipse, inside, limb, line

Garment = Callable[[Canvas], tuple[Field, Field]]
"""Gives the distance to the outline and the shading inside it (a factor, 1 for plain cloth)."""


# Garments for the upper body: a torso, sleeves, a neck.


def _top(
    canvas: Canvas,
    *,
    shoulder: Field,
    waist: Field,
    hem: Field,
    bottom: Field,
    sleeve: Field,
    spread: Field,
    neck: Field,
    thick: Field,
) -> Field:
    """Torso with two sleeves and a round neck.

    Args:
        canvas: To draw on.
        shoulder, waist, hem: Half widths.
        bottom: y of the hem.
        sleeve: Length of the sleeves; near 0 there are none.
        spread: Angle of the sleeves away from the body, in radians.
        neck: Depth of the neck.
        thick: Half width of a sleeve at the shoulder.
    """
    x, y = np.abs(canvas.x), canvas.y
    t = np.clip((y + 0.8) / (bottom + 0.8), 0.0, 1.0)
    half_width = shoulder + t * (hem - shoulder) + 4.0 * t * (1.0 - t) * (waist - 0.5 * (shoulder + hem))
    torso = box(x, y, half_width, -0.85 + 0.3 * x, bottom)
    at_x, at_y = shoulder - 0.6 * thick, -0.68 + 0.8 * thick
    wrist = (at_x + sleeve * np.sin(spread), at_y + sleeve * np.cos(spread))
    arm = limb(x, y, (at_x, at_y), wrist, thick, 0.8 * thick)
    body = np.minimum(torso, np.where(sleeve < 0.08, 1.0, arm))
    outline: Field = np.maximum(body, -ellipse(x, y + 0.87, canvas.uniform(0.14, 0.26), neck))
    return outline


def _t_shirt(canvas: Canvas) -> tuple[Field, Field]:
    shoulder = canvas.normal(0.50, 0.05)
    width = shoulder * canvas.uniform(0.85, 1.05)
    distance = _top(
        canvas,
        shoulder=shoulder,
        waist=width * canvas.uniform(0.92, 1.02),
        hem=width,
        bottom=canvas.normal(0.80, 0.08),
        sleeve=canvas.normal(0.36, 0.12),
        spread=canvas.uniform(0.45, 1.0),
        neck=canvas.uniform(0.06, 0.32),
        thick=canvas.uniform(0.13, 0.22),
    )
    chest = ellipse(canvas.x, canvas.y + 0.15, canvas.uniform(0.1, 0.3), canvas.uniform(0.06, 0.25))
    return distance, 1.0 + canvas.uniform(-0.6, 0.6) * canvas.chance(0.35) * inside(chest)


def _pullover(canvas: Canvas) -> tuple[Field, Field]:
    shoulder = canvas.normal(0.48, 0.05)
    width = shoulder * canvas.uniform(0.88, 1.08)
    bottom = canvas.normal(0.80, 0.07)
    distance = _top(
        canvas,
        shoulder=shoulder,
        waist=width,
        hem=width,
        bottom=bottom,
        sleeve=canvas.normal(1.15, 0.16),
        spread=canvas.uniform(0.10, 0.38),
        neck=canvas.uniform(0.04, 0.20),
        thick=canvas.uniform(0.13, 0.20),
    )
    ribs = line(canvas.y - bottom, canvas.uniform(0.05, 0.16)) * canvas.uniform(0.0, 0.4)
    return distance, 1.0 - ribs


def _shirt(canvas: Canvas) -> tuple[Field, Field]:
    shoulder = canvas.normal(0.48, 0.05)
    width = shoulder * canvas.uniform(0.84, 1.05)
    short = canvas.chance(0.35)
    distance = _top(
        canvas,
        shoulder=shoulder,
        waist=width * canvas.uniform(0.90, 1.0),
        hem=width,
        bottom=canvas.normal(0.83, 0.08),
        sleeve=np.where(short, canvas.normal(0.42, 0.12), canvas.normal(1.10, 0.16)),
        spread=np.where(short, canvas.uniform(0.4, 0.9), canvas.uniform(0.10, 0.38)),
        neck=canvas.uniform(0.05, 0.22),
        thick=canvas.uniform(0.12, 0.19),
    )
    x, y = np.abs(canvas.x), canvas.y
    buttons = line(canvas.x, 0.01) * (0.6 + 0.4 * np.sin(canvas.uniform(14.0, 24.0) * y))
    collar = limb(x, y, (0.05, -0.55), (0.22, -0.82), 0.05, 0.07)
    marks = canvas.uniform(0.0, 0.6) * buttons - canvas.uniform(-0.1, 0.4) * inside(collar)
    return distance, 1.0 - marks


def _coat(canvas: Canvas) -> tuple[Field, Field]:
    shoulder = canvas.normal(0.48, 0.05)
    width = shoulder * canvas.uniform(0.92, 1.18)
    distance = _top(
        canvas,
        shoulder=shoulder,
        waist=width * canvas.uniform(0.90, 1.02),
        hem=width,
        bottom=canvas.normal(0.92, 0.07),
        sleeve=canvas.normal(1.18, 0.14),
        spread=canvas.uniform(0.08, 0.32),
        neck=canvas.uniform(0.06, 0.28),
        thick=canvas.uniform(0.14, 0.21),
    )
    x, y = np.abs(canvas.x), canvas.y
    opening = line(canvas.x - canvas.normal(0.0, 0.04), canvas.uniform(0.0, 0.05)) * canvas.uniform(0.1, 0.9)
    lapel = line(x - np.maximum(canvas.uniform(-0.1, 0.3) - 0.35 * (y + 0.6), 0.0), 0.01) * canvas.uniform(
        0.0, 0.6
    )
    pocket = line(y - canvas.uniform(0.2, 0.4), 0.01) * (np.abs(x - 0.28) < 0.13) * canvas.uniform(0.0, 0.5)
    belt = line(y - canvas.uniform(0.0, 0.15), 0.04) * canvas.chance(0.25) * canvas.uniform(0.2, 0.6)
    return distance, 1.0 - np.maximum(np.maximum(opening, lapel * (y < 0.2)), np.maximum(pocket, belt))


def _dress(canvas: Canvas) -> tuple[Field, Field]:
    shoulder = canvas.normal(0.36, 0.05)
    hem = canvas.uniform(0.32, 0.70)
    sleeve = np.where(canvas.chance(0.55), 0.0, np.where(canvas.chance(0.6), 0.25, canvas.uniform(0.3, 1.1)))
    distance = _top(
        canvas,
        shoulder=shoulder,
        waist=(shoulder + hem) * canvas.uniform(0.34, 0.46),
        hem=hem,
        bottom=canvas.normal(0.98, 0.05),
        sleeve=sleeve.astype(np.float32),
        spread=canvas.uniform(0.15, 0.6),
        neck=canvas.uniform(0.06, 0.34),
        thick=canvas.uniform(0.09, 0.14),
    )
    waist = line(canvas.y - canvas.uniform(-0.2, 0.1), canvas.uniform(0.0, 0.06)) * canvas.uniform(-0.4, 0.4)
    return distance, 1.0 - waist * canvas.chance(0.6)


def _trouser(canvas: Canvas) -> tuple[Field, Field]:
    x, y = np.abs(canvas.x), canvas.y
    hip, ankle = canvas.uniform(0.26, 0.46), canvas.uniform(0.10, 0.22)
    crotch, bottom = canvas.uniform(-0.45, -0.05), canvas.uniform(0.70, 1.0)
    gap = canvas.uniform(0.02, 0.20)
    t = np.clip((y - crotch) / (bottom - crotch), 0.0, 1.0)
    middle = 0.5 * hip + t * (gap + ankle - 0.5 * hip)
    legs = np.abs(x - middle) - (0.5 * hip + t * (ankle - 0.5 * hip))
    inside_leg = np.where(y < crotch, x - hip * (1.0 - 0.12 * (crotch - y)), legs)
    distance = np.maximum(inside_leg, np.maximum(-0.92 - y, y - bottom))
    fly = line(canvas.x, 0.0) * (y < crotch) * canvas.uniform(0.0, 0.5)
    waistband = line(y + 0.84, 0.04) * canvas.uniform(-0.2, 0.4)
    return distance, 1.0 - np.maximum(fly, waistband)


# Shoes, seen from the side: a sole, an upper, a shaft. Most toes point to the left.


def _shoe(canvas: Canvas, toe: Field, shaft: Field, slope: Field) -> tuple[Field, Field, Field, Field]:
    """Outline of a closed shoe.

    Args:
        toe: Height of the upper over the toes.
        shaft: Height of the opening at the ankle.
        slope: How gently the upper rises from toe to ankle.

    Returns:
        The distance; x with the toes to the left; y of the sole's top edge; height of the upper there.
    """
    x = np.where(canvas.chance(0.12), -canvas.x, canvas.x)
    y = canvas.y
    floor = canvas.normal(0.42, 0.07) + 0.0 * x
    rise = np.clip((x - canvas.normal(-0.12, 0.10)) / slope, 0.0, 1.0)
    height = toe + (shaft - toe) * rise * rise * (3.0 - 2.0 * rise)
    # Toes are round, and a heel leans a little.
    front = np.sqrt(np.clip(1.0 - np.clip(-(x + 0.45) / 0.45, 0.0, 1.0) ** 2, 0.0, 1.0))
    upper = np.maximum(np.maximum(floor - height * front - y, y - floor), x - 0.80 - 0.06 * (y - floor))
    return np.maximum(upper, -0.90 - x), x, floor, height


def _sole(canvas: Canvas, x: Field, floor: Field, thickness: Field) -> Field:
    """A slab as long as the shoe, its top a little inside the upper so that no gap shows."""
    slab = np.maximum(floor - 0.02 - canvas.y, canvas.y - floor - thickness)
    outline: Field = np.maximum(np.abs(x + 0.04) - 0.88, slab)
    return outline


def _sneaker(canvas: Canvas) -> tuple[Field, Field]:
    shaft = canvas.normal(0.62, 0.13)
    upper, x, floor, height = _shoe(canvas, canvas.uniform(0.22, 0.36), shaft, canvas.uniform(0.35, 0.9))
    thickness = canvas.uniform(0.06, 0.20)
    sole = _sole(canvas, x, floor, thickness)
    laces = np.sin(canvas.uniform(18.0, 30.0) * (x + 0.6 * canvas.y)) * line(
        canvas.y - floor + height, 0.1
    ) * (np.abs(x + 0.05) < 0.25) * canvas.uniform(0.0, 0.5)  # fmt: skip
    logo = line(canvas.y - floor + 0.2 + canvas.normal(0.0, 0.8) * (x - 0.1), 0.03) * (np.abs(x - 0.1) < 0.25)
    shading = 1.0 + laces + canvas.uniform(-0.6, 0.6) * logo + canvas.uniform(-0.5, 0.5) * inside(sole)
    return np.minimum(upper, sole), shading


def _ankle_boot(canvas: Canvas) -> tuple[Field, Field]:
    shaft = canvas.normal(1.08, 0.17)
    upper, x, floor, _ = _shoe(canvas, canvas.uniform(0.26, 0.42), shaft, canvas.uniform(0.18, 0.55))
    sole = _sole(canvas, x, floor, canvas.uniform(0.04, 0.14))
    heel_height = canvas.uniform(0.05, 0.40)
    heel = np.maximum(
        np.abs(x - 0.62) - canvas.uniform(0.08, 0.22),
        np.maximum(floor - canvas.y, canvas.y - floor - heel_height),
    )
    zipper = line(x - canvas.normal(0.40, 0.15), 0.0) * canvas.uniform(0.0, 0.5)
    cuff = line(canvas.y - floor + shaft, canvas.uniform(0.04, 0.18)) * canvas.uniform(-0.3, 0.4)
    return np.minimum(np.minimum(upper, sole), heel), 1.0 - zipper - cuff


def _sandal(canvas: Canvas) -> tuple[Field, Field]:
    upper, x, floor, _ = _shoe(
        canvas, canvas.uniform(0.20, 0.36), canvas.normal(0.60, 0.18), canvas.uniform(0.3, 0.9)
    )
    lean = canvas.normal(0.0, 1.0)
    straps = np.sin(
        canvas.uniform(5.0, 15.0) * (x + lean * (canvas.y - floor)) + canvas.uniform(0.0, 2 * np.pi)
    )
    open_upper = np.maximum(upper, 0.12 * (straps - canvas.uniform(-0.6, 0.55)))
    sole = _sole(canvas, x, floor, canvas.uniform(0.03, 0.16))
    lift = canvas.uniform(0.0, 0.45) * canvas.chance(0.6)
    wedge = np.maximum(
        np.abs(x - 0.60) - canvas.uniform(0.05, 0.25), np.maximum(floor - canvas.y, canvas.y - floor - lift)
    )
    return np.minimum(np.minimum(open_upper, sole), wedge), 1.0 - canvas.uniform(-0.3, 0.4) * inside(sole)


def _bag(canvas: Canvas) -> tuple[Field, Field]:
    x, y = canvas.x, canvas.y
    top, bottom = canvas.uniform(-0.35, 0.15), canvas.uniform(0.55, 0.90)
    half_width = canvas.uniform(0.50, 0.90)
    body = box(x, y, half_width + canvas.normal(0.0, 0.12) * (y - top), top, bottom)
    # The corners of the square cut by an ellipse that is a little larger are round.
    middle = 0.5 * (top + bottom)
    body = np.maximum(
        body, ellipse(x, y - middle, half_width * 1.25, (bottom - top) * canvas.uniform(0.60, 0.75))
    )
    handle_width = half_width * canvas.uniform(0.35, 0.85)
    handle = np.abs(ellipse(x, y - top, handle_width, canvas.uniform(0.12, 0.75))) - canvas.uniform(
        0.02, 0.07
    )
    handle = np.where(canvas.chance(0.15), 1.0, np.maximum(handle, y - top - 0.05))
    flap = line(y - top - canvas.uniform(0.1, 0.4), 0.01) * canvas.uniform(0.0, 0.6)
    clasp = inside(ellipse(x, y - middle, canvas.uniform(0.04, 0.12), canvas.uniform(0.04, 0.12)))
    return np.minimum(body, handle), 1.0 - flap + canvas.uniform(-0.6, 0.6) * clasp


GARMENTS: dict[str, Garment] = {
    "t-shirt": _t_shirt,
    "trouser": _trouser,
    "pullover": _pullover,
    "dress": _dress,
    "coat": _coat,
    "sandal": _sandal,
    "shirt": _shirt,
    "sneaker": _sneaker,
    "bag": _bag,
    "ankle boot": _ankle_boot,
}
"""In the order of their labels."""
