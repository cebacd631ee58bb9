"""A few pictures of a clip in a row, as it came and rectified, for the report."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont

from ...export.pictures import pick_frames, to_bytes
from ...views import ViewGrid
from .rectify import rectify
from .silhouettes import small_grid
from .static_centre import pictured
from .verdict import Verdict

_CELL, _GAP, _TEXT = 112, 4, 12
_FRAMES = 4
_CENTRE, _WORST, _LINE = (0, 120, 200), (213, 60, 0), (222, 222, 222)


def picture_strip(grid: ViewGrid, verdict: Verdict) -> Image.Image:
    """Return two rows of pictures: the clip as it came, and rectified where that is possible.

    Frames of the input view and of the middle novel view, then, framed, the pictures that broke a limit. A
    cross marks the static centre.
    """
    small = small_grid(grid)
    pictures = [(t, v) for v in (0, (small.n_views + 1) // 2) for t in pick_frames(small.n_frames, _FRAMES)]
    broken = [check.found for check in verdict.checks if not check.passed and check.found.frame is not None]
    worst = [(found.frame or 0, found.view or 0) for found in broken]
    plan = verdict.plan
    after = None if plan is None else rectify(small, plan, small.images.shape[2])
    origin = torch.zeros(1, 3)
    rows = [(small, None if plan is None else pictured(origin + torch.tensor(plan.centre), small.cameras))]
    if after is not None:
        rows.append((after, pictured(origin, after.cameras)))
    cells = [*pictures, *dict.fromkeys(worst)]
    step = _CELL + _GAP
    page = Image.new("RGB", (len(cells) * step, len(rows) * step + _TEXT + _GAP), "white")
    draw = ImageDraw.Draw(page)
    for column, (t, v) in enumerate(cells):
        left, is_worst = column * step, column >= len(pictures)
        name = f"frame {t}, view {v}"
        draw.text((left, 0), name, _WORST if is_worst else "black", ImageFont.load_default(_TEXT))
        for row, (shown, centres) in enumerate(rows):
            top = _TEXT + _GAP + row * step
            cell = Image.fromarray(to_bytes(shown.images[t, v])).resize(
                (_CELL, _CELL), Image.Resampling.LANCZOS
            )
            page.paste(cell, (left, top))
            if centres is not None:
                _cross(draw, left, top, *centres[v, 0].tolist())
            framed = is_worst and row == 0
            draw.rectangle(
                (left, top, left + _CELL - 1, top + _CELL - 1),
                outline=_WORST if framed else _LINE,
                width=2 if framed else 1,
            )
    return page


def _cross(draw: ImageDraw.ImageDraw, left: int, top: int, x: float, y: float) -> None:
    """Draw a cross at a position of -1..1 in a picture."""
    column, row, arm = left + (x + 1) / 2 * _CELL, top + (y + 1) / 2 * _CELL, 5
    draw.line((column - arm, row, column + arm, row), _CENTRE, 1)
    draw.line((column, row - arm, column, row + arm), _CENTRE, 1)
