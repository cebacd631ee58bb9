"""Differentiable pictures of 3D Gaussians, without compiled extensions. Arguments are named as in gsplat.

Gaussians are put into lists of tiles and blended front to back (Kerbl et al. 2023, section 6), by PyTorch
(`splat_torch.py`), or by Triton kernels on CUDA devices where a first tiny picture works (`splat_triton.py`).
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from typing import NamedTuple

import torch
from torch import Tensor

from ...cameras import Cameras
from ...files import is_out_of_memory
from .splat_torch import (
    MIN_ALPHA,
    GaussiansAt,
    TileLists,
    composite_torch,
    project,
    ray_lengths,
    tile_lists,
)

_log = logging.getLogger(__name__)


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
    if rasteriser(gaussians.means.device) == "triton":
        from .splat_triton import composite_triton as composite
    else:
        composite = composite_torch
    picture = composite(projected.splats, lists)
    rgb, weighted_depth, alpha = picture[..., :3], picture[..., 3], picture[..., 4]
    # Where anything is seen, alpha is at least MIN_ALPHA.
    depth = weighted_depth / alpha.clamp(min=MIN_ALPHA) * ray_lengths(focal, size).to(picture)
    return Splatted(rgb + (1 - alpha)[..., None] * background, alpha, depth)


@functools.cache
def rasteriser(device: torch.device) -> str:
    """Return the rasteriser for a device and log it once: Triton where it works, on CUDA, or PyTorch."""
    if device.type != "cuda":
        _log.info("Gaussians are drawn by torch: the device is %s.", device.type)
        return "torch"
    if importlib.util.find_spec("triton") is None:
        _log.info("Gaussians are drawn by torch: installing the package triton makes this much faster.")
        return "torch"
    fault = triton_fault(device)
    if fault is None:
        _log.info("Gaussians are drawn by triton.")
        return "triton"
    _log.warning(
        "Gaussians are drawn by torch, which is much slower: Triton could not draw a tiny picture (%s). It "
        "needs a C compiler, such as gcc, on the PATH or named by CC.",
        fault,
    )
    return "torch"


def triton_fault(device: torch.device) -> str | None:
    """Return why Triton fails on a device, tried on a few Gaussians; None: it works. Raises OOM errors."""
    try:
        from .splat_triton import composite_triton

        with torch.inference_mode(False), torch.enable_grad():
            # A row of Gaussians across four tiles, all in each list: more than a kernel takes at a time.
            near = torch.tensor([2.0, 3.0, 0.5, 0.1, 0.5, 0.2, 0.2, 0.4, 0.6, 2.0])
            far = torch.tensor([9.5, 8.5, 0.2, -0.1, 0.3, 1.0, 1.0, 0.0, 1.0, 3.0])
            splats = torch.stack([torch.lerp(near, far, i / 19) for i in range(20)])
            tables = torch.arange(20).repeat(4), 20 * torch.arange(5)
            found = []
            # In double precision neither mixed precision nor TF32 makes the reference coarser.
            for composite, leaf in (
                (composite_triton, splats.to(device, copy=True)),
                (composite_torch, splats.double()),
            ):
                lists = TileLists(12, *(table.to(leaf.device) for table in tables))
                picture = composite(leaf.requires_grad_(), lists)
                gradient = torch.autograd.grad(picture.square().sum(), leaf)[0]
                found.append(torch.cat([picture.flatten(), gradient.flatten()]).cpu().double())
        right = torch.allclose(*found, rtol=1e-3, atol=1e-3)
        return None if right else "its picture or gradient is wrong"
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
