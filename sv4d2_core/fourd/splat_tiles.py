"""Which Gaussians touch which tile of the picture: complete lists, nearest first.

Lists are never cut: leaving out far Gaussians of a crowded tile fits the training views and breaks others.
Source: Kerbl et al. 2023, section 6 (tiles, one sort by tile and depth).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .splat_projection import Projected

TILE = 8  # pixels


@dataclass(frozen=True)
class TileLists:
    """The list of every tile, one after the other, tiles in row-major order.

    Args:
        size: pixels of the square picture.
        splats: [P] rows of `Projected.splats`, ascending (nearest first) within a tile.
        starts: [tiles + 1] where each tile's list starts; the last entry is P.
    """

    size: int
    splats: Tensor
    starts: Tensor

    @property
    def tiles_across(self) -> int:
        """Tiles along one side of the picture."""
        return -(-self.size // TILE)


@torch.no_grad()
def tile_lists(projected: Projected, size: int) -> TileLists:
    """Return the Gaussians of every tile: all whose box holds at least one of the tile's pixel centres."""
    across = -(-size // TILE)
    centre = projected.splats[:, :2]
    # The first tile whose last pixel centre is in the box, and the last tile whose first one is.
    first = ((centre - projected.extents - (TILE - 0.5)) / TILE).ceil().clamp(0, across).long()
    last = ((centre + projected.extents - 0.5) / TILE).floor().clamp(-1, across - 1).long()
    spans = (last - first + 1).clamp(min=0)
    counts = spans[:, 0] * spans[:, 1]
    splats = torch.repeat_interleave(torch.arange(len(counts), device=centre.device), counts)
    place = torch.arange(len(splats), device=centre.device) - (counts.cumsum(0) - counts)[splats]
    column = first[splats, 0] + place % spans[splats, 0]
    row = first[splats, 1] + place // spans[splats, 0]
    tile, order = torch.sort(row * across + column, stable=True)
    starts = torch.searchsorted(tile, torch.arange(across * across + 1, device=centre.device))
    return TileLists(size, splats[order], starts)
