"""Depth and normals of a scene as the host's IMAGE, and normals back again."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from ..sv4d2_core.scene.targets import resized_normals, unpacked_normals
from ..sv4d2_core.views import ViewGrid

# Pixels below this opacity do not set the range of the depth.
_OPAQUE = 0.5


def depth_images(depth: Tensor, alpha: Tensor) -> Tensor:
    """Return depths [..., H, W] as grey images [..., H, W, 3]: white is nearest, black farthest or nothing.

    One range for all pictures, so that a video does not flicker.
    """
    seen = alpha >= _OPAQUE
    if not seen.any():
        return torch.zeros(*depth.shape, 3)
    near, far = depth[seen].min(), depth[seen].max()
    nearness = ((far - depth) / (far - near).clamp(min=1e-6)).clamp(0, 1) * alpha
    return nearness[..., None].expand(*depth.shape, 3).contiguous()


def normals_of_images(images: Tensor, views: ViewGrid) -> Tensor:
    """Return normals [T, V + 1, H, W, 3] at the size of the views, of images as `packed_normals` makes them.

    Args:
        images: [(V + 1) * T, h, w, 3] in 0..1, view by view.
        views: that they belong to.

    Raises:
        ValueError: another number of images, or not 3 channels.
    """
    n_views, size = views.n_views + 1, views.images.shape[2]
    if len(images) != n_views * views.n_frames or images.shape[-1] != 3:
        raise ValueError(
            f"Expected {n_views * views.n_frames} normal maps with 3 channels ({n_views} views x "
            f"{views.n_frames} frames, the input view first); got {len(images)} with {images.shape[-1]}. "
            "Estimate them from SV4D2 Views to Images, mode all views, include_input on."
        )
    normals = rearrange(unpacked_normals(images.float().cpu()), "(v t) h w c -> t v h w c", v=n_views)
    return resized_normals(normals, size)
