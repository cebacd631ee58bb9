"""Puts an object into the middle of the pictures, as large as they allow, as SV3D's training data were."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..cameras import Cameras
from .anatomy import surface_points
from .creature import Parts

# Nearer parts grow faster than the object: each round corrects what the one before could not foresee.
_ROUNDS = 4


def framed(parts: Parts, cameras: Cameras, fill: float) -> Parts:
    """Return the object centred and scaled so that in the tightest picture it fills a share of the frame.

    Args:
        parts: at all the times that will be seen.
        cameras: all cameras that will see it.
        fill: reach of the object from the middle of the picture, as a share of half the picture's side.
    """
    points = surface_points(parts)
    middle = (points.amin(0) + points.amax(0)) / 2
    points = points - middle
    scale = 1.0
    for _ in range(_ROUNDS):
        scale *= fill / _reach(scale * points, cameras)
    coat = replace(
        parts.coat,
        rest_centres=parts.coat.rest_centres * scale,
        frequency=parts.coat.frequency / scale,
    )
    centres = (parts.centres - middle) * scale
    return replace(parts, centres=centres, radii=parts.radii * scale, coat=coat)


def _reach(points: torch.Tensor, cameras: Cameras) -> float:
    """Return how far points [N, 3] reach from the middle of any picture, in halves of its side."""
    to_camera = cameras.w2c_opencv()  # [V + 1, 4, 4]
    seen = torch.einsum("vij,nj->vni", to_camera[:, :3, :3], points) + to_camera[:, None, :3, 3]
    half = math.tan(math.radians(cameras.fov_deg) / 2)
    return float((seen[..., :2].abs() / seen[..., 2:]).max()) / half
