"""How a fit went in one picture: its losses, what it leaves unexplained where, and how the scene looks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..cameras import Cameras
from ..metrics.report import svg
from ..metrics.report.colours import ramp_hex
from ..metrics.report.pictures import view_label
from ..views import resize_images
from .loss_plot import loss_plot
from .pictures import pick_frames, to_bytes

_WIDTH, _GAP = 1200, 8
_TITLE, _HEADING, _TEXT = 20, 15, 13
_PLOT_WIDTH, _SMALLEST_HEIGHT, _LARGEST_PLOT = 560, 320, 460
_TOP, _BOTTOM = 54, 94
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
    right, bottom = _LABELS + n_frames * width, _TOP + n_views * height
    page = Image.new("RGB", (_WIDTH - _PLOT_WIDTH, max(_SMALLEST_HEIGHT, bottom + _BOTTOM)), "white")
    draw = ImageDraw.Draw(page)
    _write(draw, (_LABELS, 17), "Left unexplained, per view and frame", size=_HEADING)
    _write(draw, (right + _GAP, _TOP - 10), "mean", colour=svg.FAINT)
    worst = float(values.nan_to_num(nan=0.0).max())
    for v in range(n_views):
        top, middle = _TOP + v * height, _TOP + (v + 0.5) * height
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
    size: int = _TEXT,
) -> None:
    draw.text(place, text, colour, ImageFont.load_default(size), anchor=anchor)
