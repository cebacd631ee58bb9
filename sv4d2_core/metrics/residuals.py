"""What a fitted 4D scene leaves unexplained of the views that it was fitted to."""

from __future__ import annotations

import torch
from torch import Tensor

from ..video.foreground import masks_of
from ..views import ViewGrid
from .pairing import paired_views


def fit_residuals(rendered: ViewGrid, views: ViewGrid, *, include_input: bool = False) -> Tensor:
    """Return how far a fitted scene's pictures are from the views that it was fitted to, [T, V].

    The mean of |rendered - view| over the pixels that show the object in either. A scene can only show what
    is consistent, so what it leaves is a measure of inconsistency without knowing the truth.

    Args:
        rendered: the scene from the views' cameras, at their times and size.
        views: what the scene was fitted to.
        include_input: the input view is the first column, [T, V + 1].
    """
    rendered, _ = paired_views(rendered, views, "the rendered scene")
    first = 0 if include_input else 1
    weights = torch.maximum(finite_masks(rendered), finite_masks(views))[:, first:]
    error = (rendered.images[:, first:] - views.images[:, first:]).abs().mean(dim=-1)
    return (error * weights).double().sum(dim=(2, 3)) / weights.double().sum(dim=(2, 3))


def finite_masks(grid: ViewGrid) -> Tensor:
    """Return the masks [T, V + 1, H, W] of a grid, found on its white background where it has none."""
    return torch.nan_to_num(masks_of(grid))


def novel_masks(grid: ViewGrid) -> Tensor:
    """Return the masks [T, V, H, W] of the novel views."""
    return finite_masks(grid)[:, 1:]
