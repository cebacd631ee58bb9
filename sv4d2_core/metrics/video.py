"""Frechet distances between the clips of a grid of views, watched in the four orders of SV4D.

All orders leave out view 0, the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..video.foreground import masks_of
from ..views import ViewGrid, resize_images
from .pairing import ORDERS, paired_views

# Clips [N, T, H, W, 3] in 0..1 to features [N, D].
ClipFeatures = Callable[[Tensor], Tensor]


def clip_features(
    images: Tensor, describe: ClipFeatures, orders: Iterable[str] = tuple(ORDERS)
) -> dict[str, Tensor]:
    """Return the features of the clips of the orders, ``{order: [N, D]}``.

    Args:
        images: [T, V, H, W, 3] in 0..1, the novel views.
        describe: what makes features of clips.
        orders: names in `ORDERS`.

    Raises:
        ValueError: from ``describe``, for clips that are too short.
    """
    features = {}
    for name in orders:
        clips = ORDERS[name](*images.shape[:2])
        features[name] = torch.cat([describe(_watched(images, clip)[None]) for clip in clips])
    return features


def _watched(images: Tensor, clip: list[tuple[int, int]]) -> Tensor:
    """Return the images [L, H, W, 3] of (frame, view) pairs in their order."""
    frames, views = torch.tensor(clip).unbind(dim=1)
    return images[frames, views]


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


# This share of the object's pixels, the quietest, is taken for static.
_QUIET_SHARE = 0.25
# Fewer static pixels say nothing.
_FEWEST = 4
# Optical flow is searched at this picture size.
_FLOW_SIDE = 128


def quietest_pixels(images: Tensor, masks: Tensor) -> Tensor:
    """Return the quietest quarter of the pixels that always show the object, [H, W] bool: the static ones.

    Taken from the reference where there is one. Without it what stands still cannot be known, but the
    quietest pixels move least if anything does, and all of them flicker if the views do.
    """
    always = masks.amin(dim=0) >= 0.5
    change = images.diff(dim=0).abs().mean(dim=(0, -1))
    if not always.any() or len(images) < 2:
        return always
    limit = torch.quantile(change[always].double(), _QUIET_SHARE, interpolation="lower")
    return always & (change <= limit)


def flicker(images: Tensor, static: Tensor) -> float:
    """Return the mean of |I(t+1) - I(t)| over static pixels [H, W], in 0..1; NaN where there are too few."""
    return _mean_change(images, static, order=1)


def acceleration(images: Tensor, static: Tensor) -> float:
    """Return the mean of |I(t+1) - 2 I(t) + I(t-1)| over static pixels [H, W]; NaN as for `flicker`."""
    return _mean_change(images, static, order=2)


def warping_errors(images: Tensor, masks: Tensor) -> Tensor:
    """Return how badly each frame follows from the one before along the optical flow, [T - 1] float64.

    The mean of |I(t) - I(t+1) moved back| over the pixels that show the object in frame t and, moved back,
    in frame t + 1; NaN where there is none. Pictures above 128 pixels are reduced to that first. True
    pictures have a value above 0, too: what comes into sight follows from nothing.

    Source: Lai et al. 2018, "Learning Blind Video Temporal Consistency" (the error), Kroeger et al. 2016,
    "Fast Optical Flow using Dense Inverse Search" (the flow).
    """
    import cv2
    from kornia.geometry.transform import remap

    height, width = images.shape[1:3]
    scale = min(1.0, _FLOW_SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    pictures = resize_images(torch.cat([images, masks[..., None]], dim=-1).detach().float().cpu(), *size)
    grey = (pictures[..., :3].mean(dim=-1) * 255).round().byte().numpy()
    search: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)
    y, x = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    errors = []
    for t in range(len(pictures) - 1):
        flow = torch.from_numpy(search.calc(grey[t], grey[t + 1], None))
        following = pictures[t + 1].permute(2, 0, 1)[None]
        places = (x + flow[..., 0])[None], (y + flow[..., 1])[None]
        moved = remap(following, *places, padding_mode="border", align_corners=True)[0].permute(1, 2, 0)
        weights = pictures[t, ..., 3] * moved[..., 3]
        error = (pictures[t, ..., :3] - moved[..., :3]).abs().mean(dim=-1)
        errors.append(float((error * weights).sum() / weights.sum()) if weights.sum() >= 1 else math.nan)
    return torch.tensor(errors, dtype=torch.float64)


def _mean_change(images: Tensor, static: Tensor, order: int) -> float:
    if int(static.sum()) < _FEWEST or len(images) <= order:
        return math.nan
    return float(images[:, static].double().diff(n=order, dim=0).abs().mean())
