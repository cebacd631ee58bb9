"""How a fit went in one picture: its losses, what it leaves unexplained where, and how the scene looks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..cameras import Cameras
from ..metrics.report import svg
from ..metrics.report.page import error_scale
from ..metrics.report.plots import Picture, view_label
from ..metrics.report.svg import ramp, ramp_hex, series_colour
from ..metrics.report.tables import SceneComparison
from ..video.pictures import UNTRAINED_LABEL, pick_frames, to_bytes
from ..views import resize_images

_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 28, 34, 46
_TEXT, _HEADING = 13, 15
# Lines are drawn larger and then reduced, which smooths their edges.
_OVERSAMPLING = 3
_MEDIAN_COLOUR, _LOSS_COLOUR = series_colour(0), "#a9cbe3"
# Each stretch of the thin line keeps its smallest and its largest loss, so that no spike is lost.
_STRETCHES, _MEDIANS, _MEDIAN_SHARE = 250, 150, 0.04
# The axis spans at least this factor: it has ticks then, and noise around a constant looks like noise.
_SMALLEST_SPAN, _MARGIN = 6.0, 1.15
# An axis that spans more is labelled at powers of ten only.
_MOST_DECADES = 3


@dataclass(frozen=True)
class _Axes:
    """Places steps and losses between the limits (low, high) in a box (left, top, right, bottom)."""

    steps: tuple[float, float]
    losses: tuple[float, float]
    box: tuple[int, int, int, int]

    def x(self, step: float) -> float:
        low, high = self.steps
        share = (step - low) / (high - low) if high > low else 0.5
        return self.box[0] + share * (self.box[2] - self.box[0])

    def y(self, loss: float) -> float:
        low, high = map(math.log, self.losses)
        return self.box[3] - (math.log(loss) - low) / (high - low) * (self.box[3] - self.box[1])


def loss_plot(losses: Sequence[tuple[int, float]], width: int, height: int) -> Image.Image:
    """Return the losses as a thin line with their running median over it.

    Losses that are not finite or not above 0 have no place on a logarithmic axis; a note counts them.

    Args:
        losses: step and loss, at least one, steps rising.
        width: of the picture in pixels.
        height: of the picture in pixels.
    """
    points = np.array(losses, dtype=float)
    shown = points[np.isfinite(points[:, 1]) & (points[:, 1] > 0)]
    box = (_LEFT, _TOP, width - _RIGHT, height - _BOTTOM)
    axes = _Axes((points[0, 0], points[-1, 0]), _loss_limits(shown[:, 1]), box)
    page = Image.new("RGB", (width * _OVERSAMPLING, height * _OVERSAMPLING), "white")
    _draw_lines(ImageDraw.Draw(page), axes, shown)
    page = page.resize((width, height), Image.Resampling.LANCZOS)
    _write_words(ImageDraw.Draw(page), axes, len(points) - len(shown), len(points))
    return page


def _loss_limits(losses: NDArray) -> tuple[float, float]:
    """Return the ends of the axis around [N] losses."""
    if not len(losses):
        return 0.1, 1.0
    low, high = float(losses.min()), float(losses.max())
    margin = max(_MARGIN, math.sqrt(_SMALLEST_SPAN * low / high))
    return low / margin, high * margin


def _loss_ticks(low: float, high: float) -> list[float]:
    """Return the ticks from ``low`` to ``high``: 1, 2 and 5 times powers of ten, or some powers of ten."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = last - first
    factors = (1, 2, 5) if decades <= _MOST_DECADES else (1,)
    every = math.ceil(decades / 10)
    ticks = [float(f"{f}e{power}") for power in range(first, last + 1, every) for f in factors]
    return [tick for tick in ticks if low <= tick <= high]


def _step_ticks(axes: _Axes) -> list[int]:
    return [round(step) for step in svg.nice_ticks(*axes.steps, 6) if step == round(step)]


def _draw_lines(draw: ImageDraw.ImageDraw, axes: _Axes, shown: NDArray) -> None:
    left, top, right, bottom = axes.box
    for loss in _loss_ticks(*axes.losses):
        _line(draw, [(left, axes.y(loss)), (right, axes.y(loss))], svg.GRID, 1)
    for step in _step_ticks(axes):
        _line(draw, [(axes.x(step), top), (axes.x(step), bottom)], svg.GRID, 1)
    _line(draw, [(left, top), (left, bottom), (right, bottom)], svg.FAINT, 1)
    for points, colour, width in (
        (_thinned(shown), _LOSS_COLOUR, 1.2),
        (_medians(shown), _MEDIAN_COLOUR, 2.2),
    ):
        _line(draw, [(axes.x(step), axes.y(loss)) for step, loss in points], colour, width)


def _line(
    draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: str, width: float
) -> None:
    """Draw a line through points in pixels of the picture; a single point becomes a dot."""
    large = [(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in points]
    if len(large) == 1:
        (x, y), radius = large[0], 1.5 * width * _OVERSAMPLING
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
    elif large:
        draw.line(large, colour, round(width * _OVERSAMPLING), joint="curve")


def _thinned(points: NDArray) -> NDArray:
    """Return the points [N, 2] with the lowest and the highest of each stretch only, where there are many."""
    if len(points) <= 2 * _STRETCHES:
        return points
    stretches = np.array_split(np.arange(len(points)), _STRETCHES)
    kept = {int(s[pick(points[s, 1])]) for s in stretches for pick in (np.argmin, np.argmax)}
    return points[sorted(kept)]


def _medians(points: NDArray) -> NDArray:
    """Return the running median of points [N, 2], at no more places than can be told apart."""
    reach = math.ceil(_MEDIAN_SHARE / 2 * len(points))
    middles = np.unique(np.linspace(0, len(points) - 1, _MEDIANS).round().astype(int)) if len(points) else []
    medians = [(points[i, 0], np.median(points[max(0, i - reach) : i + reach + 1, 1])) for i in middles]
    return np.array(medians).reshape(-1, 2)


def _write_words(draw: ImageDraw.ImageDraw, axes: _Axes, n_missing: int, n_points: int) -> None:
    left, top, right, bottom = axes.box
    font = ImageFont.load_default(_TEXT)
    heading = "Loss and its running median"
    draw.text((left, top / 2), heading, svg.INK, ImageFont.load_default(_HEADING), anchor="lm")
    if n_missing < n_points:
        for loss in _loss_ticks(*axes.losses):
            draw.text((left - 7, axes.y(loss)), f"{loss:g}", svg.FAINT, font, anchor="rm")
    for step in _step_ticks(axes):
        draw.text((axes.x(step), bottom + 12), f"{step}", svg.FAINT, font, anchor="mm")
    draw.text((right, bottom + 32), "step", svg.FAINT, font, anchor="rm")
    if n_missing:
        note = f"{n_missing} of {n_points} losses are zero or not finite and not drawn"
        draw.text((left, bottom + 32), note, svg.INK, font, anchor="lm")


_WIDTH, _GAP = 1200, 8
_TITLE, _HEADING_OF_FIT_PICTURE, _TEXT_OF_FIT_PICTURE = 20, 15, 13
_PLOT_WIDTH, _SMALLEST_HEIGHT, _LARGEST_PLOT = 560, 320, 460
_TOP_OF_FIT_PICTURE, _BOTTOM_OF_FIT_PICTURE = 54, 94
_LABELS, _MEANS = 150, 66
_WIDEST_CELL, _SMALLEST_ROW, _LARGEST_ROW, _ROOM_OF_ROWS = 48, 24, 40, 190
# Narrower cells have no room for a gap and a cross.
_NARROW_CELL = 6
_BAR, _BAR_HEIGHT = 180, 14
_NO_VALUE_COLOUR, _CROSS_COLOUR = "#dddddd", "#999999"
_MOST_PAIRS, _LARGEST_PICTURE, _PAIR_LABELS = 8, 260, 70


def fit_picture(
    losses: Sequence[tuple[int, float]],
    residuals: Tensor,  # [T, V + 1]
    cameras: Cameras,
    *,
    rendered: Tensor | None = None,  # [K, H, W, 3]
    views: Tensor | None = None,  # [K, H, W, 3]
    title: str = "",
) -> Image.Image:
    """Return the picture of a fit: its losses, the residuals of every view and frame, and pairs of pictures.

    Darker residuals are worse; those without a finite value are grey and crossed out. Of many pairs,
    some that are evenly picked are shown.

    Args:
        losses: step and loss, steps rising.
        residuals: what the scene leaves unexplained, 0..1, view 0 the input; NaN where there is no value.
        cameras: the views'.
        rendered: pictures of the scene in 0..1.
        views: the views that they were fitted to, in the same order and size.
        title: written above all.

    Raises:
        ValueError: no losses or falling steps, residuals that do not fit the cameras, pictures without
            partners.
    """
    _check_losses(losses)
    residuals = _checked_residuals(residuals, cameras)
    parts = [_titled(title)] if title else []
    heat_map = _heat_map(residuals, cameras)
    plot = loss_plot(losses, _PLOT_WIDTH, min(heat_map.height, _LARGEST_PLOT))
    upper = Image.new("RGB", (_WIDTH, heat_map.height), "white")
    upper.paste(plot, (0, 0))
    upper.paste(heat_map, (_PLOT_WIDTH, 0))
    parts.append(upper)
    if rendered is not None or views is not None:
        parts.append(_pairs(*_checked_pairs(rendered, views)))
    page = Image.new("RGB", (_WIDTH, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page


def _check_losses(losses: Sequence[tuple[int, float]]) -> None:
    if not losses:
        raise ValueError("Expected at least one loss; got none. Draw the picture after the first step.")
    for (step, _), (following, _) in zip(losses, losses[1:], strict=False):
        if following <= step:
            raise ValueError(
                f"Expected losses of rising steps; got step {following} after step {step}. Sort them."
            )


def _checked_residuals(residuals: Tensor, cameras: Cameras) -> Tensor:
    """Return the residuals as float32 on the CPU, NaN where they are not finite."""
    expected = cameras.n_views + 1
    if residuals.ndim != 2 or not len(residuals) or residuals.shape[1] != expected:
        raise ValueError(
            f"Expected residuals [T, {expected}], the input and {cameras.n_views} novel views of at least "
            f"one frame; got {list(residuals.shape)}. Give NaN where there is no value."
        )
    values = residuals.detach().float().cpu()
    return values.where(values.isfinite(), torch.nan)


def _checked_pairs(rendered: Tensor | None, views: Tensor | None) -> tuple[Tensor, Tensor]:
    if rendered is None or views is None:
        missing = "rendered" if rendered is None else "views"
        raise ValueError(f"Expected rendered and views, or neither; {missing} is missing. Give both.")
    fits = rendered.shape == views.shape and views.ndim == 4 and views.shape[-1] == 3 and views.numel()
    if not fits:
        raise ValueError(
            f"Expected rendered and views of the same shape [K, H, W, 3]; got {list(rendered.shape)} and "
            f"{list(views.shape)}. Give one picture of the scene per view, at its size."
        )
    return rendered, views


def _titled(title: str) -> Image.Image:
    line = Image.new("RGB", (_WIDTH, 2 * _TITLE), "white")
    _write(ImageDraw.Draw(line), (_GAP, 1.1 * _TITLE), title, size=_TITLE)
    return line


def _heat_map(values: Tensor, cameras: Cameras) -> Image.Image:
    """Return a row per view and a column per frame, the mean of every view at the right."""
    n_frames, n_views = values.shape
    width = min(_WIDEST_CELL, (_WIDTH - _PLOT_WIDTH - _LABELS - _MEANS) / n_frames)
    height = min(max(_ROOM_OF_ROWS // n_views, _SMALLEST_ROW), _LARGEST_ROW)
    right, bottom = _LABELS + n_frames * width, _TOP_OF_FIT_PICTURE + n_views * height
    page = Image.new(
        "RGB", (_WIDTH - _PLOT_WIDTH, max(_SMALLEST_HEIGHT, bottom + _BOTTOM_OF_FIT_PICTURE)), "white"
    )
    draw = ImageDraw.Draw(page)
    _write(draw, (_LABELS, 17), "Left unexplained, per view and frame", size=_HEADING_OF_FIT_PICTURE)
    _write(draw, (right + _GAP, _TOP_OF_FIT_PICTURE - 10), "mean", colour=svg.FAINT)
    worst = float(values.nan_to_num(nan=0.0).max())
    for v in range(n_views):
        top, middle = _TOP_OF_FIT_PICTURE + v * height, _TOP_OF_FIT_PICTURE + (v + 0.5) * height
        _write(draw, (_LABELS - _GAP, middle), view_label(cameras, v) if v else "input", "rm")
        _write(draw, (right + _GAP, middle), _mean(values[:, v]))
        for t, value in enumerate(values[:, v].tolist()):
            left, end = round(_LABELS + t * width), round(_LABELS + (t + 1) * width)
            _cell(
                draw, (left, top, end - (2 if width >= _NARROW_CELL else 1), top + height - 2), value, worst
            )
    _write(draw, (_LABELS - _GAP, bottom + 10), "frame", "rm", svg.FAINT)
    for t in range(0, n_frames, math.ceil((9 * len(str(n_frames)) + 8) / width)):
        _write(draw, (_LABELS + (t + 0.5) * width, bottom + 10), str(t), "mm", svg.FAINT)
    _legend(draw, bottom + 38, worst, values)
    return page


def _mean(values: Tensor) -> str:
    """Return the mean of the values that are there, a dash without any."""
    return "-" if values.isnan().all() else f"{values.nanmean():.4f}"


def _cell(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], value: float, worst: float) -> None:
    if not math.isnan(value):
        draw.rectangle(box, ramp_hex(value / worst if worst > 0 else 0.0))
        return
    draw.rectangle(box, _NO_VALUE_COLOUR)
    left, top, right, bottom = box
    if right - left >= _NARROW_CELL - 2:
        draw.line((left, top, right, bottom), _CROSS_COLOUR)
        draw.line((left, bottom, right, top), _CROSS_COLOUR)


def _legend(draw: ImageDraw.ImageDraw, top: int, worst: float, values: Tensor) -> None:
    """Draw the scale of the colours and a cell without a value, and name the worst cell."""
    bottom = top + _BAR_HEIGHT
    for x in range(_BAR):
        draw.line((_LABELS + x, top, _LABELS + x, bottom), ramp_hex(x / (_BAR - 1)))
    draw.rectangle((_LABELS - 1, top - 1, _LABELS + _BAR, bottom + 1), outline=svg.GRID)
    for share in (0.0, 0.5, 1.0) if worst > 0 else (0.0,):
        _write(draw, (_LABELS + share * _BAR, bottom + 11), f"{share * worst:.2g}", "mm", svg.FAINT)
    left = _LABELS + _BAR + 5 * _GAP
    _cell(draw, (left, top, left + 20, bottom), math.nan, worst)
    _write(draw, (left + 28, top + _BAR_HEIGHT / 2), "no value", colour=svg.FAINT)
    if worst > 0:
        t, v = divmod(int(values.nan_to_num(nan=0.0).argmax()), values.shape[1])
        where = f"worst: {f'view {v}' if v else 'input'}, frame {t}"
        _write(draw, (left, bottom + 11), where, colour=svg.FAINT)


def _pairs(rendered: Tensor, views: Tensor) -> Image.Image:
    """Return the views side by side, the pictures of the scene below them."""
    shown = pick_frames(len(views), _MOST_PAIRS)
    height, width = views.shape[1:3]
    room = (_WIDTH - _PAIR_LABELS) / len(shown) - _GAP
    scale = min(room / width, _LARGEST_PICTURE / max(height, width))
    cell_h, cell_w = max(1, round(height * scale)), max(1, round(width * scale))
    page = Image.new("RGB", (_WIDTH, 2 * (cell_h + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(page)
    for row, (name, pictures) in enumerate((("views", views), ("scene", rendered))):
        top = _GAP + row * (cell_h + _GAP)
        _write(draw, (_PAIR_LABELS - _GAP, top + cell_h / 2), name, "rm")
        small = resize_images(pictures[shown].detach().float().cpu().clamp(0, 1), cell_h, cell_w)
        for place, cell in enumerate(to_bytes(small)):
            left = _PAIR_LABELS + place * (cell_w + _GAP)
            # Pictures are on white: without the line nobody sees where one ends.
            draw.rectangle((left - 1, top - 1, left + cell_w, top + cell_h), outline=svg.GRID)
            page.paste(Image.fromarray(cell), (left, top))
    return page


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    anchor: str = "lm",
    colour: str = svg.INK,
    size: int = _TEXT_OF_FIT_PICTURE,
) -> None:
    draw.text(place, text, colour, ImageFont.load_default(size), anchor=anchor)


_WIDTH_OF_RIG_PICTURE, _LARGEST_SCENE_HEIGHT, _ROW, _MARGIN_OF_RIG_PICTURE = 720, 560, 30, 18
_TEXT_SIZE, _CAPTION_SIZE, _BADGE, _NAME_WIDTH = 19, 18, 19, 56
# Everything is drawn larger and then reduced, which smooths the edges.
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
    big = Image.new("RGB", (_WIDTH_OF_RIG_PICTURE * _OVERSAMPLING, height * _OVERSAMPLING), _PAPER)
    _draw_scene(_Pen(ImageDraw.Draw(big, "RGBA"), zoom, origin), cameras)
    picture = big.resize((_WIDTH_OF_RIG_PICTURE, height), Image.Resampling.LANCZOS)
    _write_table(ImageDraw.Draw(picture), cameras, scene_height, rows)
    return picture


def _fit(points: np.ndarray) -> tuple[float, np.ndarray, int]:
    """Return zoom, place of the world's origin (x, y) and height so that [N, 3] points fill the scene."""
    flat = _project(points)
    low, high = flat.min(axis=0), flat.max(axis=0)
    room = 2 * (_BADGE + _MARGIN_OF_RIG_PICTURE)
    zoom = float(
        min(
            (_WIDTH_OF_RIG_PICTURE - room) / (high - low)[0], (_LARGEST_SCENE_HEIGHT - room) / (high - low)[1]
        )
    )
    height = round(zoom * float((high - low)[1])) + room
    return zoom, np.array([_WIDTH_OF_RIG_PICTURE, height]) / 2 - zoom * (low + high) / 2, height


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
    width = (_WIDTH_OF_RIG_PICTURE - 2 * _MARGIN_OF_RIG_PICTURE) / _TABLE_COLUMNS
    for place, (name, angles) in enumerate(lines):
        x, y = _MARGIN_OF_RIG_PICTURE + place // rows * width, top + (place % rows + 0.5) * _ROW
        draw.text((x, y), name, _INPUT if name == "input" else _NOVEL, text, anchor="lm")
        draw.text((x + _NAME_WIDTH, y), angles, _INK, text, anchor="lm")
    y = top + rows * _ROW
    draw.line(
        (_MARGIN_OF_RIG_PICTURE, y + 10, _WIDTH_OF_RIG_PICTURE - _MARGIN_OF_RIG_PICTURE, y + 10), _FAINT
    )
    common = (
        f"radius {cameras.radius:g}   field of view {cameras.fov_deg:.4g}°   "
        f"input camera at elevation {cameras.input_elevation_deg:.4g}°"
    )
    draw.text((_MARGIN_OF_RIG_PICTURE, y + 1.2 * _ROW), common, _INK, caption, anchor="lm")


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


_CELL, _GAP_OF_SCORE_PICTURE = 160, 4
# Room for the words, if there is a single view.
_FEWEST_COLUMNS = 2
_TEXT_OF_SCORE_PICTURE, _LINE = 14, 22
_TEXT_COLOUR, _WARNING_COLOUR, _NOTHING_COLOUR = (40, 40, 40), "red", (238, 238, 238)
# Frames are on white: without the line nobody sees where one ends.
_EDGE_COLOUR = (222, 222, 222)


def score_picture(scene: SceneComparison) -> Image.Image:
    """Return a few views of the middle frame: a row of the true ones, then of each method with its errors.

    Errors are the mean absolute difference of the channels to the truth; darker is worse, and the bar at the
    bottom says how much. Where there is no truth there are no errors.
    """
    strip = scene.pictures[0]
    scale = error_scale([strip])
    has_errors = any(p.error is not None for _, pictures, _ in strip.rows for p in pictures)
    columns = max(_FEWEST_COLUMNS, *(len(pictures) for _, pictures, _ in strip.rows))
    width = columns * (_CELL + _GAP_OF_SCORE_PICTURE) + _GAP_OF_SCORE_PICTURE
    parts = [_line_score_picture([strip.title], width)]
    if scene.untrained:
        parts.append(
            _line_score_picture([f"{', '.join(sorted(scene.untrained))}: {UNTRAINED_LABEL}"], width, True)
        )
    above = ()
    for method, pictures, note in strip.rows:
        captions = tuple(picture.caption for picture in pictures)
        # One row of captions serves all rows below that show the same.
        if captions != above:
            parts.append(_line_score_picture(captions, width))
            above = captions
        parts += _method_rows(f"{method}, {note}" if note else method, pictures, scale, width)
    if has_errors:
        parts.append(_legend_score_picture(scale, width))
    page = Image.new("RGB", (width, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page


def _method_rows(name: str, pictures: Sequence[Picture], scale: float, width: int) -> Iterator[Image.Image]:
    yield _line_score_picture([name], width)
    yield _cells([picture.image for picture in pictures], pictures, width)
    if any(picture.error is not None for picture in pictures):
        yield _line_score_picture([f"error of {name}"], width)
        errors = [None if p.error is None else ramp(p.error / (255 * scale)) for p in pictures]
        yield _cells(errors, pictures, width)


def _cells(images: Sequence[NDArray | None], pictures: Sequence[Picture], width: int) -> Image.Image:
    """Return pictures side by side, where there is none the word why."""
    row = Image.new("RGB", (width, _CELL + _GAP_OF_SCORE_PICTURE), "white")
    draw = ImageDraw.Draw(row)
    for column, (image, picture) in enumerate(zip(images, pictures, strict=True)):
        left = _GAP_OF_SCORE_PICTURE + column * (_CELL + _GAP_OF_SCORE_PICTURE)
        box = (left - 1, 0, left + _CELL, _CELL + 1)
        if image is None:
            draw.rectangle(box, _NOTHING_COLOUR, _EDGE_COLOUR)
            _write_score_picture(draw, picture.gap, (left + _CELL / 2, _CELL / 2), _CELL, "mm")
            continue
        draw.rectangle(box, outline=_EDGE_COLOUR)
        cell = Image.fromarray(image)
        scale = _CELL / max(cell.size)
        size = max(1, round(cell.width * scale)), max(1, round(cell.height * scale))
        row.paste(cell.resize(size, Image.Resampling.BICUBIC), (left, 1))
    return row


def _line_score_picture(texts: Sequence[str], width: int, warning: bool = False) -> Image.Image:
    """Return one text at the left, or several above the middle of their columns."""
    line = Image.new("RGB", (width, _LINE), "white")
    draw = ImageDraw.Draw(line)
    colour = _WARNING_COLOUR if warning else _TEXT_COLOUR
    if len(texts) == 1:
        _write_score_picture(
            draw,
            texts[0],
            (_GAP_OF_SCORE_PICTURE, _LINE / 2),
            width - 2 * _GAP_OF_SCORE_PICTURE,
            "lm",
            colour,
        )
        return line
    for column, text in enumerate(texts):
        middle = _GAP_OF_SCORE_PICTURE + column * (_CELL + _GAP_OF_SCORE_PICTURE) + _CELL / 2
        _write_score_picture(draw, text, (middle, _LINE / 2), _CELL, "mm", colour)
    return line


def _legend_score_picture(scale: float, width: int) -> Image.Image:
    """Return the colours of the errors from 0 to ``scale``."""
    legend = Image.new("RGB", (width, 2 * _LINE + _GAP_OF_SCORE_PICTURE), "white")
    draw = ImageDraw.Draw(legend)
    words = "absolute error, mean of the channels (1 is full scale)"
    _write_score_picture(
        draw, words, (_GAP_OF_SCORE_PICTURE, _LINE / 2), width - 2 * _GAP_OF_SCORE_PICTURE, "lm"
    )
    left, right = 5 * _GAP_OF_SCORE_PICTURE, min(width, 2 * _CELL) - 10 * _GAP_OF_SCORE_PICTURE
    colours = ramp(np.tile(np.linspace(0, 1, right - left), (_LINE - 6, 1)))
    legend.paste(Image.fromarray(colours), (left, _LINE + 3))
    draw.rectangle((left - 1, _LINE + 2, right, 2 * _LINE - 3), outline=_EDGE_COLOUR)
    _write_score_picture(draw, "0", (_GAP_OF_SCORE_PICTURE, 1.5 * _LINE), 3 * _GAP_OF_SCORE_PICTURE, "lm")
    _write_score_picture(
        draw, f"{scale:.2f}", (right + _GAP_OF_SCORE_PICTURE, 1.5 * _LINE), 9 * _GAP_OF_SCORE_PICTURE, "lm"
    )
    return legend


def _write_score_picture(
    draw: ImageDraw.ImageDraw,
    text: str,
    place: tuple[float, float],
    width: float,
    anchor: str,
    colour: str | tuple[int, int, int] = _TEXT_COLOUR,
) -> None:
    """Write a text, smaller where it would not fit."""
    length = ImageFont.load_default(_TEXT_OF_SCORE_PICTURE).getlength(text)
    size = _TEXT_OF_SCORE_PICTURE * min(1.0, 0.96 * width / length) if length else _TEXT_OF_SCORE_PICTURE
    draw.text(place, text, colour, ImageFont.load_default(max(size, 1)), anchor=anchor)
