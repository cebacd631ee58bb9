"""The rasteriser of the package gsplat, used where it is installed ready built.

Untested here: written from the documentation of `gsplat.rasterization` 1.5. It clamps alpha at 0.999 where
ours clamps at 0.99 (Kerbl et al. 2023), so pictures differ slightly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .splat_torch import LOW_PASS, NEAR


def composite_gsplat(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colours: Tensor,
    w2c: Tensor,
    focal: float,
    size: int,
) -> Tensor:
    """Return red, green, blue and depth times weight, and alpha, [size, size, 5]; arguments as `project`."""
    import gsplat  # pyright: ignore[reportMissingImports]

    intrinsics = means.new_tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    picture, alpha, _ = gsplat.rasterization(
        means,
        quats,
        scales,
        opacities,
        colours,
        w2c.to(means)[None],
        intrinsics[None],
        size,
        size,
        near_plane=NEAR,
        eps2d=LOW_PASS,
        render_mode="RGB+D",
    )
    return torch.cat([picture, alpha], dim=-1)[0]
