"""Balls, limbs and struts: what the toys and animals of the benchmark are put together from."""

from __future__ import annotations

import math
from typing import Any

from .creature import Bone, Vector

Y, Z = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)  # axes; hinges turn about x where nothing is said
Paint = tuple[Vector, Vector, Vector]  # RGB of base, markings and underside
SIDES = (("left", 1), ("right", -1))  # the sign of x


def plain(r: float, g: float, b: float) -> Paint:
    """Return a paint of one colour."""
    return (r, g, b), (r, g, b), (r, g, b)


WHITE, CREAM, BLACK = plain(0.95, 0.94, 0.91), plain(0.96, 0.88, 0.70), plain(0.09, 0.09, 0.11)
RED, GOLD, BLUE = plain(0.82, 0.13, 0.12), plain(0.93, 0.68, 0.16), plain(0.16, 0.36, 0.72)
GREY, STEEL, WOOD = plain(0.36, 0.38, 0.42), plain(0.66, 0.70, 0.75), plain(0.55, 0.33, 0.16)
EYE: Paint = ((0.97, 0.97, 0.95), (0.06, 0.05, 0.06), (1.0, 1.0, 1.0))


def ball(name: str, parent: str, at: Vector, radii: float | Vector, paint: Paint, **bone: Any) -> Bone:
    """Return an ellipsoid that hinges on its own centre; further fields as in `Bone`."""
    half_axes = radii if isinstance(radii, tuple) else (radii, radii, radii)
    return limb(name, parent, at, (0.0, 0.0, 0.0), half_axes, paint, **bone)


def limb(
    name: str, parent: str, joint: Vector, centre: Vector, radii: Vector, paint: Paint, **bone: Any
) -> Bone:
    """Return an ellipsoid that hinges on a joint beside its centre; all fields as in `Bone`."""
    return Bone(name, parent, joint, centre, radii, colours=paint, **bone)


def strut(
    name: str, parent: str, start: Vector, end: Vector, radius: float, paint: Paint, **bone: Any
) -> Bone:
    """Return a long ellipsoid from ``start`` to ``end``, hinged at ``start``; its own +y points to ``end``.

    It reaches beyond both by a tenth of its length, so that struts in a row overlap.
    """
    x, y, z = (b - a for a, b in zip(start, end, strict=True))
    length = math.hypot(x, y, z)
    rest_deg = (math.degrees(math.acos(y / length)), math.degrees(math.atan2(x, z)), 0.0)
    radii = (radius, 0.6 * length, radius)
    centre = (0.0, length / 2, 0.0)
    return limb(name, parent, start, centre, radii, paint, rest_deg=rest_deg, **bone)


def on_circle(i: int, n: int, radius: float, height: float) -> Vector:
    """Return the place of the i-th of n things that stand evenly around the y axis, the first in front."""
    angle = 2 * math.pi * i / n
    return radius * math.sin(angle), height, radius * math.cos(angle)
