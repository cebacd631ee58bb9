"""Finds the orbit that camera matrices of other programs stand on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .cameras import Cameras

# How far cameras may be off an orbit: aim and roll in degrees, distance as a share of the radius.
LARGEST_ANGLE_DEG = 1.0
LARGEST_RADIUS_ERROR = 0.01
# Blender writes rotations with seven digits, structure from motion with about five.
_LARGEST_ROTATION_ERROR = 1e-3
# Digits of angles and lengths that double precision leaves after sines and arc tangents.
_DIGITS = 9


def fit_orbit(
    c2w: Tensor,  # [V + 1, 4, 4] float64 camera to world, OpenGL camera axes, +y up
    fov_deg: float,
    names: Sequence[str],
    centre: str = "the origin",
    largest_angle_deg: float = LARGEST_ANGLE_DEG,
    largest_radius_error: float = LARGEST_RADIUS_ERROR,
) -> Cameras:
    """Return the orbit on which all cameras stand; the first camera becomes the input view.

    Its absolute elevation becomes `input_elevation_deg`; elevations and azimuths (0 to 360 degrees) are
    relative to it, so its own azimuth is lost: the world is turned until it stands on the +z side. The radius
    is the median distance to the origin.

    Args:
        c2w: all numbers finite.
        fov_deg: field of view of the square images, degrees.
        names: what to call each camera in messages.
        centre: what to call the origin in messages.
        largest_angle_deg: how far a camera may look past the origin or be rolled, degrees.
        largest_radius_error: how far a distance may be off the median, as a share of it.

    Raises:
        ValueError: fewer than two cameras, matrices that are no rigid motions, cameras that look past the
            origin or are rolled, distances that differ, a pole.
    """
    if len(c2w) < 2:
        raise ValueError(
            f"Expected at least two different cameras, the input view and a novel view; got {len(c2w)}."
        )
    rotation, eye = c2w[:, :3, :3], c2w[:, :3, 3]
    _check_rotations(rotation, names)
    right, back = rotation[..., 0], rotation[..., 2]
    _check_aim(_angle_deg(back, eye), largest_angle_deg, names, centre)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand_as(back)
    _check_roll(_angle_deg(right, torch.linalg.cross(up, back)), largest_angle_deg, names)
    radius = eye.norm(dim=-1).median()
    _check_distances(eye.norm(dim=-1), radius, largest_radius_error, names, centre)

    x, y, z = eye.unbind(dim=-1)
    elevation = torch.rad2deg(torch.atan2(y, torch.hypot(x, z)))
    azimuth = torch.rad2deg(torch.atan2(x, z))
    return Cameras(
        _tidy(elevation - elevation[0]),
        tuple(angle % 360 for angle in _tidy((azimuth - azimuth[0]) % 360)),
        radius=round(float(radius), _DIGITS),
        fov_deg=round(fov_deg, _DIGITS),
        input_elevation_deg=round(float(elevation[0]), _DIGITS),
    )


def _tidy(angles_deg: Tensor) -> tuple[float, ...]:
    """Return angles without the last digits, which rounding made: 60, not 59.99999999999999."""
    return tuple(round(angle, _DIGITS) for angle in angles_deg.tolist())


def _angle_deg(a: Tensor, b: Tensor) -> Tensor:
    """Return the angles between vectors [N, 3] in degrees, 0 where one of them is zero."""
    return torch.rad2deg(torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(dim=-1)))


def _check_rotations(rotation: Tensor, names: Sequence[str]) -> None:
    identity = torch.eye(3, dtype=torch.float64)
    error = (rotation.mT @ rotation - identity).abs().amax(dim=(1, 2))
    worst = int(error.argmax())
    if error[worst] > _LARGEST_ROTATION_ERROR:
        raise ValueError(
            f"Expected camera axes of length 1 at right angles (to {_LARGEST_ROTATION_ERROR:g}); those of "
            f"{names[worst]} are off by {error[worst]:.3g}. Take scale and shear out of the matrices."
        )
    mirrored = torch.linalg.det(rotation) < 0
    if mirrored.any():
        raise ValueError(
            f"Expected right-handed camera axes; those of {names[int(mirrored.int().argmax())]} are mirrored "
            f"(determinant -1). Turn one axis of the matrices around."
        )


def _check_aim(error_deg: Tensor, largest_deg: float, names: Sequence[str], centre: str) -> None:
    worst = int(error_deg.argmax())
    if error_deg[worst] > largest_deg:
        raise ValueError(
            f"Expected cameras that look at {centre} (to {largest_deg:g} degree); {names[worst]} "
            f"looks {error_deg[worst]:.2f} degrees past it. Move the object's centre there, and look at it; "
            f"the camera axes are OpenGL's (x right, y up, z backward)."
        )


def _check_roll(error_deg: Tensor, largest_deg: float, names: Sequence[str]) -> None:
    worst = int(error_deg.argmax())
    if error_deg[worst] > largest_deg:
        raise ValueError(
            f"Expected upright cameras (to {largest_deg:g} degree); {names[worst]} is rolled by "
            f"{error_deg[worst]:.2f} degrees. Check which axis of the world points up, set the roll to 0, or "
            f"turn the pictures upright."
        )


def _check_distances(
    distances: Tensor, radius: Tensor, largest_error: float, names: Sequence[str], centre: str
) -> None:
    error = (distances - radius).abs()
    worst = int(error.argmax())
    if error[worst] > largest_error * radius:
        percent = 100 * error[worst] / radius if radius > 0 else math.inf
        raise ValueError(
            f"Expected cameras at one distance from {centre} (to {100 * largest_error:g} %); "
            f"{names[worst]} is at {distances[worst]:.4g}, {percent:.3g} % off the median {radius:.4g}. Move "
            f"the object's centre there, bring them to one distance, or leave such cameras out."
        )
