"""The terms of the loss that need pixels side by side: structure, smooth depth, smooth and given normals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .config import RefineConfig
from .losses import depth_smoothness, dissimilarity, normal_consistency, normal_smoothness
from .rays import Targets

# Distance of two sets of images [N, P, P, 3] in 0..1, [N], differentiable in the first.
Perceptual = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PatchLoss:
    """The loss of patches, as the weights of the settings say.

    Args:
        config: holds the weights.
        perceptual: such as LPIPS; it takes the place of SSIM.
    """

    config: RefineConfig
    perceptual: Perceptual | None = None

    def __call__(
        self,
        colours: Tensor,  # [N, P, P, 3]
        alpha: Tensor,  # [N, P, P]
        depths: Tensor,  # [N, P, P] along the rays, world units
        points: Tensor,  # [N, P, P, 3] where the depths lie in the world
        target: Targets,  # of shape [N, P, P, ...]
    ) -> Tensor:
        """Return the sum of the terms."""
        config, seen = self.config, alpha.detach()
        solid = _with_neighbours(seen)
        # A doubtful patch counts less as a whole.
        trust = target.weights.mean()
        if self.perceptual is not None:
            structure = config.weight_perceptual * self.perceptual(colours, target.colours).mean()
        else:
            structure = config.weight_ssim * dissimilarity(colours, target.colours)
        normals = surface_normals(points)
        loss = trust * structure + config.weight_depth * depth_smoothness(depths, seen)
        loss = loss + config.weight_normal_smoothness * normal_smoothness(normals, target.colours, solid)
        if target.normals is not None:
            known = target.normals.norm(dim=-1) > 0.5
            given = normal_consistency(normals, target.normals, solid * known * target.weights)
            loss = loss + config.weight_normal * given
        return loss


def _with_neighbours(alpha: Tensor) -> Tensor:
    """Return the opacity of pixels times that of those to the right and below, which make their normal."""
    right, down = F.pad(alpha[:, :, 1:], (0, 1)), F.pad(alpha[:, 1:], (0, 0, 0, 1))
    return alpha * right * down


def surface_normals(points: Tensor) -> Tensor:
    """Return the unit normals that face the camera of surface points [N, P, P, 3], rows downwards.

    The cross product of the differences to the right and downward neighbours; the last row and column repeat
    those before them.
    """
    right, down = points.diff(dim=2)[:, :-1], points.diff(dim=1)[:, :, :-1]
    normals = F.normalize(torch.linalg.cross(down, right), dim=-1, eps=1e-9)
    return F.pad(normals.movedim(-1, 1), (0, 1, 0, 1), mode="replicate").movedim(1, -1)
