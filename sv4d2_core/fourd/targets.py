"""What a round of the second stage is fitted to, in 8 bits: as exact as a picture file, small in a state."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cameras import Cameras
from ..views import ViewGrid

_NAMES = ("images", "masks", "weights")


@dataclass(frozen=True)
class RoundTargets:
    """Views of other cameras, or the views themselves under other weights.

    Args:
        cameras: V' + 1, the input first.
        images: [T, V' + 1, H, W, 3] uint8.
        masks: [T, V' + 1, H, W] uint8.
        weights: [T, V' + 1, H, W] uint8, how much a pixel's colour counts, of 255.
    """

    cameras: Cameras
    images: Tensor
    masks: Tensor
    weights: Tensor

    @classmethod
    def of(cls, views: ViewGrid, weights: Tensor) -> RoundTargets:
        """Return views with masks, and weights in 0..1, rounded.

        Raises:
            ValueError: views without masks.
        """
        if views.masks is None:
            raise ValueError("Expected views with masks; got none.")
        rounded = ((x * 255).round().to(torch.uint8) for x in (views.images, views.masks, weights))
        return cls(views.cameras, *rounded)

    def unpacked(self, views: ViewGrid) -> tuple[ViewGrid, Tensor]:
        """Return the targets of these ``views`` as floats, the input view exactly as there, and weights."""
        images, masks, weights = (x.float() / 255 for x in (self.images, self.masks, self.weights))
        images[:, 0] = views.images[:, 0]
        if views.masks is not None:
            masks[:, 0] = views.masks[:, 0]
        return replace(views, images=images, masks=masks, cameras=self.cameras), weights

    def tensors(self) -> dict[str, Tensor]:
        """Return what a state keeps beside the cameras."""
        return {f"targets.{name}": getattr(self, name) for name in _NAMES}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], cameras: Cameras) -> RoundTargets:
        """Return the targets from what `tensors` returned."""
        return cls(cameras, *(tensors[f"targets.{name}"] for name in _NAMES))
