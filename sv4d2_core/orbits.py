"""The orbits that people choose by name and fill in as text."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from .cameras import DEFAULT_FOV_DEG, DEFAULT_RADIUS, Cameras

FOUR_VIEWS, EIGHT_VIEWS = "4 views (sv4d2)", "8 views (sv4d2_8views)"
RING, RINGS, SWEEP, CUSTOM = "ring", "rings", "sweep", "custom"
PRESETS = (FOUR_VIEWS, EIGHT_VIEWS, RING, RINGS, SWEEP, CUSTOM)
_OFFICIAL_VIEWS = {FOUR_VIEWS: 4, EIGHT_VIEWS: 8}


def orbit(
    preset: str,
    *,
    n_views: int = 4,
    azimuths: str = "",
    elevations: str = "",
    sweep_azimuth_deg: float = 360.0,
    sweep_elevation_deg: float = 0.0,
    input_elevation_deg: float = 0.0,
    radius: float = DEFAULT_RADIUS,
    fov_deg: float = DEFAULT_FOV_DEG,
) -> Cameras:
    """Return the cameras of a preset; angles are degrees relative to the input view.

    Args:
        preset: one of `PRESETS`.
        n_views: novel views of a ring, of each of several rings, or of a sweep.
        azimuths: custom only: one number per novel view; a leading 0 is the input view.
        elevations: official orbits and custom: blank or one number per view; ring: blank or one number;
            rings: one number per ring.
        sweep_azimuth_deg, sweep_elevation_deg: see `Cameras.sweep`.
        input_elevation_deg, radius, fov_deg: see `Cameras`.

    Raises:
        ValueError: no such preset, text that holds no numbers, numbers the preset does not use or lacks.
    """
    if preset not in PRESETS:
        raise ValueError(f"Expected a preset of {', '.join(map(repr, PRESETS))}; got {preset!r}.")
    azimuths_deg, elevations_deg = parse_angles(azimuths, "azimuths"), parse_angles(elevations, "elevations")
    if azimuths_deg and preset != CUSTOM:
        raise ValueError(
            f"Expected no azimuths, as the preset {preset!r} sets them itself; got {azimuths!r}. Leave them "
            f"blank, or choose the preset {CUSTOM!r}."
        )
    if preset == SWEEP and elevations_deg:
        raise ValueError(
            f"Expected no elevations, as a sweep takes its height from sweep_elevation_deg; got "
            f"{elevations!r}. Leave them blank, or choose the preset {CUSTOM!r}."
        )
    if preset in _OFFICIAL_VIEWS:
        cameras = Cameras.from_lists(_OFFICIAL_VIEWS[preset], None, elevations_deg or None)
    elif preset == RING:
        cameras = Cameras.ring(n_views, _ring_elevation(elevations_deg))
    elif preset == RINGS:
        if not elevations_deg:
            raise ValueError(
                "Expected one elevation for each ring; got none. Fill them in, such as -15, 0, 20 for three "
                "rings."
            )
        cameras = Cameras.rings(n_views, elevations_deg)
    elif preset == SWEEP:
        cameras = Cameras.sweep(n_views, sweep_azimuth_deg, sweep_elevation_deg)
    else:
        cameras = _custom(azimuths_deg, elevations_deg)
    return replace(cameras, input_elevation_deg=input_elevation_deg, radius=radius, fov_deg=fov_deg)


def parse_angles(text: str, name: str) -> list[float]:
    """Return the numbers of a text, separated by commas, semicolons or blanks; none for a blank text.

    Raises:
        ValueError: a part is not a finite number.
    """
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
                f"Expected {name} as numbers separated by commas or blanks; got {part!r} in {text!r}. Write "
                f"degrees such as 60, 120, 180."
            )
        numbers.append(number)
    return numbers


def _ring_elevation(elevations_deg: list[float]) -> float:
    if len(elevations_deg) > 1:
        raise ValueError(
            f"Expected one elevation for the ring, or none; got {len(elevations_deg)}. Leave one, or choose "
            f"the preset {RINGS!r} for one ring at each."
        )
    return elevations_deg[0] if elevations_deg else 0.0


def _custom(azimuths_deg: list[float], elevations_deg: list[float]) -> Cameras:
    novel = azimuths_deg[1:] if azimuths_deg and azimuths_deg[0] == 0 else azimuths_deg
    if not novel:
        raise ValueError(
            f"Expected an azimuth for each novel view in the preset {CUSTOM!r}; got "
            f"{'only that of the input view, 0' if azimuths_deg else 'none'}. Fill them in, such as 60, 120."
        )
    if elevations_deg and len(elevations_deg) not in (len(novel), len(novel) + 1, 1):
        raise ValueError(
            f"Expected {len(novel)} elevations (one per novel view), or {len(novel) + 1} with the input "
            f"view's 0 first; got {len(elevations_deg)}. Give as many as azimuths."
        )
    return Cameras.from_lists(len(novel), [0.0, *novel], elevations_deg or None)
