"""A clip as the measures look at it: small, with masks that hold nothing but the object."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...export.pictures import to_bytes
from ...video.foreground import foreground_masks, masks_of
from ...video.frames import Clip
from ...views import ViewGrid

# Larger pictures cost time and tell no more.
_SIZE = 128


def small_grid(grid: ViewGrid) -> ViewGrid:
    """Return the grid at most 128 pixels a side, with masks."""
    return replace(grid, masks=masks_of(grid)).resized(min(_SIZE, grid.images.shape[2]))


def measured_grid(grid: ViewGrid) -> ViewGrid:
    """Return the grid at most 128 pixels a side, with masks free of specks."""
    small = small_grid(grid)
    pairs = zip(small.images.unbind(1), masks_of(small).unbind(1), strict=True)
    return replace(small, masks=torch.stack([_without_specks(*pair) for pair in pairs], dim=1))


def _without_specks(images: Tensor, masks: Tensor) -> Tensor:
    """Return masks [T, H, W] of a view without small loose parts; black where there is no object at all."""
    try:
        kept = foreground_masks(Clip(to_bytes(images), masks=to_bytes(masks)))
    except ValueError:
        # No foreground in any frame: an error for a clip that is to be prepared, a measure here.
        return torch.zeros_like(masks)
    return masks * torch.from_numpy(kept > 0)
