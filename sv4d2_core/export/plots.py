"""Pictures of a job: losses and residuals of a fit, scored views, the camera rig."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
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
from ..video.pictures import UNTRAINED_LABEL, to_bytes
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
    """Return losses over steps with their running median; a note counts those not finite or not above 0."""
    figure = new_figure(width, height)
    _draw_losses(axes_at(figure, 64, 34, width - 92, height - 84), losses)
    return as_image(figure)


def _draw_losses(axes: Axes, losses: Sequence[tuple[int, float]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    points = np.array(losses, dtype=float).reshape(-1, 2)
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
    line = "." if len(steps) == 1 else "-"  # a single loss has no line
    axes.plot(steps, values, line, color="#a9cbe3", linewidth=0.9)
    axes.plot(*_medians(steps, values), line, color=series_colour(0), linewidth=1.8)
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
_LARGEST_PICTURE, _PAIR_LABELS = 260, 70


@styled
def fit_picture(
    losses: Sequence[tuple[int, float]],  # step and loss, steps rising
    residuals: Tensor,  # [T, V + 1] what the scene leaves unexplained, 0..1; NaN where there is no value
    cameras: Cameras,  # of the views
    rendered: Tensor,  # [K, H, W, 3] the scene in 0..1
    views: Tensor,  # [K, H, W, 3] what it was fitted to
) -> Image.Image:
    """Return the picture of a fit: losses, residuals per view and frame (darker is worse), picture pairs."""
    n_views = cameras.n_views
    rows = min(max(_ROOM_OF_ROWS // (n_views + 1), 24), 40) * (n_views + 1)
    upper = max(_SMALLEST_HEIGHT, rows + 160)
    height, width = views.shape[1:3]
    room = (_WIDTH - _PAIR_LABELS) / len(views) - _GAP
    scale = min(room / width, _LARGEST_PICTURE / max(height, width))
    cell_h, cell_w = max(1, round(height * scale)), max(1, round(width * scale))
    figure = new_figure(_WIDTH, upper + 2 * (cell_h + _GAP) + _GAP)
    _draw_losses(axes_at(figure, 64, 34, _PLOT_WIDTH - 92, min(upper, _LARGEST_PLOT) - 84), losses)
    _draw_residuals(figure, residuals, cameras, 54, rows)
    for row, (name, pictures) in enumerate((("views", views), ("scene", rendered))):
        below = upper + _GAP + row * (cell_h + _GAP)
        small = to_bytes(resize_images(pictures.detach().float().cpu().clamp(0, 1), cell_h, cell_w))
        for place, picture in enumerate(small):
            axes = _show(figure, picture, _PAIR_LABELS + place * (cell_w + _GAP), below, cell_w, cell_h)
            if place == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center", color=INK)
    return as_image(figure)


def _draw_residuals(figure: Figure, residuals: Tensor, cameras: Cameras, top: float, height: float) -> None:
    """Draw the residuals [T, V + 1] as heat map with its scale, and name the worst cell."""
    residuals = residuals.detach().float().cpu()
    values = residuals.where(residuals.isfinite(), float("nan"))
    left = _PLOT_WIDTH + _LABELS
    width = min(_WIDEST_CELL * len(values), _WIDTH - left - _MEANS)
    worst = float(values.nan_to_num(nan=0.0).max())
    labels = ["input", *(view_label(cameras, v) for v in range(1, cameras.n_views + 1))]
    axes = axes_at(figure, left, top, width, height)
    mesh = draw_heat_map(axes, values, labels, (0.0, worst), 4)
    axes.set_title("Left unexplained, per view and frame", pad=22)
    place = axes_at(figure, left, top + height + 48, 180, 13)
    bar = figure.colorbar(mesh, cax=place, orientation="horizontal")
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


_CELL, _SPACE, _HEADER, _CAPTIONS = 160, 4, 30, 44


@styled
def score_picture(scene: SceneComparison) -> Image.Image:
    """Return a few views of the middle frame: a row of the true ones, then of each method with its errors.

    Errors, where there is a truth, are the mean absolute difference of the channels to it; darker is worse.
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
                shown = np.full((1, 1, 3), 238, np.uint8) if image is None else image
                axes = _show(figure, shown, start + column * step, top, _CELL, _CELL)
                axes.set_title(picture.caption, fontsize=8, loc="center", pad=4)
                if image is None:
                    axes.annotate(picture.gap, (0.5, 0.5), xycoords="axes fraction", ha="center")
    if has_errors:
        place = axes_at(figure, errors_left + 40, header + _CAPTIONS + _CELL / 2, 240, 14)
        mappable = ScalarMappable(Normalize(0, scale), colour_map())
        bar = figure.colorbar(mappable, cax=place, orientation="horizontal")
        bar.set_ticks([0, scale / 2, scale])
        bar.ax.set_title("absolute error, mean of the channels (1 is full scale)", fontsize=8.5)
    return as_image(figure)


_RIG_WIDTH, _RIG_MARGIN, _LARGEST_RIG, _TABLE_ROW = 720, 36, 560, 30
_TABLE_COLUMNS, _TABLE_ROWS = 3, 8
_INPUT, _FACED, _NOVEL, _FLOOR, _LINE = "#de6810", "#f4cdb0", "#2a62be", "#f3f5f9", "#c4cad4"
# Radii are drawn as 1, whatever they are; the object's cube, the camera's pyramid, the edge of the floor and
# the distance of a camera's number in the same unit.
_CUBE, _PYRAMID, _RIM, _BADGE = 0.13, 0.22, 1.08, 1.17
_FEW_ELEVATIONS = 4  # more novel ones are no rings: then the cameras' way in order is drawn
_CROWD, _SMALLEST_BADGE = 10, 0.55  # more cameras are drawn smaller
_EYE = Cameras((0.0, 27.0), (0.0, -28.0), radius=5.2)  # of the rig: left of the input camera, from above


def _seen(points: NDArray) -> NDArray:
    """Return places in the drawing and distances from its eye, (x, y, distance), of world points [..., 3]."""
    w2c = _EYE.w2c_opencv()[1].numpy()
    x, y, z = np.moveaxis(points @ w2c[:3, :3].T + w2c[:3, 3], -1, 0)
    return np.stack([x / z, -y / z, z], axis=-1)


@styled
def rig_picture(cameras: Cameras) -> Image.Image:
    """Return a picture of the cameras around the object (input orange, novel blue) over a table of angles."""
    eyes = (cameras.eyes() / cameras.radius).numpy()
    paths = _rig_paths(cameras)
    places = _seen(np.concatenate([_BADGE * eyes, _RIM * _circle(0.0), *paths]))[:, :2]
    low, high = places.min(axis=0), places.max(axis=0)
    room = np.array([_RIG_WIDTH, _LARGEST_RIG]) - 2 * _RIG_MARGIN
    zoom = float((room / (high - low)).min())
    scene_height = round(zoom * (high - low)[1]) + 2 * _RIG_MARGIN
    rows = min(math.ceil(len(eyes) / _TABLE_COLUMNS), _TABLE_ROWS)
    figure = new_figure(_RIG_WIDTH, scene_height + (rows + 2) * _TABLE_ROW)
    axes = axes_at(figure, 0, 0, _RIG_WIDTH, scene_height)
    axes.set_axis_off()
    half = np.array([_RIG_WIDTH, scene_height]) / zoom / 2
    middle = (low + high) / 2
    axes.set_xlim(middle[0] - half[0], middle[0] + half[0])
    axes.set_ylim(middle[1] - half[1], middle[1] + half[1])
    colours = [_INPUT, *[_NOVEL] * cameras.n_views]
    _draw_rig_lines(axes, cameras, eyes, colours, paths)
    _draw_rig_bodies(axes, cameras, eyes, colours)
    _write_rig_table(axes_at(figure, 0, scene_height, _RIG_WIDTH, (rows + 2) * _TABLE_ROW), cameras, rows)
    return as_image(figure)


def _draw_rig_lines(
    axes: Axes, cameras: Cameras, eyes: NDArray, colours: Sequence[str], paths: Sequence[NDArray]
) -> None:
    """Draw the floor, at the height of the object's middle, and how the cameras stand above or below it."""

    def line(points: NDArray, colour: str, width: float = 1.2, alpha: float = 1.0) -> None:
        axes.plot(*_seen(points)[:, :2].T, color=colour, linewidth=width, alpha=alpha, zorder=1)

    axes.fill(*_seen(_RIM * _circle(0.0))[:, :2].T, color=_FLOOR, zorder=0)
    line(_circle(0.0), _LINE)
    for azimuth in range(0, 360, 30):
        line(np.outer([0.97, 1.03], _on_sphere(azimuth, 0)), _LINE)
    for path in paths:
        line(path, _NOVEL, alpha=0.45)
    absolute = np.array(cameras.elevations_deg) + cameras.input_elevation_deg
    centre = np.zeros(3)
    for azimuth, elevation, eye, colour in zip(cameras.azimuths_deg, absolute, eyes, colours, strict=True):
        if elevation:
            line(_on_sphere(azimuth, np.linspace(0, elevation, 24)), colour, alpha=0.35)
            line(np.stack([centre, _on_sphere(azimuth, 0)]), _LINE, 0.8)
        line(np.stack([centre, eye]), colour, 0.9, 0.28)


def _draw_rig_bodies(axes: Axes, cameras: Cameras, eyes: NDArray, colours: Sequence[str]) -> None:
    """Draw the object as cube and each camera as pyramid and number, what is nearer over what is farther."""

    def polygon(corners: NDArray, face: Any, edge: str) -> None:
        x, y, distance = _seen(corners).T
        axes.fill(x, y, facecolor=face, edgecolor=edge, linewidth=1, zorder=10 - distance.mean())

    for axis, grey in enumerate((0.81, 0.96, 0.88)):
        for side in (-1, 1):
            corners = np.array([[side, -1, -1], [side, -1, 1], [side, 1, 1], [side, 1, -1]])
            # The side that the input camera sees has its colour.
            face = _FACED if axis == 2 and side == 1 else str(grey)
            polygon(_CUBE * np.roll(corners, axis, axis=1), face, INK)
    spread = min(1.0, math.sqrt(_CROWD / len(eyes)))
    half = _PYRAMID * min(max(math.tan(math.radians(cameras.fov_deg) / 2), 0.3), 0.6)
    base = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    base = spread * np.concatenate([base, np.full((4, 1), -_PYRAMID)], axis=1)
    rotations = cameras.c2w_opengl()[:, :3, :3].numpy()
    for view, (eye, rotation, colour) in enumerate(zip(eyes, rotations, colours, strict=True)):
        corners = eye + base @ rotation.T
        for side in (*(np.stack([eye, corners[i - 1], corners[i]]) for i in range(4)), corners):
            polygon(side, (colour, 0.25), colour)
        x, y, distance = _seen(eye * (1 + (_BADGE - 1) * spread))
        size, order = 11 * max(spread, _SMALLEST_BADGE), 12 - distance
        axes.plot(x, y, "o", color=colour, markersize=2.5 * size, markeredgecolor="white", zorder=order)
        name = "in" if view == 0 else str(view)
        axes.text(x, y, name, size=size, color="white", ha="center", va="center_baseline", zorder=order)


def _rig_paths(cameras: Cameras) -> list[NDArray]:
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


def _circle(elevation_deg: float) -> NDArray:
    return _on_sphere(np.linspace(0, 360, 121), elevation_deg)


def _on_sphere(azimuths_deg: Any, elevations_deg: Any) -> NDArray:
    """Return points of the unit sphere, [..., 3], in the cameras' convention."""
    a, e = np.broadcast_arrays(np.deg2rad(azimuths_deg), np.deg2rad(elevations_deg))
    return np.stack([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)], axis=-1)


def _write_rig_table(axes: Axes, cameras: Cameras, rows: int) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, _RIG_WIDTH)
    axes.set_ylim(rows + 2, 0)
    angles = zip(cameras.azimuths_deg, cameras.elevations_deg, strict=True)
    written = [f"az {round(azimuth, 1):g}°   el {round(elevation, 1):g}°" for azimuth, elevation in angles]
    lines = [*zip(["input", *map(str, range(1, len(written)))], written, strict=True)]
    room = rows * _TABLE_COLUMNS
    if len(lines) > room:
        lines = [*lines[: room - 1], ("...", f"and {len(lines) - room + 1} more")]
    for place, (name, words) in enumerate(lines):
        column, row = divmod(place, rows)
        left = 18 + column * (_RIG_WIDTH - 36) / _TABLE_COLUMNS
        colour = _INPUT if name == "input" else _NOVEL
        axes.text(left, row + 0.5, name, size=12, color=colour, va="center")
        axes.text(left + 58, row + 0.5, words, size=12, va="center")
    axes.plot([18, _RIG_WIDTH - 18], [rows + 0.33] * 2, color=_LINE, linewidth=0.8)
    common = (
        f"radius {cameras.radius:g}   field of view {cameras.fov_deg:.4g}°   "
        f"input camera at elevation {cameras.input_elevation_deg:.4g}°"
    )
    axes.text(18, rows + 1.2, common, size=12, va="center")
