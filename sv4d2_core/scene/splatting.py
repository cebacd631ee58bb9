"""Differentiable pictures of 3D Gaussians, without compiled extensions.

The Gaussians are projected (`splat_projection.py`), put into the lists of the tiles they touch
(`splat_tiles.py`) and blended front to back, by Triton kernels on CUDA devices (`splat_triton.py`) and by
PyTorch anywhere (`splat_torch.py`). Source: Kerbl et al. 2023; names of the arguments as in gsplat.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import logging
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..cameras import Cameras
from .splat_torch import MIN_ALPHA, composite_torch, project, ray_lengths, tile_lists

RASTERISERS = ("gsplat", "triton", "torch")
_log = logging.getLogger(__name__)


class GaussiansAt(NamedTuple):
    """The Gaussians at one time, in the order of `splat`'s arguments.

    Args:
        means: [N, 3] world units.
        quats: [N, 4] wxyz, unit.
        scales: [N, 3] standard deviations along their own axes, world units.
        opacities: [N] in 0..1.
        colours: [N, 3] in 0..1, the same from everywhere.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colours: Tensor


class Splatted(NamedTuple):
    """A picture of Gaussians.

    Args:
        rgb: [size, size, 3] on the background.
        alpha: [size, size] 0..1.
        depth: [size, size] expected distance from the camera centre along the pixel's ray, world units: the
            mean of the Gaussians' depths, weighted as they are seen; 0 where alpha is 0.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor


def splat(
    means: Tensor,  # [N, 3] world units
    quats: Tensor,  # [N, 4] wxyz, any length
    scales: Tensor,  # [N, 3] standard deviations along the Gaussian's own axes, world units
    opacities: Tensor,  # [N] 0..1
    colours: Tensor,  # [N, 3]
    cameras: Cameras,
    view: int,
    size: int,
    *,
    background: float = 1.0,
    backend: str | None = None,
) -> Splatted:
    """Return what one camera sees of N Gaussians; differentiable once with respect to all five tensors.

    Args:
        means, quats, scales, opacities, colours: the Gaussians; N may be 0.
        cameras: where to look from.
        view: entry of ``cameras``, 0 is the input view.
        size: pixels of the square picture.
        background: grey value behind the Gaussians.
        backend: one of `RASTERISERS`; None: what `rasteriser` chooses for the device.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, an unknown view or backend.
        RuntimeError: the package of the rasteriser asked for is not installed.
    """
    cameras.check_view(view)
    _check(means, quats, scales, opacities, colours, size)
    backend = rasteriser(means.device) if backend is None else backend
    if backend not in RASTERISERS:
        raise ValueError(f"Expected a rasteriser out of {', '.join(RASTERISERS)}; got {backend!r}.")
    w2c, focal = cameras.w2c_opencv()[view], float(cameras.intrinsics(size)[0, 0])
    gaussians = GaussiansAt(means, quats, scales, opacities, colours)
    picture = _draw(backend, gaussians, w2c, focal, size)
    rgb, weighted_depth, alpha = picture[..., :3], picture[..., 3], picture[..., 4]
    # Where anything is seen, alpha is at least MIN_ALPHA.
    depth = weighted_depth / alpha.clamp(min=MIN_ALPHA) * ray_lengths(focal, size).to(picture)
    return Splatted(rgb + (1 - alpha)[..., None] * background, alpha, depth)


def rasteriser(device: torch.device) -> str:
    """Return the rasteriser for a device and log it once: gsplat if it needs no build, Triton, or PyTorch."""
    return _rasteriser(device.type)


@functools.cache
def _rasteriser(device_type: str) -> str:
    chosen, why = "torch", f"the device is {device_type}"
    if device_type == "cuda":
        if gsplat_is_built():
            chosen, why = "gsplat", "its compiled extension is installed"
        elif importlib.util.find_spec("triton") is not None:
            chosen, why = "triton", "gsplat is not installed or would have to be compiled first"
        else:
            why = "neither a built gsplat nor triton is installed; installing triton makes this much faster"
    _log.info("Gaussians are drawn by %s: %s.", chosen, why)
    return chosen


def gsplat_is_built() -> bool:
    """Return whether gsplat comes with its compiled extension; without, using it may start a compiler."""
    spec = importlib.util.find_spec("gsplat")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    names = [f"csrc{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    return any((Path(folder) / name).is_file() for folder in folders for name in names)


def _draw(backend: str, gaussians: GaussiansAt, w2c: Tensor, focal: float, size: int) -> Tensor:
    """Return red, green, blue and depth times weight, and alpha, [size, size, 5]."""
    if backend != "torch" and importlib.util.find_spec(backend) is None:
        raise RuntimeError(
            f"The rasteriser {backend!r} needs the package {backend}, which is not installed here. Install "
            f"it, or use the rasteriser 'torch'."
        )
    if backend == "gsplat":
        from .splat_gsplat import composite_gsplat

        return composite_gsplat(*gaussians, w2c, focal, size)
    projected = project(*gaussians, w2c, focal, size)
    lists = tile_lists(projected, size)
    if backend == "triton":
        from .splat_triton import composite_triton

        return composite_triton(projected.splats, lists)
    return composite_torch(projected.splats, lists)


def _check(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colours: Tensor, size: int
) -> None:
    """Raise ValueError unless the tensors are N finite Gaussians and the size is a size."""
    tensors = {"means": means, "quats": quats, "scales": scales, "opacities": opacities, "colours": colours}
    n = len(means)
    expected = {"means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,), "colours": (n, 3)}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise ValueError(f"Expected {name} of shape {expected[name]}; got {tuple(tensor.shape)}.")
    if size < 1:
        raise ValueError(f"Expected a picture of at least 1 pixel; got {size}.")
    # One look at a sum is cheaper than five at the tensors; a finite sum means finite tensors.
    finite = torch.stack([tensor.detach().sum().to(means) for tensor in tensors.values()]).isfinite().all()
    bad = [] if finite else [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise ValueError(
            f"Expected finite Gaussians; {' and '.join(bad)} holds NaN or infinity, so the fit "
            f"has diverged. Lower the learning rate."
        )
