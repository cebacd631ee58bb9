"""The field of view that a transforms file states, in whichever of its fields."""

from __future__ import annotations

import math

# How far a camera may be from a square pinhole: focal lengths and principal point, as a share.
_TOLERANCE = 0.01
# Half a pixel: some programs count pixels from their centres.
_CENTRE_TOLERANCE_PX = 0.5
_PINHOLES = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
_DISTORTIONS = ("k1", "k2", "k3", "k4", "p1", "p2")
_LARGEST_DISTORTION = 1e-3


def field_of_view_deg(camera: dict, name: str) -> float:
    """Return the field of view of a square pinhole camera, degrees.

    Args:
        camera: D-NeRF's and nerfstudio's fields: ``camera_angle_x``, ``camera_angle_y`` in radians; ``fl_x``,
            ``fl_y``, ``cx``, ``cy``, ``w``, ``h`` in pixels; ``camera_model``; ``k1`` to ``k4``, ``p1``,
            ``p2``.
        name: what to call the camera in messages.

    Raises:
        ValueError: nothing tells the field of view, values that are no numbers, an image that is not square,
            a principal point off the centre, two fields of view that differ by more than 1 %, a lens that
            is no pinhole.
    """
    sizes = {key: number(camera, key, name) for key in ("w", "h")}
    if all(sizes.values()) and sizes["w"] != sizes["h"]:
        raise ValueError(
            f"Expected square images; {name} has w = {sizes['w']:g} and h = {sizes['h']:g}. Crop or pad them."
        )
    _check_pinhole(camera, name)
    for key, size in (("cx", sizes["w"]), ("cy", sizes["h"])):
        _check_centre(number(camera, key, name), size, key, name)
    stated = _stated_deg(camera, sizes, name)
    if not stated:
        raise ValueError(
            f"Expected camera_angle_x, or fl_x with w; {name} has neither. State the field of view."
        )
    if not 0 < min(stated.values()) <= max(stated.values()) < 180:
        raise ValueError(f"Expected a field of view from 0 to 180 degrees; {name} has {_listed(stated)}.")
    if max(stated.values()) > (1 + _TOLERANCE) * min(stated.values()):
        raise ValueError(
            f"Expected one field of view across and down (to {100 * _TOLERANCE:g} %); {name} has "
            f"{_listed(stated)}. Resample the pictures to square pixels, or correct the file."
        )
    return next(iter(stated.values()))


def number(fields: dict, key: str, name: str) -> float | None:
    """Return a field as a float, None when it is not there. Raises ValueError when it is no finite number."""
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12:
        return float(value)
    raise ValueError(f"Expected a finite number for {key}; got {str(value)[:40]!r} in {name}. Correct it.")


def _stated_deg(camera: dict, sizes: dict[str, float | None], name: str) -> dict[str, float]:
    """Return every statement of the field of view, in degrees, under a text that shows its value."""
    stated = {}
    for key in ("camera_angle_x", "camera_angle_y"):
        angle = number(camera, key, name)
        if angle is not None:
            stated[f"{key} = {angle:.5g}"] = math.degrees(angle)
    for key, size in (("fl_x", sizes["w"]), ("fl_y", sizes["h"])):
        focal = number(camera, key, name)
        if focal is not None and size is not None:
            stated[f"{key} = {focal:.6g}"] = math.degrees(2 * math.atan2(size / 2, focal))
    return stated


def _listed(stated: dict[str, float]) -> str:
    return ", ".join(f"{text} ({angle:.4g} degrees)" for text, angle in stated.items())


def _check_centre(centre: float | None, size: float | None, key: str, name: str) -> None:
    if centre is None or size is None:
        return
    if abs(centre - size / 2) > max(_CENTRE_TOLERANCE_PX, _TOLERANCE * size):
        raise ValueError(
            f"Expected the principal point in the middle of the image; {name} has {key} = {centre:g} of "
            f"{size:g} pixels instead of {size / 2:g}. Crop or pad the pictures around it."
        )


def _check_pinhole(camera: dict, name: str) -> None:
    model = camera.get("camera_model")
    if model is not None and str(model).upper() not in _PINHOLES:
        raise ValueError(f"Expected a pinhole camera; {name} is {str(model)[:40]}. Rectify the pictures.")
    for key in _DISTORTIONS:
        value = number(camera, key, name) or 0.0
        if abs(value) > _LARGEST_DISTORTION:
            raise ValueError(
                f"Expected pictures without lens distortion; {name} has {key} = {value:g}. Undistort them."
            )
