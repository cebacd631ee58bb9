"""Differentiable pictures of 3D Gaussians, without compiled extensions. Arguments are named as in gsplat.

Gaussians are put into lists of tiles and blended front to back (Kerbl et al. 2023, section 6), by PyTorch
(`splat_torch.py`), or by Triton kernels on CUDA devices where a first tiny picture works (`splat_triton.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...cameras import Cameras
from .. import kernels
from .splat_torch import (
    MIN_ALPHA,
    GaussiansAt,
    TileLists,
    composite_torch,
    project,
    ray_lengths,
    tile_lists,
)

_Composite = Callable[[Tensor, TileLists], Tensor]


class Splatted(NamedTuple):
    """A picture of Gaussians."""

    rgb: Tensor  # [size, size, 3] on the background
    alpha: Tensor  # [size, size] 0..1
    # [size, size] distance from the camera centre along the pixel's ray, world units: the mean of the
    # Gaussians' depths, weighted as they are seen; 0 where alpha is 0.
    depth: Tensor


def splat(
    gaussians: GaussiansAt,  # may be none
    cameras: Cameras,
    view: int,  # entry of cameras, 0 is the input view
    size: int,  # pixels of the square picture
    *,
    background: float = 1.0,  # grey value behind the Gaussians
) -> Splatted:
    """Return what one camera sees of N Gaussians; differentiable once with respect to all five tensors."""
    w2c, focal = cameras.w2c_opencv()[view], float(cameras.intrinsics(size)[0, 0])
    projected = project(gaussians, w2c, focal, size)
    lists = tile_lists(projected, size)
    if drawn_by_triton(gaussians.means.device):
        from .splat_triton import composite_triton as composite
    else:
        composite = composite_torch
    picture = composite(projected.splats, lists)
    rgb, weighted_depth, alpha = picture[..., :3], picture[..., 3], picture[..., 4]
    # Where anything is seen, alpha is at least MIN_ALPHA.
    depth = weighted_depth / alpha.clamp(min=MIN_ALPHA) * ray_lengths(focal, size).to(picture)
    return Splatted(rgb + (1 - alpha)[..., None] * background, alpha, depth)


def drawn_by_triton(device: torch.device) -> bool:
    """Return whether Triton draws on a device, and log it once."""
    return kernels.by_triton("Gaussians are drawn", device, tiny)


def tiny() -> kernels.Try:
    """Return a row of Gaussians across four tiles, all in each list: more than a kernel takes at a time."""
    from .splat_triton import composite_triton

    near = torch.tensor([2.0, 3.0, 0.5, 0.1, 0.5, 0.2, 0.2, 0.4, 0.6, 2.0])
    far = torch.tensor([9.5, 8.5, 0.2, -0.1, 0.3, 1.0, 1.0, 0.0, 1.0, 3.0])
    splats = torch.stack([torch.lerp(near, far, i / 19) for i in range(20)])
    tables = torch.arange(20).repeat(4), 20 * torch.arange(5)

    def within(composite: _Composite) -> Callable[[Tensor], Tensor]:
        return lambda x: composite(x, TileLists(12, *(table.to(x.device) for table in tables)))

    return kernels.Try(within(composite_triton), within(composite_torch), (splats,))
