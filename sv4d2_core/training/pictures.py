"""What a training looks like while it runs: novel views beside the true ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..cameras import Cameras
from ..diffusion.model import Backend
from ..diffusion.novel_views import sample_views
from ..export.pictures import to_bytes
from ..views import ViewGrid
from .scores import held_out_views

_GAP, _TEXT, _LABELS = 6, 13, 64
# Small pictures are shown at about this size.
_SHOWN = 96
_ROWS = ("true", "made")


def sample_sheet(model: Backend, objects: Sequence[int], *, steps: int = 20, seed: int = 0) -> Image.Image:
    """Return a picture of held-out objects: the true and the made views of the first and the last frame.

    Args:
        model: makes the views.
        objects: numbers of held-out objects.
        steps: of the sampler.
        seed: of the noise.
    """
    config = model.config
    pairs = []
    for number in objects:
        truth = held_out_views(number, config.n_frames, Cameras.default(config.n_views), config.size)
        made = sample_views(model, truth.images[:, 0], truth.cameras, steps=steps, seed=seed)
        pairs.append((truth, made))
    return comparison_sheet(pairs)


def comparison_sheet(pairs: Sequence[tuple[ViewGrid, ViewGrid]]) -> Image.Image:
    """Return a picture of pairs of true and made views: per pair two rows, the first and the last frame."""
    strips = [_strip(grid) for pair in pairs for grid in pair]
    cell = max(1, round(_SHOWN / strips[0].shape[0]))
    height, width = strips[0].shape[0] * cell, strips[0].shape[1] * cell
    sheet = Image.new("RGB", (_LABELS + width + _GAP, _GAP + len(strips) * (height + _GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    for row, strip in enumerate(strips):
        y = _GAP + row * (height + _GAP)
        draw.text((_GAP, y + height // 2), _ROWS[row % 2], "black", font, anchor="lm")
        picture = Image.fromarray(to_bytes(strip)).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(picture, (_LABELS, y))
        if row % 2 == 1:
            draw.line((0, y + height + _GAP // 2, sheet.width, y + height + _GAP // 2), (222, 222, 222))
    return sheet


def _strip(grid: ViewGrid) -> Tensor:
    """Return all views of the first frame and then of the last side by side, [H, 2 (V + 1) W, 3]."""
    frames = grid.images[[0, -1]]
    return torch.cat([image for frame in frames for image in frame], dim=1)
