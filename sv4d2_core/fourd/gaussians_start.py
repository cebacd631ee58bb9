"""Where Gaussians start: on the surface of the visual hull of one frame, in the colours that views show."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..views import ViewGrid
from .gaussians import CanonicalGaussians
from .gaussians_config import GaussiansConfig
from .hull import Occupancy

# How much more a view counts that faces the surface.
_FACING_POWER = 4


def start_on_hull(
    views: ViewGrid, hull: Occupancy, frame: int, config: GaussiansConfig, generator: torch.Generator
) -> tuple[CanonicalGaussians, float]:
    """Return Gaussians on the hull of a frame, on its device, and their scale, world units.

    Args:
        views: with masks.
        hull: of these views.
        frame: the frame that they show before they are moved.
        config: their number, opacity and scale.
        generator: on the CPU.
    """
    count = config.count_for(views.images.shape[2])
    cells, normals = _surface(hull.cells[frame])
    size = hull.cells.shape[-1]
    chosen = _spread(len(cells), count, generator).to(cells.device)
    jitter = torch.rand(count, 3, generator=generator).to(cells.device)
    low, high = hull.box
    means = low + (cells[chosen].flip(-1) + jitter) / size * (high - low)
    outward = F.normalize(normals[chosen] / (high - low), dim=-1)
    # Each stands for its share of the surface, which is about one face per cell.
    cell = float((high - low).prod() ** (1 / 3)) / size
    scale = config.scale * cell * (len(cells) / count) ** 0.5
    return CanonicalGaussians(means, scale, config.opacity, _colours(means, outward, views, frame)), scale


def _surface(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices z, y, x [N, 3] of cells [G, G, G] next to empty ones, and outward x, y, z."""
    full = F.pad(cells.float(), [1] * 6)
    below, above = (
        torch.stack([full.roll(shift, dims=axis)[1:-1, 1:-1, 1:-1] for axis in (0, 1, 2)])
        for shift in (1, -1)
    )
    indices = (cells & ((below == 0) | (above == 0)).any(0)).nonzero()
    smooth = F.avg_pool3d(full[None, None], 5, 1, 2)[0, 0]
    slopes = torch.stack([smooth.roll(1, axis) - smooth.roll(-1, axis) for axis in (2, 1, 0)], dim=-1)
    return indices, slopes[1:-1, 1:-1, 1:-1][tuple(indices.T)]


def _spread(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` of n indices in random order, none again before all have been drawn."""
    rounds = [torch.randperm(n, generator=generator) for _ in range(-(-count // n))]
    return torch.cat(rounds)[:count]


def _colours(means: Tensor, outward: Tensor, views: ViewGrid, frame: int) -> Tensor:
    """Return the colours of points [N, 3] in the views that their surface faces; grey where there is none."""
    images, masks = views.one_frame(frame)
    if masks is None:
        raise ValueError("Expected views with masks; got none.")
    size = images.shape[1]
    total, weight = torch.zeros_like(means), torch.zeros_like(means[:, :1])
    for view, matrix in enumerate(views.cameras.intrinsics(size) @ views.cameras.w2c_opencv()[:, :3]):
        projected = means @ matrix[:, :3].T.to(means) + matrix[:, 3].to(means)
        places = (projected[:, :2] / projected[:, 2:].clamp(min=1e-6) / size * 2 - 1)[None, None]
        picture = torch.cat([images[view], masks[view, ..., None]], dim=-1).to(means).movedim(-1, 0)
        seen = F.grid_sample(picture[None], places, align_corners=False)[0, :, 0].T  # [N, 4]
        to_eye = F.normalize(views.cameras.eyes()[view].to(means) - means, dim=-1)
        facing = (to_eye * outward).sum(-1, keepdim=True).clamp(min=0) ** _FACING_POWER
        counts = (facing + 1e-4) * (projected[:, 2:] > 0) * seen[:, 3:] ** 2
        total, weight = total + counts * seen[:, :3], weight + counts
    return (total + 1e-8 * 0.5) / (weight + 1e-8)
