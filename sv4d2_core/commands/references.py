"""Reads the images of frame 0 that a user gives for the novel cameras."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..video.frames import load_clip
from ..views import resize_images


def load_reference_views(folder: Path, n_views: int, size: int) -> Tensor:
    """Return reference views [V, size, size, 3] in 0..1 on white.

    Args:
        folder: one square image per novel camera, in the cameras' order by name; transparent parts become
            white; other sizes are resized.
        n_views: V.
        size: image size, pixels.

    Raises:
        ValueError: another number of images, or images that are not square.
    """
    pictures = torch.from_numpy(load_clip(folder, frames=None).frames).float() / 255
    count, height, width, channels = pictures.shape
    if count != n_views or height != width:
        raise ValueError(
            f"Expected {n_views} square reference views in {folder}, one per novel camera (the input view is "
            f"not among them); got {count} of {width} x {height}."
        )
    if channels == 4:
        alpha = pictures[..., 3:]
        pictures = pictures[..., :3] * alpha + (1 - alpha)
    return resize_images(pictures[..., :3].contiguous(), size, size)
