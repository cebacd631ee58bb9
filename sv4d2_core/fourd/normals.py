"""Normals of the views from an estimator: pictures to unit vectors."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..cameras import Cameras
from ..views import ViewGrid

# A colour is a normal where its length differs from 1 by less; those of black, grey and white do not.
_SLACK = 0.5


def unpacked_normals(pictures: torch.Tensor) -> torch.Tensor:
    """Return unit normals [..., 3] from colours (normal + 1) / 2; 0 where a colour is no unit vector."""
    normals = pictures * 2 - 1
    length = normals.norm(dim=-1, keepdim=True)
    return torch.where((length - 1).abs() < _SLACK, normals / length.clamp(min=1e-6), 0.0)


def packed_normals(normals: torch.Tensor, cameras: Cameras) -> torch.Tensor:
    """Return colours (normal + 1) / 2 in each camera's OpenGL axes of world normals; grey: there is none.

    Args:
        normals: [T, V + 1, H, W, 3] unit, or 0.
        cameras: the V + 1 cameras.
    """
    axes = cameras.c2w_opengl()[:, :3, :3].to(normals)
    return torch.einsum("tvhwi,vij->tvhwj", normals, axes) / 2 + 0.5


def resized_normals(normals: torch.Tensor, size: int) -> torch.Tensor:
    """Return normals [T, V + 1, H, W, 3] of another picture size; what is not known stays 0."""
    planes = F.interpolate(normals.flatten(0, 1).movedim(-1, 1), (size, size), mode="area")
    return F.normalize(planes, dim=1).movedim(1, -1).unflatten(0, tuple(normals.shape[:2]))


def checked_normals(normals: torch.Tensor | None, views: ViewGrid) -> torch.Tensor | None:
    """Return float32 normals on the CPU, of length 1 or 0.

    Raises:
        ValueError: normals of other pictures than the views, or values that are not finite.
    """
    if normals is None:
        return None
    if normals.shape != views.images.shape or not normals.isfinite().all():
        raise ValueError(
            f"Expected finite normals {list(views.images.shape)} like the views; got {list(normals.shape)}. "
            f"Estimate them from the views, the input included, at the same size."
        )
    normals = normals.detach().cpu().float()
    length = normals.norm(dim=-1, keepdim=True)
    return torch.where(length > 0.1, normals / length.clamp(min=1e-6), 0.0)
