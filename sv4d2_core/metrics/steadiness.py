"""How steady the pictures of a view are over time, judged without knowing what they should be.

Functions take one view: images [T, H, W, 3] in 0..1 and, where it is needed, opacity [T, H, W] in 0..1.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

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

    Source: Lai et al. 2018, "Learning Blind Video Temporal Consistency" (the error), Zach, Pock, Bischof
    2007 (the flow: TV-L1).
    """
    images, masks = _reduced(images), _reduced(masks[..., None])
    errors = []
    for t in range(len(images) - 1):
        moved = _moved_back(torch.cat([images[t + 1], masks[t + 1]], dim=-1), _flow(images[t], images[t + 1]))
        weights = masks[t, ..., 0] * moved[..., 3]
        error = (images[t] - moved[..., :3]).abs().mean(dim=-1)
        errors.append(float((error * weights).sum() / weights.sum()) if weights.sum() >= 1 else math.nan)
    return torch.tensor(errors, dtype=torch.float64)


def _mean_change(images: Tensor, static: Tensor, order: int) -> float:
    if int(static.sum()) < _FEWEST or len(images) <= order:
        return math.nan
    return float(images[:, static].double().diff(n=order, dim=0).abs().mean())


def _reduced(images: Tensor) -> Tensor:
    """Return [T, H, W, C] float32 on the CPU, at most `_FLOW_SIDE` large."""
    images = images.detach().float().cpu()
    height, width = images.shape[1:3]
    scale = _FLOW_SIDE / max(height, width)
    if scale >= 1:
        return images
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    planes = F.interpolate(images.movedim(-1, 1), size, mode="bilinear", antialias=True, align_corners=False)
    return planes.movedim(1, -1)


def _flow(image: Tensor, following: Tensor) -> Tensor:
    """Return where each pixel of ``image`` is in ``following``, relative: [H, W, 2] pixels (x, y)."""
    from skimage.registration import optical_flow_tvl1

    grey, following_grey = (x.mean(dim=-1).numpy() for x in (image, following))
    rows, columns = optical_flow_tvl1(grey, following_grey)
    return torch.from_numpy(np.stack([columns, rows], axis=-1)).float()


def _moved_back(picture: Tensor, flow: Tensor) -> Tensor:
    """Return ``picture`` [H, W, C] read at every pixel plus its flow; its border goes on outside."""
    height, width = picture.shape[:2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([x, y], dim=-1) + flow + 0.5
    grid = 2 * places / torch.tensor([width, height]) - 1
    planes = picture.permute(2, 0, 1)[None]
    moved = F.grid_sample(planes, grid[None], padding_mode="border", align_corners=False)
    return moved[0].permute(1, 2, 0)
