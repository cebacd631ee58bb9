"""Draws where the cameras stand around the object, with their numbers and angles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..cameras import Cameras

_WIDTH, _LARGEST_SCENE_HEIGHT, _ROW, _MARGIN = 720, 560, 30, 18
_TEXT_SIZE, _CAPTION_SIZE, _BADGE, _NAME_WIDTH = 19, 18, 19, 56
# Everything is drawn larger and then reduced, which smooths the edges.
_OVERSAMPLING = 3
_TABLE_COLUMNS, _TABLE_ROWS = 3, 8

# Where the scene is looked at from: a bit to the left of the input camera and from above.
_EYE_AZIMUTH_DEG, _EYE_ELEVATION_DEG, _EYE_DISTANCE = -28.0, 27.0, 5.2


def _eye_axes() -> np.ndarray:
    """Return right, up and backward of the eye that the scene is drawn for, [3, 3]."""
    a, e = math.radians(_EYE_AZIMUTH_DEG), math.radians(_EYE_ELEVATION_DEG)
    right = np.array([math.cos(a), 0.0, -math.sin(a)])
    back = np.array([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])
    return np.stack([right, np.cross(back, right), back])


_EYE_AXES = _eye_axes()

_INPUT, _NOVEL = (222, 104, 16), (42, 98, 190)
_PAPER, _INK, _FAINT, _FLOOR = (255, 255, 255), (48, 52, 60), (196, 202, 212), (243, 245, 249)
# Radii are drawn as 1, whatever they are; the object's cube and the camera's pyramid in the same unit.
_CUBE, _PYRAMID, _RIM = 0.13, 0.22, 1.08
# How far out a camera's number stands.
_BADGE_DISTANCE = 1.17
_FEW_ELEVATIONS = 4
# More cameras than this are drawn smaller.
_CROWD, _SMALLEST_BADGE_SHARE = 10, 0.55


def rig_picture(cameras: Cameras) -> Image.Image:
    """Return a picture of the cameras around the object: the input's in orange, the novel ones in blue.

    Below the scene stand azimuth and elevation of every view (of the first ones, where there are many).
    """
    rows = min(math.ceil(len(cameras.azimuths_deg) / _TABLE_COLUMNS), _TABLE_ROWS)
    outermost = (cameras.eyes() / cameras.radius).numpy() * _BADGE_DISTANCE
    zoom, origin, scene_height = _fit(np.concatenate([outermost, _RIM * _circle(0.0)]))
    height = scene_height + (rows + 2) * _ROW
    big = Image.new("RGB", (_WIDTH * _OVERSAMPLING, height * _OVERSAMPLING), _PAPER)
    _draw_scene(_Pen(ImageDraw.Draw(big, "RGBA"), zoom, origin), cameras)
    picture = big.resize((_WIDTH, height), Image.Resampling.LANCZOS)
    _write_table(ImageDraw.Draw(picture), cameras, scene_height, rows)
    return picture


def _fit(points: np.ndarray) -> tuple[float, np.ndarray, int]:
    """Return zoom, place of the world's origin (x, y) and height so that [N, 3] points fill the scene."""
    flat = _project(points)
    low, high = flat.min(axis=0), flat.max(axis=0)
    room = 2 * (_BADGE + _MARGIN)
    zoom = float(min((_WIDTH - room) / (high - low)[0], (_LARGEST_SCENE_HEIGHT - room) / (high - low)[1]))
    height = round(zoom * float((high - low)[1])) + room
    return zoom, np.array([_WIDTH, height]) / 2 - zoom * (low + high) / 2, height


def _project(points: np.ndarray) -> np.ndarray:
    """Return [..., 2] positions, x to the right and y down, of [..., 3] world points in the drawing."""
    right, up, _ = _EYE_AXES
    flat = np.stack([points @ right, -(points @ up)], axis=-1)
    return flat / _depth(points)[..., None]


def _depth(points: np.ndarray) -> np.ndarray:
    """Return how far [..., 3] world points stand from the eye that the scene is drawn for."""
    return _EYE_DISTANCE - points @ _EYE_AXES[2]


class _Pen:
    """Draws in the scene's units: world points become pixels of the enlarged picture."""

    def __init__(self, draw: ImageDraw.ImageDraw, zoom: float, origin: np.ndarray) -> None:
        self._draw, self._zoom, self._origin = draw, zoom, origin

    def at(self, points: np.ndarray) -> list[tuple[float, float]]:
        """Return the pixels (x, y) of [N, 3] world points."""
        pixels = (self._origin + self._zoom * _project(points)) * _OVERSAMPLING
        return [(float(x), float(y)) for x, y in pixels]

    def line(self, points: np.ndarray, colour: tuple[int, ...], width: float) -> None:
        """Draw a line through [N, 3] world points."""
        self._draw.line(self.at(points), colour, round(width * _OVERSAMPLING), joint="curve")

    def polygon(self, points: np.ndarray, fill: tuple[int, ...], outline: tuple[int, ...]) -> None:
        """Draw a filled polygon of [N, 3] world points."""
        self._draw.polygon(self.at(points), fill, outline, width=round(1.4 * _OVERSAMPLING))

    def badge(self, point: np.ndarray, text: str, colour: tuple[int, ...], radius: float) -> None:
        """Draw a filled circle with a short text at a world point [3]."""
        x, y = self.at(point[None])[0]
        r = radius * _OVERSAMPLING
        self._draw.ellipse((x - r, y - r, x + r, y + r), (*colour, 255), _PAPER, round(1.5 * _OVERSAMPLING))
        size = (1.15 if len(text) < 3 else 0.9) * r
        self._draw.text((x, y), text, _PAPER, ImageFont.load_default(size), anchor="mm")


def _draw_scene(pen: _Pen, cameras: Cameras) -> None:
    eyes = (cameras.eyes() / cameras.radius).numpy()
    rotations = cameras.c2w_opengl()[:, :3, :3].numpy()
    _draw_floor(pen)
    for path in _paths(cameras):
        pen.line(path, (*_NOVEL, 110), 1.6)
    absolute = [e + cameras.input_elevation_deg for e in cameras.elevations_deg]
    for v, (azimuth, elevation) in enumerate(zip(cameras.azimuths_deg, absolute, strict=True)):
        colour = _INPUT if v == 0 else _NOVEL
        foot = _on_sphere(np.full(2, azimuth), np.zeros(2))[0]
        if elevation:
            arc = _on_sphere(np.full(24, azimuth), np.linspace(0, elevation, 24))
            pen.line(arc, (*colour, 90), 1.6)
            pen.line(np.stack([np.zeros(3), foot]), (*_FAINT, 255), 1.0)
        pen.line(np.stack([np.zeros(3), eyes[v]]), (*colour, 70), 1.2)

    spread = min(1.0, math.sqrt(_CROWD / len(eyes)))
    half = _PYRAMID * min(max(math.tan(math.radians(cameras.fov_deg) / 2), 0.3), 0.6)
    order = sorted(range(len(eyes)), key=lambda v: -float(_depth(eyes[v])))
    behind = [v for v in order if _depth(eyes[v]) > _EYE_DISTANCE]
    for v in behind:
        _draw_camera(pen, v, eyes[v], rotations[v], spread, half)
    _draw_object(pen)
    for v in order[len(behind) :]:
        _draw_camera(pen, v, eyes[v], rotations[v], spread, half)


def _draw_floor(pen: _Pen) -> None:
    """Draw the level of the object's middle, with a tick every 30 degrees of azimuth."""
    level = _circle(0.0)
    pen.polygon(_RIM * level, (*_FLOOR, 255), (*_FLOOR, 255))
    pen.line(level, (*_FAINT, 255), 1.6)
    for azimuth in range(0, 360, 30):
        direction = _on_sphere(np.array([azimuth]), np.zeros(1))[0]
        pen.line(np.stack([0.97 * direction, 1.03 * direction]), (*_FAINT, 255), 1.6)


def _draw_object(pen: _Pen) -> None:
    """Draw the cube that stands for the object; the side that the input camera sees has its colour."""
    faces = []
    for axis in range(3):
        for sign in (-1, 1):
            corners = np.array([[sign, -1, -1], [sign, -1, 1], [sign, 1, 1], [sign, 1, -1]], dtype=float)
            faces.append((_CUBE * np.roll(corners, axis, axis=1), axis, sign))
    shades = {1: 244, 0: 206, 2: 224}
    for corners, axis, sign in sorted(faces, key=lambda face: -float(_depth(face[0].mean(axis=0)))):
        seen_by_input = axis == 2 and sign == 1
        fill = tuple((c + 2 * 255) // 3 for c in _INPUT) if seen_by_input else (shades[axis],) * 3
        pen.polygon(corners, (*fill, 255), (*_INK, 255))


def _draw_camera(
    pen: _Pen, view: int, eye: np.ndarray, rotation: np.ndarray, spread: float, half: float
) -> None:
    """Draw a camera as the pyramid of what it sees, and its number."""
    # What is farther away is paler, as in haze.
    haze = float(np.clip((_depth(eye) - _EYE_DISTANCE + 1) / 2, 0, 1))
    strong = _INPUT if view == 0 else _NOVEL
    colour = tuple(round(c + 0.35 * haze * (255 - c)) for c in strong)
    corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    in_camera = np.concatenate([corners, np.full((4, 1), -_PYRAMID)], axis=1)
    base = eye + spread * in_camera @ rotation.T
    sides = [np.stack([eye, base[i], base[(i + 1) % 4]]) for i in range(4)] + [base]
    for side in sorted(sides, key=lambda side: -float(_depth(side.mean(axis=0)))):
        pen.polygon(side, (*colour, 70), (*colour, 255))
    place = eye * (1 + (_BADGE_DISTANCE - 1) * spread)
    pen.badge(place, "in" if view == 0 else str(view), colour, _BADGE * max(spread, _SMALLEST_BADGE_SHARE))


def _paths(cameras: Cameras) -> list[np.ndarray]:
    """Return the lines that the novel cameras lie on: circles of equal elevation, or their way in order."""
    absolute = np.array(cameras.elevations_deg) + cameras.input_elevation_deg
    elevations = sorted(set(absolute[1:].tolist()))
    if len(elevations) <= _FEW_ELEVATIONS:
        return [_circle(e) for e in elevations if e]
    azimuths = np.array(cameras.azimuths_deg)
    shorter_way = (np.diff(azimuths) + 180) % 360 - 180
    steps = np.linspace(0, 1, 12)
    return [
        _on_sphere(azimuths[i] + steps * turn, absolute[i] + steps * (absolute[i + 1] - absolute[i]))
        for i, turn in enumerate(shorter_way)
    ]


def _circle(elevation_deg: float) -> np.ndarray:
    """Return the points of a circle of equal elevation, [N, 3], the first again at the end."""
    return _on_sphere(np.linspace(0, 360, 121), np.full(121, elevation_deg))


def _on_sphere(azimuths_deg: np.ndarray, elevations_deg: np.ndarray) -> np.ndarray:
    """Return points of the unit sphere, [N, 3], in the cameras' convention."""
    a, e = np.deg2rad(azimuths_deg), np.deg2rad(elevations_deg)
    return np.stack([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)], axis=-1)


def _write_table(draw: ImageDraw.ImageDraw, cameras: Cameras, top: int, rows: int) -> None:
    """Write number, azimuth and elevation of the views, column by column, and what all have in common."""
    text, caption = ImageFont.load_default(_TEXT_SIZE), ImageFont.load_default(_CAPTION_SIZE)
    lines = _table(cameras, rows)
    width = (_WIDTH - 2 * _MARGIN) / _TABLE_COLUMNS
    for place, (name, angles) in enumerate(lines):
        x, y = _MARGIN + place // rows * width, top + (place % rows + 0.5) * _ROW
        draw.text((x, y), name, _INPUT if name == "input" else _NOVEL, text, anchor="lm")
        draw.text((x + _NAME_WIDTH, y), angles, _INK, text, anchor="lm")
    y = top + rows * _ROW
    draw.line((_MARGIN, y + 10, _WIDTH - _MARGIN, y + 10), _FAINT)
    common = (
        f"radius {cameras.radius:g}   field of view {cameras.fov_deg:.4g}°   "
        f"input camera at elevation {cameras.input_elevation_deg:.4g}°"
    )
    draw.text((_MARGIN, y + 1.2 * _ROW), common, _INK, caption, anchor="lm")


def _table(cameras: Cameras, rows: int) -> Sequence[tuple[str, str]]:
    views = [
        ("input" if v == 0 else str(v), f"az {round(azimuth, 1):g}°   el {round(elevation, 1):g}°")
        for v, (azimuth, elevation) in enumerate(
            zip(cameras.azimuths_deg, cameras.elevations_deg, strict=True)
        )
    ]
    room = rows * _TABLE_COLUMNS
    if len(views) <= room:
        return views
    return [*views[: room - 1], ("...", f"and {len(views) - room + 1} more")]
