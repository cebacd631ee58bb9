"""Writes a grid of views as PNG files and as one contact sheet for the eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..views import ViewGrid

UNTRAINED_LABEL = "UNTRAINED WEIGHTS: noise is expected"

_PNG_EFFORT = 4
_THUMBNAIL, _SMALLEST = 160, 64
_COLUMNS = 12
_GAP = 4
_ROW_LABEL_WIDTH = 92
_TEXT_SIZE, _WARNING_SIZE = 16, 30


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """Return values in 0..1 as bytes, rounded to the nearest level; values outside are clipped."""
    return (images.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()


def with_alpha(images: Tensor, opacity: Tensor) -> Tensor:
    """Return images [T, H, W, 3] on white, in 0..1, as RGBA [T, H, W, 4] with the white taken out again."""
    alpha = opacity[..., None]
    straight = (images - (1 - alpha)) / alpha.clamp(min=1e-3)
    return torch.cat([straight, alpha], dim=-1).clamp(0, 1)


def write_frames(folder: Path, pictures: Tensor) -> None:
    """Write [T, H, W, 3] as RGB, [T, H, W, 4] as RGBA, or [T, H, W] as grey, to ``folder``/TTTTT.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for t, picture in enumerate(to_bytes(pictures)):
        Image.fromarray(picture).save(folder / f"{t:05d}.png", compress_level=_PNG_EFFORT)


def read_frames(folder: Path, n_frames: int) -> NDArray[np.uint8]:
    """Return the pictures that `write_frames` wrote, [T, H, W, 3] or [T, H, W]."""
    pictures = []
    for t in range(n_frames):
        with Image.open(folder / f"{t:05d}.png") as picture:
            pictures.append(np.asarray(picture))
    return np.stack(pictures)


def contact_sheet(grid: ViewGrid) -> Image.Image:
    """Return one picture of the grid: a row per view, a column per frame (at most 12, evenly picked)."""
    shown = pick_frames(grid.n_frames, _COLUMNS)
    height, width = grid.images.shape[2:4]
    side = max(height, width)
    # Small pictures grow by whole factors, so that their pixels can be told.
    scale = min(1.0, _THUMBNAIL / side) if side > _SMALLEST else float(-(-_SMALLEST // side))
    cell_h, cell_w = max(1, round(height * scale)), max(1, round(width * scale))
    text = ImageFont.load_default(_TEXT_SIZE)

    lines = [(_caption(grid, len(shown)), _TEXT_SIZE, "black")]
    if not grid.trained:
        lines.append((UNTRAINED_LABEL, _WARNING_SIZE, "red"))
    top = _GAP + sum(int(letter_h * 1.5) for _, letter_h, _ in lines)
    left, line = _GAP + _ROW_LABEL_WIDTH, int(_TEXT_SIZE * 1.4)
    body = left + len(shown) * (cell_w + _GAP)
    sheet_w = max(
        body,
        *(int(ImageFont.load_default(letter_h).getlength(words)) + 2 * _GAP for words, letter_h, _ in lines),
    )
    row_h = max(cell_h, 3 * line) + _GAP
    sheet = Image.new("RGB", (sheet_w, top + line + (grid.n_views + 1) * row_h), "white")
    draw = ImageDraw.Draw(sheet)

    y = _GAP
    for words, letter_h, colour in lines:
        draw.text((_GAP, y), words, colour, ImageFont.load_default(letter_h))
        y += int(letter_h * 1.5)
    draw.text((_GAP, top), "frame", "black", text)
    for column, t in enumerate(shown):
        draw.text((left + column * (cell_w + _GAP) + cell_w // 2, top), str(t), "black", text, anchor="ma")
    for v in range(grid.n_views + 1):
        middle = top + line + v * row_h + (row_h - _GAP) // 2
        y = middle - cell_h // 2
        draw.text((_GAP, middle), _row_label(grid, v), "black", text, anchor="lm")
        for column, t in enumerate(shown):
            cell = Image.fromarray(to_bytes(grid.images[t, v]))
            if scale != 1:
                way = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
                cell = cell.resize((cell_w, cell_h), way)
            x = left + column * (cell_w + _GAP)
            draw.rectangle((x - 1, y - 1, x + cell_w, y + cell_h), outline=(222, 222, 222))
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


def _row_label(grid: ViewGrid, view: int) -> str:
    name = "input" if view == 0 else f"view {view}"
    azimuth, elevation = grid.cameras.azimuths_deg[view], grid.cameras.elevations_deg[view]
    return f"{name}\nazim {azimuth:.4g}°\nelev {elevation:.4g}°"
