"""Finds the centre of the part of an object that stays as it is while the rest moves."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...cameras import Cameras
from ...fourd.hull import visual_hull
from ...video.foreground import masks_of
from ...views import ViewGrid

_CELLS = 40
# Standard deviation of a colour over time at which a pixel counts 1/e as still as one that never changes.
_COLOUR_CHANGE = 0.3
# Cells as static as this, times the square of the most static one's value, are the static part.
_STATIC = 0.7
# A single view in which a cell changes or is empty cannot make it impossible.
_LEAST_STILLNESS = 1e-3


def static_centre(grid: ViewGrid) -> Tensor:
    """Return the centre of the most static part, [3] float64, world units.

    A pixel is still when the object covers it in all frames and its colour stays the same. A cell of space
    is static when all views see it at still pixels: the geometric mean of their stillness. The centre is the
    mean of the most static cells in the hull of all frames. The less static the most static one is, the more
    of the others count, so that of an object that moves as a whole it is about the middle of its way.

    Args:
        grid: of `measured_grid`.

    Raises:
        ValueError: the silhouettes contradict each other or the cameras, so that there is no hull.
    """
    masks = masks_of(grid)
    spread = grid.images.std(0, correction=0).mean(-1)
    still = masks.mean(0) * torch.exp(-spread / _COLOUR_CHANGE)  # [V + 1, H, W]
    hull = visual_hull(masks.amax(0, keepdim=True), grid.cameras, _CELLS)
    low, high = hull.box
    cells = (low + (hull.centres() + 1) / 2 * (high - low))[hull.cells[0]].double()
    weights = _stillness(cells, still, grid.cameras)
    weights = weights * (weights >= _STATIC * weights.max() ** 2)
    return (weights[:, None] * cells).sum(0) / weights.sum()


def pictured(points: Tensor, cameras: Cameras) -> Tensor:
    """Return where points [N, 3] are seen, [V + 1, N, 2] right and down, -1..1 from edge to edge."""
    matrix = cameras.intrinsics(2) @ cameras.w2c_opencv()[:, :3]
    x, y, depth = (points.double() @ matrix[:, :, :3].mT + matrix[:, None, :, 3]).unbind(-1)
    return torch.stack([x / depth, y / depth], dim=-1) - 1


def _stillness(points: Tensor, still: Tensor, cameras: Cameras) -> Tensor:
    """Return the geometric mean [N] of what the views that see points [N, 3] say of them."""
    places = pictured(points, cameras)
    inside = (places.abs() <= 1).all(-1)
    sampled = F.grid_sample(still[:, None], places[:, None].to(still), align_corners=False)[:, 0, 0]
    logs = torch.where(inside, sampled.clamp(min=_LEAST_STILLNESS).log(), 0.0)
    return (logs.sum(0) / inside.sum(0).clamp(min=1)).exp().double()
