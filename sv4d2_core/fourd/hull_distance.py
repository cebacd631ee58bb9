"""How far a point is from the visual hull of a frame, as a loss that pulls it back in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .hull import Occupancy

# Farther than this many cells the distance no longer grows.
_REACH = 12


class HullDistance:
    """Distances to the occupied cells of every frame.

    Args:
        hull: one set of cells per frame.
    """

    def __init__(self, hull: Occupancy) -> None:
        self.hull = hull
        # Counts of widenings that do not reach a cell: at most _REACH, so a byte will do.
        self._distances = torch.zeros_like(hull.cells, dtype=torch.uint8)
        for t, cells in enumerate(hull.cells):
            wide = cells.float()[None, None]
            for _ in range(_REACH):
                self._distances[t] += (wide[0, 0] == 0).to(torch.uint8)
                for window in ((3, 1, 1), (1, 3, 1), (1, 1, 3)):
                    wide = F.max_pool3d(wide, window, 1, [side // 2 for side in window])

    def __call__(self, points: Tensor, frame: int) -> Tensor:
        """Return the distance of world points [N, 3], in cells (largest step along an axis), [N].

        It is linear between the centres of cells, and goes on growing outside the box.
        """
        unit = self.hull.to_unit(points)
        field = self._distances[frame].float()[None, None]
        inside = F.grid_sample(
            field, unit[None, None, None], align_corners=False, padding_mode="border"
        ).flatten()
        outside = (unit.abs() - 1).clamp(min=0).sum(-1) * (field.shape[-1] / 2)
        return inside + outside

    @torch.no_grad()
    def contains(self, points: Tensor, frame: int) -> Tensor:
        """Return whether world points [N, 3] lie in an occupied cell of a frame, [N] bool."""
        frames = torch.full((len(points),), frame, device=points.device)
        return self.hull.contains(self.hull.to_unit(points), frames)
