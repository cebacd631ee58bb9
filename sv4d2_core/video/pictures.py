"""Pictures of views: PNG files, contact sheet, mosaic, strip of frames."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..files import write_whole
from ..views import ViewGrid, resize_images
from .decode import check_room, open_image
from .read import stack_pictures

UNTRAINED_LABEL = "UNTRAINED WEIGHTS: noise is expected"

_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

_PNG_EFFORT = 4
_WARNING_COLOUR, _LABEL_COLOUR, _LINE_COLOUR = "red", (40, 40, 40), (222, 222, 222)
# Contact sheet: longer sides of its pictures, pictures in a row, and sizes of the text, pixels.
_THUMBNAIL, _SMALLEST = 160, 64
_COLUMNS = 12
_GAP = 4
_ROW_LABEL_WIDTH = 92
_TEXT_SIZE, _WARNING_SIZE = 16, 30
_TEXT_SHARE, _SMALLEST_TEXT, _LARGEST_TEXT = 0.07, 9, 40  # mosaic: share of a picture, limits in pixels
# Strip of frames: how many, pictures in a row, longer side of a picture and size of the text, pixels.
_STRIP_FRAMES, _STRIP_COLUMNS, _STRIP_CELL, _STRIP_TEXT = 8, 4, 192, 17


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """Return values in 0..1 as bytes, rounded to the nearest level; values outside are clipped."""
    return (images.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()


def on_white(images: Tensor, opacity: Tensor) -> Tensor:
    """Return images [..., H, W, 3] of opacity [..., H, W], in 0..1, on white."""
    alpha = opacity[..., None]
    return images * alpha + (1 - alpha)


def with_alpha(images: Tensor, opacity: Tensor) -> Tensor:
    """Return images [T, H, W, 3] on white, in 0..1, as RGBA [T, H, W, 4] with the white taken out again."""
    alpha = opacity[..., None]
    straight = (images - (1 - alpha)) / alpha.clamp(min=1e-3)
    return torch.cat([straight, alpha], dim=-1).clamp(0, 1)


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG as `write_whole`."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    write_whole(path, content.getvalue())


def write_frames(folder: Path, pictures: Tensor | np.ndarray) -> None:
    """Write [T, H, W, 3] as RGB, [T, H, W, 4] as RGBA, or [T, H, W] as grey, to ``folder``/TTTTT.png.

    A tensor holds values in 0..1, an array the levels themselves, of 8 or 16 bits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for t, picture in enumerate(to_bytes(pictures) if isinstance(pictures, Tensor) else pictures):
        Image.fromarray(picture).save(folder / f"{t:05d}.png", compress_level=_PNG_EFFORT)


def read_frames(folder: Path, n_frames: int) -> NDArray[np.uint8]:
    """Return the pictures that `write_frames` wrote, [T, H, W, 3] or [T, H, W]."""
    files = [folder / f"{t:05d}.png" for t in range(n_frames)]
    check_room(files)
    pictures = []
    for file in files:
        with open_image(file) as picture:
            pictures.append(np.asarray(picture))
    return stack_pictures(pictures, [*map(str, files)])


def contact_sheet(grid: ViewGrid) -> Image.Image:
    """Return one picture of the grid: a row per view, a column per frame (at most 12, evenly picked)."""
    shown = pick_frames(grid.n_frames, _COLUMNS)
    side = max(grid.images.shape[2:4])
    # Small pictures grow by whole factors, so that their pixels can be told.
    scale = min(1.0, _THUMBNAIL / side) if side > _SMALLEST else float(-(-_SMALLEST // side))
    cell_h, cell_w = _cell_size(grid.images, scale)
    text = ImageFont.load_default(_TEXT_SIZE)

    lines = [(_caption(grid, len(shown)), _TEXT_SIZE, "black")]
    if not grid.trained:
        lines.append((UNTRAINED_LABEL, _WARNING_SIZE, _WARNING_COLOUR))
    top = _GAP + sum(int(letter_h * 1.5) for _, letter_h, _ in lines)
    left, line = _GAP + _ROW_LABEL_WIDTH, int(_TEXT_SIZE * 1.4)
    widths = [int(ImageFont.load_default(letter_h).getlength(words)) for words, letter_h, _ in lines]
    sheet_w = max(left + len(shown) * (cell_w + _GAP), max(widths) + 2 * _GAP)
    row_h = max(cell_h, 3 * line) + _GAP
    sheet = Image.new("RGB", (sheet_w, top + line + (grid.n_views + 1) * row_h), "white")
    draw = ImageDraw.Draw(sheet)

    y = _GAP
    for words, letter_h, colour in lines:
        draw.text((_GAP, y), words, colour, ImageFont.load_default(letter_h))
        y += int(letter_h * 1.5)
    draw.text((_GAP, top), "frame", "black", text)
    lefts = [left + column * (cell_w + _GAP) for column in range(len(shown))]
    for x, t in zip(lefts, shown, strict=True):
        draw.text((x + cell_w // 2, top), str(t), "black", text, anchor="ma")
    for v in range(grid.n_views + 1):
        middle = top + line + v * row_h + (row_h - _GAP) // 2
        y = middle - cell_h // 2
        name, azimuth, elevation = _name_and_angles(grid, v)
        label = f"{name}\nazim {azimuth:.4g}°\nelev {elevation:.4g}°"
        draw.text((_GAP, middle), label, "black", text, anchor="lm")
        for x, t in zip(lefts, shown, strict=True):
            cell = Image.fromarray(to_bytes(grid.images[t, v]))
            if scale != 1:
                way = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
                cell = cell.resize((cell_w, cell_h), way)
            draw.rectangle((x - 1, y - 1, x + cell_w, y + cell_h), outline=_LINE_COLOUR)
            sheet.paste(cell, (x, y))
    return sheet


def pick_frames(n_frames: int, at_most: int) -> list[int]:
    """Return up to ``at_most`` frame numbers, evenly spread from the first to the last."""
    count = min(n_frames, at_most)
    return [round(i * (n_frames - 1) / max(count - 1, 1)) for i in range(count)]


def _caption(grid: ViewGrid, n_shown: int) -> str:
    parts = [f"SV4D 2.0 {grid.variant}" if grid.variant else "rendered or recorded views, no model"]
    if grid.steps is not None:
        parts.append(f"{grid.steps} steps")
    if grid.seed is not None:
        parts.append(f"seed {grid.seed}")
    frames = f"{grid.n_frames} frames at {grid.fps:g} fps"
    parts.append(frames if n_shown == grid.n_frames else f"{n_shown} of {frames}")
    return "  |  ".join(parts)


def _name_and_angles(grid: ViewGrid, view: int) -> tuple[str, float, float]:
    name = "input" if view == 0 else f"view {view}"
    return name, grid.cameras.azimuths_deg[view], grid.cameras.elevations_deg[view]


def view_mosaic(
    grid: ViewGrid,
    *,
    columns: int = 0,  # pictures in a row; 0: about as many as rows
    labels: bool = True,  # number, azimuth and elevation above each picture
    cell_size: int = 0,  # longer side of a picture in pixels; 0: as they are
) -> Tensor:
    """Return all views of each frame in one picture, the input first: [T, H, W, 3] float32, H and W even.

    Views of untrained weights are announced above the pictures, with labels or without.
    """
    if columns < 0 or cell_size < 0:
        raise ValueError(
            f"Expected columns and cell_size of at least 0 (0 = automatic); got {columns} and {cell_size}."
        )
    n_cells = grid.n_views + 1
    columns = min(columns or math.ceil(math.sqrt(n_cells)), n_cells)
    cell_h, cell_w = _cell_size(grid.images, cell_size / max(grid.images.shape[2:4]) if cell_size else 1.0)
    text_size = min(max(_TEXT_SHARE * min(cell_h, cell_w), _SMALLEST_TEXT), _LARGEST_TEXT)
    font = ImageFont.load_default(round(text_size))
    label_h = _line_height(font) if labels else 0

    total_h, total_w = math.ceil(n_cells / columns) * (cell_h + label_h), columns * cell_w
    warning, warning_font = _warning(total_w)
    banner_h = 0 if grid.trained else _even(_line_height(warning_font))
    page = Image.new("RGB", (_even(total_w), banner_h + _even(total_h)), "white")
    draw = ImageDraw.Draw(page)
    if banner_h:
        draw.text((total_w / 2, banner_h / 2), warning, _WARNING_COLOUR, warning_font, anchor="mm")
    row_h = cell_h + label_h
    corners = [(banner_h + v // columns * row_h + label_h, v % columns * cell_w) for v in range(n_cells)]
    for v, (top, left) in enumerate(corners) if labels else ():
        text = _label(grid, v, font, cell_w)
        draw.text((left + cell_w / 2, top - label_h / 2), text, _LABEL_COLOUR, font, anchor="mm")

    empty = torch.from_numpy(np.asarray(page).astype(np.float32) / 255)
    frames = empty.repeat(grid.n_frames, 1, 1, 1)
    for v, (top, left) in enumerate(corners):
        cell = _resized(grid.images[:, v], cell_h, cell_w)
        frames[:, top : top + cell_h, left : left + cell_w] = cell
    return frames


def frame_strip(images: Tensor, numbers: Sequence[int]) -> Image.Image:
    """Return up to 8 evenly picked frames of images [T, H, W, 3], four in a row, their numbers above them."""
    shown = pick_frames(len(images), _STRIP_FRAMES)
    cell_h, cell_w = _cell_size(images, _STRIP_CELL / max(images.shape[1:3]))
    font = ImageFont.load_default(_STRIP_TEXT)
    label_h, columns = _line_height(font), min(_STRIP_COLUMNS, len(shown))
    size = columns * cell_w + 1, math.ceil(len(shown) / columns) * (cell_h + label_h) + 1
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for place, t in enumerate(shown):
        left, top = place % columns * cell_w, place // columns * (cell_h + label_h)
        middle = left + cell_w / 2, top + label_h / 2
        draw.text(middle, f"frame {numbers[t]}", _LABEL_COLOUR, font, anchor="mm")
        cell = to_bytes(_resized(images[t : t + 1], cell_h, cell_w)[0])
        page.paste(Image.fromarray(cell), (left, top + label_h))
        # Frames are on white: without the line nobody sees where one ends.
        draw.rectangle((left, top + label_h, left + cell_w, top + label_h + cell_h), outline=_LINE_COLOUR)
    return page


def _label(grid: ViewGrid, view: int, font: _Font, width: int) -> str:
    name, azimuth, elevation = _name_and_angles(grid, view)
    angles = f"az {azimuth:.4g}°  el {elevation:.4g}°"
    texts = (f"{name}   {angles}", f"{name} {azimuth:.3g}°/{elevation:.3g}°", name, str(view))
    return next((text for text in texts if font.getlength(text) <= 0.96 * width), texts[-1])


def _cell_size(images: Tensor, scale: float) -> tuple[int, int]:
    height, width = images.shape[-3:-1]
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    return resize_images(images.detach().float().cpu().clamp(0, 1), height, width)


def _warning(width: int) -> tuple[str, _Font]:
    """Return the warning of untrained weights, or its first word, in the largest font that fits."""
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
