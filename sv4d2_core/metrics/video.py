"""Frechet distances between the clips of a grid of views, watched in the four orders of SV4D.

All orders leave out view 0, the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .orders import ORDERS

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
