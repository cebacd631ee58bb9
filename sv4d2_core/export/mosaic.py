"""Many small pictures in one: all views of every frame side by side, or a few frames of a clip."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..views import ViewGrid, resize_images
from .pictures import UNTRAINED_LABEL, pick_frames, to_bytes

_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

_STRIP_CELL = 192
_STRIP_COLUMNS = 4
_STRIP_TEXT = 17
_TEXT_SHARE, _SMALLEST_TEXT, _LARGEST_TEXT = 0.07, 9, 40
_LABEL_COLOUR, _LINE_COLOUR = (40, 40, 40), (222, 222, 222)
_WARNING_COLOUR = "red"


def view_mosaic(grid: ViewGrid, *, columns: int = 0, labels: bool = True, cell_size: int = 0) -> Tensor:
    """Return all views of each frame in one picture, the input first: [T, H, W, 3] float32, H and W even.

    Views of untrained weights are announced above the pictures, with labels or without.

    Args:
        grid: the views.
        columns: pictures in a row; 0: about as many as rows.
        labels: write number, azimuth and elevation above each picture.
        cell_size: longer side of a picture in pixels; 0: as they are.

    Raises:
        ValueError: a negative number.
    """
    if columns < 0 or cell_size < 0:
        raise ValueError(
            f"Expected columns and cell_size of at least 0 (0 = automatic); got {columns} and {cell_size}."
        )
    n_cells = grid.n_views + 1
    columns = min(columns or math.ceil(math.sqrt(n_cells)), n_cells)
    height, width = grid.images.shape[2:4]
    scale = cell_size / max(height, width) if cell_size else 1.0
    cell_h, cell_w = max(1, round(height * scale)), max(1, round(width * scale))
    font = _font(min(cell_h, cell_w))
    label_h = _line_height(font) if labels else 0

    total_h, total_w = math.ceil(n_cells / columns) * (cell_h + label_h), columns * cell_w
    warning, warning_font = _warning(total_w)
    banner_h = 0 if grid.trained else _even(_line_height(warning_font))
    page = Image.new("RGB", (_even(total_w), banner_h + _even(total_h)), "white")
    draw = ImageDraw.Draw(page)
    if banner_h:
        draw.text((total_w / 2, banner_h / 2), warning, _WARNING_COLOUR, warning_font, anchor="mm")
    corners = [
        (banner_h + (v // columns) * (cell_h + label_h) + label_h, (v % columns) * cell_w)
        for v in range(n_cells)
    ]
    if labels:
        for v, (top, left) in enumerate(corners):
            text = _label(grid, v, font, cell_w)
            draw.text((left + cell_w / 2, top - label_h / 2), text, _LABEL_COLOUR, font, anchor="mm")

    empty = torch.from_numpy(np.asarray(page).astype(np.float32) / 255)
    frames = empty.repeat(grid.n_frames, 1, 1, 1)
    for v, (top, left) in enumerate(corners):
        cell = _resized(grid.images[:, v], cell_h, cell_w)
        frames[:, top : top + cell_h, left : left + cell_w] = cell
    return frames


def frame_strip(images: Tensor, numbers: Sequence[int] | None = None, at_most: int = 8) -> Image.Image:
    """Return up to ``at_most`` evenly picked frames in one picture, four in a row, their numbers above them.

    Args:
        images: [T, H, W, 3] in 0..1.
        numbers: what to call each of the T frames; None: 0 to T - 1.
        at_most: largest number of frames to show.
    """
    shown = pick_frames(len(images), at_most)
    height, width = images.shape[1:3]
    scale = _STRIP_CELL / max(height, width)
    cell_h, cell_w = max(1, round(height * scale)), max(1, round(width * scale))
    font = ImageFont.load_default(_STRIP_TEXT)
    label_h, columns = _line_height(font), min(_STRIP_COLUMNS, len(shown))
    size = columns * cell_w + 1, math.ceil(len(shown) / columns) * (cell_h + label_h) + 1
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for place, t in enumerate(shown):
        left, top = place % columns * cell_w, place // columns * (cell_h + label_h)
        name = f"frame {t if numbers is None else numbers[t]}"
        draw.text((left + cell_w / 2, top + label_h / 2), name, _LABEL_COLOUR, font, anchor="mm")
        cell = to_bytes(_resized(images[t : t + 1], cell_h, cell_w)[0])
        page.paste(Image.fromarray(cell), (left, top + label_h))
        # Frames are on white: without the line nobody sees where one ends.
        draw.rectangle((left, top + label_h, left + cell_w, top + label_h + cell_h), outline=_LINE_COLOUR)
    return page


def _label(grid: ViewGrid, view: int, font: _Font, width: int) -> str:
    """Return what is written above a view: as much as fits."""
    azimuth, elevation = grid.cameras.azimuths_deg[view], grid.cameras.elevations_deg[view]
    name = "input" if view == 0 else f"view {view}"
    angles = f"az {azimuth:.4g}°  el {elevation:.4g}°"
    texts = (f"{name}   {angles}", f"{name} {azimuth:.3g}°/{elevation:.3g}°", name, str(view))
    return next((text for text in texts if font.getlength(text) <= 0.96 * width), texts[-1])


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    """Return [T, height, width, 3] float32 on the CPU in 0..1."""
    return resize_images(images.detach().float().cpu().clamp(0, 1), height, width)


def _font(side: int) -> _Font:
    size = round(min(max(_TEXT_SHARE * side, _SMALLEST_TEXT), _LARGEST_TEXT))
    return ImageFont.load_default(size)


def _warning(width: int) -> tuple[str, _Font]:
    """Return the warning of untrained weights, or just its first word, in the largest font that fits."""
    for text in (UNTRAINED_LABEL, UNTRAINED_LABEL.split()[0]):
        size = 0.96 * width / (ImageFont.load_default(100).getlength(text) / 100)
        if size >= _SMALLEST_TEXT:
            break
    return text, ImageFont.load_default(max(min(size, _LARGEST_TEXT), 1))


def _line_height(font: _Font) -> int:
    top, bottom = font.getbbox("Ag°")[1::2]
    return math.ceil(1.5 * (bottom - top))


def _even(length: int) -> int:
    return length + length % 2
