"""Pictures of a job: the losses of a fit and what it leaves unexplained, scored views, the camera rig."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..cameras import Cameras
from ..metrics.report.plots import (
    FAINT,
    GRID,
    INK,
    as_image,
    axes_at,
    colour_map,
    draw_heat_map,
    error_scale,
    new_figure,
    ramp,
    series_colour,
    styled,
    view_label,
)
from ..metrics.report.tables import SceneComparison
from ..video.pictures import UNTRAINED_LABEL, pick_frames, to_bytes
from ..views import resize_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The axis of the losses spans at least this factor: noise around a constant looks like noise then.
_SMALLEST_SPAN, _MARGIN = 6.0, 1.15
# The running median is taken at this many places, over this share of the losses.
_MEDIANS, _MEDIAN_SHARE = 150, 0.04


@styled
def loss_plot(losses: Sequence[tuple[int, float]], width: int, height: int) -> Image.Image:
    """Return the losses as a thin line with their running median over it.

    Losses that are not finite or not above 0 have no place on a logarithmic axis; a note counts them.

    Args:
        losses: step and loss, at least one, steps rising.
        width: of the picture in pixels.
        height: of the picture in pixels.
    """
    figure = new_figure(width, height)
    _draw_losses(axes_at(figure, 64, 34, width - 92, height - 84), losses)
    return as_image(figure)


def _draw_losses(axes: Axes, losses: Sequence[tuple[int, float]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    points = np.array(losses, dtype=float)
    steps, values = points[np.isfinite(points[:, 1]) & (points[:, 1] > 0)].T
    axes.set_title("Loss and its running median")
    axes.set_yscale("log")
    low, high = (values.min(), values.max()) if len(values) else (0.1, 1.0)
    margin = max(_MARGIN, math.sqrt(_SMALLEST_SPAN * low / high))
    axes.set_ylim(low / margin, high * margin)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_xlabel("step", loc="right")
    axes.grid()
    # A single loss has no line.
    axes.plot(steps, values, "." if len(steps) == 1 else "-", color="#a9cbe3", linewidth=0.9)
    axes.plot(
        *_medians(steps, values), "." if len(steps) == 1 else "-", color=series_colour(0), linewidth=1.8
    )
    if n_missing := len(points) - len(steps):
        note = f"{n_missing} of {len(points)} losses are zero or not finite and not drawn"
        axes.annotate(note, (0, -38), xycoords="axes pixels", color=INK)


def _medians(steps: NDArray, values: NDArray) -> tuple[NDArray, NDArray]:
    """Return steps and running medians, at no more places than can be told apart."""
    reach = math.ceil(_MEDIAN_SHARE / 2 * len(steps))
    middles = np.unique(np.linspace(0, max(len(steps) - 1, 0), _MEDIANS).round().astype(int))[: len(steps)]
    return steps[middles], np.array([np.median(values[max(0, i - reach) : i + reach + 1]) for i in middles])


_WIDTH, _GAP = 1200, 8
_PLOT_WIDTH, _SMALLEST_HEIGHT, _LARGEST_PLOT = 560, 320, 460
_LABELS, _MEANS, _ROOM_OF_ROWS, _WIDEST_CELL = 150, 66, 190, 48
_MOST_PAIRS, _LARGEST_PICTURE, _PAIR_LABELS = 8, 260, 70


@styled
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
    drawn, seen = (None, None) if rendered is None and views is None else _checked_pairs(rendered, views)
    shown = [] if seen is None else pick_frames(len(seen), _MOST_PAIRS)
    row_height = min(max(_ROOM_OF_ROWS // (cameras.n_views + 1), 24), 40)
    rows = row_height * (cameras.n_views + 1)
    top, upper = (40 if title else 0), max(_SMALLEST_HEIGHT, rows + 160)
    cell = 0, 0
    if seen is not None:
        height, width = seen.shape[1:3]
        room = (_WIDTH - _PAIR_LABELS) / len(shown) - _GAP
        scale = min(room / width, _LARGEST_PICTURE / max(height, width))
        cell = max(1, round(height * scale)), max(1, round(width * scale))
    figure = new_figure(_WIDTH, top + upper + (2 * (cell[0] + _GAP) + _GAP if shown else 0))
    if title:
        figure.text(_GAP / _WIDTH, 1 - 22 / (100 * figure.get_figheight()), title, size=14, va="center")
    _draw_losses(axes_at(figure, 64, top + 34, _PLOT_WIDTH - 92, min(upper, _LARGEST_PLOT) - 84), losses)
    _draw_residuals(figure, residuals, cameras, top + 54, rows)
    for name, pictures, row in (("views", seen, 0), ("scene", drawn, 1)):
        if pictures is None:
            continue
        below = top + upper + _GAP + row * (cell[0] + _GAP)
        small = to_bytes(resize_images(pictures[shown].detach().float().cpu().clamp(0, 1), *cell))
        for place, picture in enumerate(small):
            axes = _show(figure, picture, _PAIR_LABELS + place * (cell[1] + _GAP), below, cell[1], cell[0])
            if place == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center", color=INK)
    return as_image(figure)


def _draw_residuals(figure: Figure, values: Tensor, cameras: Cameras, top: float, height: float) -> None:
    """Draw the residuals [T, V + 1] as heat map with its scale, and name the worst cell."""
    left = _PLOT_WIDTH + _LABELS
    width = min(_WIDEST_CELL * len(values), _WIDTH - left - _MEANS)
    worst = float(values.nan_to_num(nan=0.0).max())
    labels = ["input", *(view_label(cameras, v) for v in range(1, cameras.n_views + 1))]
    axes = axes_at(figure, left, top, width, height)
    mesh = draw_heat_map(axes, values, labels, (0.0, worst), 4)
    axes.set_title("Left unexplained, per view and frame", pad=16)
    bar = figure.colorbar(
        mesh, cax=axes_at(figure, left, top + height + 48, 180, 13), orientation="horizontal"
    )
    bar.set_ticks([0.0, worst / 2, worst] if worst > 0 else [0.0])
    bar.ax.xaxis.set_major_formatter("{x:.2g}")
    words = ["grey: no value"] if values.isnan().any() else []
    if worst > 0:
        t, v = divmod(int(values.nan_to_num(nan=0.0).argmax()), values.shape[1])
        words.append(f"worst: {f'view {v}' if v else 'input'}, frame {t}")
    bar.ax.annotate("\n".join(words), (200, 6), xycoords="axes pixels", va="center", color=FAINT)


def _show(figure: Figure, picture: NDArray, left: float, top: float, width: float, height: float) -> Axes:
    """Draw a picture [h, w, 3] at a place in pixels, with an edge: on white nobody sees where one ends."""
    axes = axes_at(figure, left, top, width, height)
    axes.imshow(picture, aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(GRID)
    return axes


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


_CELL, _SPACE, _HEADER, _CAPTIONS = 160, 4, 30, 44


@styled
def score_picture(scene: SceneComparison) -> Image.Image:
    """Return a few views of the middle frame: a row of the true ones, then of each method with its errors.

    Errors are the mean absolute difference of the channels to the truth; darker is worse, and the scale in
    the row of the true views says how much. Where there is no truth there are no errors.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    strip, step = scene.pictures[0], _CELL + _SPACE
    scale = error_scale([strip])
    has_errors = any(p.error is not None for _, pictures, _ in strip.rows for p in pictures)
    columns = max(2, *(len(pictures) for _, pictures, _ in strip.rows))
    errors_left = _SPACE + columns * step + 4 * _SPACE
    header = _HEADER * (2 if scene.untrained else 1)
    width = errors_left + columns * step if has_errors else _SPACE + columns * step
    height = header + len(strip.rows) * (_CAPTIONS + step)
    figure = new_figure(width, height)

    def write(text: str, left: float, top: float, **how: Any) -> None:
        figure.text(left / width, 1 - top / height, text, va="center", **how)

    write(strip.title, _SPACE, _HEADER / 2)
    if scene.untrained:
        words = f"{', '.join(sorted(scene.untrained))}: {UNTRAINED_LABEL}"
        write(words, _SPACE, 1.5 * _HEADER, color="red")
    for row, (method, pictures, note) in enumerate(strip.rows):
        top = header + row * (_CAPTIONS + step) + _CAPTIONS
        name = f"{method}, {note}" if note else method
        write(name, _SPACE, top - 32, weight="bold")
        if any(picture.error is not None for picture in pictures):
            write(f"error of {name}", errors_left, top - 32, weight="bold")
        for column, picture in enumerate(pictures):
            colours = None if picture.error is None else ramp(picture.error / (255 * scale))
            sides = [(_SPACE, picture.image)]
            if has_errors and (row or colours is not None):
                sides.append((errors_left, colours))
            for start, image in sides:
                nothing = np.full((1, 1, 3), 238, np.uint8)
                shown = nothing if image is None else image
                axes = _show(figure, shown, start + column * step, top, _CELL, _CELL)
                axes.set_title(picture.caption, fontsize=8, loc="center", pad=4)
                if image is None:
                    axes.annotate(picture.gap, (0.5, 0.5), xycoords="axes fraction", ha="center")
    if has_errors:
        colours = ScalarMappable(Normalize(0, scale), colour_map())
        place = axes_at(figure, errors_left + 40, header + _CAPTIONS + _CELL / 2, 240, 14)
        bar = figure.colorbar(colours, cax=place, orientation="horizontal")
        bar.set_ticks([0, scale / 2, scale])
        bar.ax.set_title("absolute error, mean of the channels (1 is full scale)", fontsize=8.5)
    return as_image(figure)


_OVERSAMPLING = 3
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
