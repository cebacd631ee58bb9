"""Orbits: chosen by name and filled in as text, or found in given camera matrices."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .cameras import DEFAULT_FOV_DEG, DEFAULT_RADIUS, Cameras
from .messages import cut

FOUR_VIEWS, EIGHT_VIEWS, FOR_SCENES = "4 views (sv4d2)", "8 views (sv4d2_8views)", "4D scene (8 views)"
RING, RINGS, SWEEP, CUSTOM = "ring", "rings", "sweep", "custom"
PRESETS = (FOUR_VIEWS, EIGHT_VIEWS, FOR_SCENES, RING, RINGS, SWEEP, CUSTOM)
_OFFICIAL_VIEWS = {FOUR_VIEWS: 4, EIGHT_VIEWS: 8}


def orbit(
    preset: str,
    *,
    n_views: int = 4,  # novel views of a ring, of each of several rings, or of a sweep
    azimuths: str = "",  # custom only: one number per novel view; a leading 0 is the input view
    elevations: str = "",  # one number per view or ring; blank: the input's
    sweep_azimuth_deg: float = 360.0,
    sweep_elevation_deg: float = 0.0,
    input_elevation_deg: float = 0.0,
    radius: float = DEFAULT_RADIUS,
    fov_deg: float = DEFAULT_FOV_DEG,
) -> Cameras:
    """Return the cameras of one of `PRESETS`; angles are degrees relative to the input view.

    Raises ValueError: no such preset, text without numbers, numbers that the preset does not use or lacks.
    """
    if preset not in PRESETS:
        raise ValueError(f"Expected a preset of {', '.join(map(repr, PRESETS))}; got {preset!r}.")
    azimuths_deg, elevations_deg = parse_angles(azimuths, "azimuths"), parse_angles(elevations, "elevations")
    for name, text, unused in (
        ("azimuths", azimuths, azimuths_deg and preset != CUSTOM),
        ("elevations", elevations, elevations_deg and preset == FOR_SCENES),
    ):
        if unused:
            raise ValueError(
                f"Expected no {name}, as the preset {preset!r} sets them itself; got {cut(repr(text))}. "
                f"Choose the preset {CUSTOM!r} for them."
            )
    if preset == SWEEP and elevations_deg:
        raise ValueError(
            f"Expected no elevations, as a sweep takes its height from sweep_elevation_deg; got "
            f"{cut(repr(elevations))}. Leave them blank."
        )
    if preset == RING and len(elevations_deg) > 1:
        raise ValueError(
            f"Expected one elevation for the ring, or none; got {len(elevations_deg)}. Leave one, or choose "
            f"{RINGS!r} for one ring at each."
        )
    if preset == RINGS and not elevations_deg:
        raise ValueError("Expected one elevation for each ring; got none. Fill them in, such as -15, 0, 20.")
    if preset in _OFFICIAL_VIEWS:
        cameras = Cameras.from_lists(_OFFICIAL_VIEWS[preset], None, elevations_deg or None)
    elif preset == FOR_SCENES:
        cameras = Cameras.for_scenes()
    elif preset in (RING, RINGS):
        cameras = Cameras.rings(n_views, elevations_deg or [0.0])
    elif preset == SWEEP:
        cameras = Cameras.sweep(n_views, sweep_azimuth_deg, sweep_elevation_deg)
    else:
        # With as many elevations, the first not 0, an azimuth of 0 is of a view above or below the input.
        above = len(elevations_deg) == len(azimuths_deg) and elevations_deg[:1] != [0]
        novel = azimuths_deg[1:] if azimuths_deg[:1] == [0] and not above else azimuths_deg
        if not novel:
            raise ValueError(
                f"Expected an azimuth for each novel view in the preset {CUSTOM!r}, such as 60, 120; got "
                f"{'only that of the input view, 0' if azimuths_deg else 'none'}."
            )
        if elevations_deg and len(elevations_deg) not in (1, len(novel), len(novel) + 1):
            raise ValueError(
                f"Expected {len(novel)} elevations (one per novel view), or {len(novel) + 1} with the input "
                f"view's 0 first; got {len(elevations_deg)}. Give as many as azimuths."
            )
        cameras = Cameras.from_lists(len(novel), [0.0, *novel], elevations_deg or None)
    return replace(cameras, input_elevation_deg=input_elevation_deg, radius=radius, fov_deg=fov_deg)


def parse_angles(text: str, name: str) -> list[float]:
    """Return the numbers of a text, separated by commas, semicolons or blanks; none for a blank text."""
    numbers = []
    for part in re.split(r"[\s,;]+", text.strip(" \t\r\n,;[]()")):
        if not part:
            continue
        try:
            number = float(part.removesuffix("°"))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(
                f"Expected {name} as numbers separated by commas or blanks; got {cut(repr(part))} in "
                f"{cut(repr(text))}."
            )
        numbers.append(number)
    return numbers


_LARGEST_ROTATION_ERROR = 1e-3  # Blender writes seven digits, structure from motion about five
_DIGITS = 9  # that double precision leaves after sines and arc tangents: 60, not 59.99999999


def fit_orbit(
    c2w: Tensor,  # [V + 1, 4, 4] float64 camera to world, OpenGL camera axes, +y up, finite
    fov_deg: float,
    names: Sequence[str],
    centre: str = "the origin",
    largest_angle_deg: float = 1.0,  # by which a camera may look past the origin or be rolled
    largest_radius_error: float = 0.01,  # by which a distance may be off the median, as a share of it
) -> Cameras:
    """Return the orbit on which all cameras stand; the first camera becomes the input view.

    Its place in the world, which is not turned, is in `input_elevation_deg` and `input_azimuth_deg`. Azimuths
    are 0 to 360 degrees, the radius is the median distance to the origin. Messages call cameras ``names`` and
    the origin ``centre``. Raises ValueError: fewer than two cameras, no rigid motions, cameras that look past
    the origin or are rolled, distances that differ, a pole.
    """
    if len(c2w) < 2:
        raise ValueError(
            f"Expected at least two different cameras, the input view and a novel view; got {len(c2w)}."
        )
    rotation, eye = c2w[:, :3, :3], c2w[:, :3, 3]
    identity = torch.eye(3, dtype=torch.float64)
    error, worst = _largest((rotation.mT @ rotation - identity).abs().amax(dim=(1, 2)))
    if error > _LARGEST_ROTATION_ERROR:
        raise ValueError(
            f"Expected camera axes of length 1 at right angles (to {_LARGEST_ROTATION_ERROR:g}); those of "
            f"{names[worst]} are off by {error:.3g}. Take scale and shear out of the matrices."
        )
    mirrored, worst = _largest((torch.linalg.det(rotation) < 0).double())
    if mirrored:
        raise ValueError(
            f"Expected right-handed camera axes; those of {names[worst]} are mirrored (determinant -1). Turn "
            f"one axis of the matrices around."
        )
    right, back = rotation[..., 0], rotation[..., 2]
    error_deg, worst = _largest(_angle_deg(back, eye))
    if error_deg > largest_angle_deg:
        raise ValueError(
            f"Expected cameras that look at {centre} (to {largest_angle_deg:g} degree); {names[worst]} "
            f"looks {error_deg:.2f} degrees past it. Move the object there; camera axes are OpenGL's."
        )
    up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand_as(back)
    error_deg, worst = _largest(_angle_deg(right, torch.linalg.cross(up, back)))
    if error_deg > largest_angle_deg:
        raise ValueError(
            f"Expected upright cameras (to {largest_angle_deg:g} degree); {names[worst]} is rolled by "
            f"{error_deg:.2f} degrees. Check which axis of the world points up, or set the roll to 0."
        )
    distances = eye.norm(dim=-1)
    radius = float(distances.median())
    error, worst = _largest((distances - radius).abs())
    if error > largest_radius_error * radius:
        percent = 100 * error / radius if radius > 0 else math.inf
        raise ValueError(
            f"Expected cameras at one distance from {centre} (to {100 * largest_radius_error:g} %); "
            f"{names[worst]} is at {distances[worst]:.4g}, {percent:.3g} % off the median {radius:.4g}. "
            f"Leave such cameras out."
        )
    x, y, z = eye.unbind(dim=-1)
    elevation = torch.rad2deg(torch.atan2(y, torch.hypot(x, z)))
    azimuth = torch.rad2deg(torch.atan2(x, z))
    return Cameras(
        tuple(round(angle, _DIGITS) for angle in (elevation - elevation[0]).tolist()),
        tuple(round(angle, _DIGITS) % 360 for angle in ((azimuth - azimuth[0]) % 360).tolist()),
        radius=round(radius, _DIGITS),
        fov_deg=round(fov_deg, _DIGITS),
        input_elevation_deg=round(float(elevation[0]), _DIGITS),
        input_azimuth_deg=round(float(azimuth[0]), _DIGITS) % 360,
    )


def _largest(errors: Tensor) -> tuple[float, int]:
    worst = int(errors.argmax())
    return float(errors[worst]), worst


def _angle_deg(a: Tensor, b: Tensor) -> Tensor:
    return torch.rad2deg(torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(dim=-1)))
