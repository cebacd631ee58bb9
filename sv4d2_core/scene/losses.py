"""The terms of the fit's loss: differentiable functions that return one number each.

All are means, so that weights do not depend on the number of rays (the papers write sums, without weights).
Pixel weights are not divided out: a batch of doubtful pixels counts less as a whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-6  # keeps square roots and logarithms differentiable at 0
_EDGE_SHARPNESS = 3.0  # how fast an edge in the image permits one in the normals (SAMURAI, SV3D, SV4D)
_SSIM_WINDOW = 11  # pixels (Wang et al. 2004)


def mean_squared(rendered: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return the mean squared colour difference of [..., 3], under pixel weights [...]."""
    return (weights * (rendered - target).square().mean(-1)).mean()


def mask_loss(alpha: Tensor, masks: Tensor) -> Tensor:
    """Return the mean squared difference of opacities [...]. Source: SV3D and SV4D, mask loss."""
    return (alpha - masks).square().mean()


def depth_smoothness(depths: Tensor, weights: Tensor) -> Tensor:
    """Return the mean squared depth difference of neighbours on patches [N, P, P], weighted by both ends.

    With opacities as weights the step from the object to nothing costs nothing. Source: RegNeRF (2112.00724),
    depth smoothness; used by SV3D and SV4D.
    """
    down = weights[:, 1:] * weights[:, :-1] * depths.diff(dim=1).square()
    right = weights[:, :, 1:] * weights[:, :, :-1] * depths.diff(dim=2).square()
    return down.mean() + right.mean()


def normal_smoothness(normals: Tensor, images: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean exp(-3 |grad I|) (sqrt(1 + |grad n|) - 1) of normals and colours [N, P, P, 3].

    Gradients are Sobel's; the papers' constant 1 is taken off, so that a flat surface costs nothing.
    Source: SV3D (2403.12008), SV4D (2407.17470), bilateral normal smoothness.
    """
    edges = torch.exp(-_EDGE_SHARPNESS * _gradient_norm(images))
    roughness = (1 + _gradient_norm(normals)).sqrt() - 1
    return (weights[:, 1:-1, 1:-1] * (edges * roughness)).mean()


def normal_consistency(normals: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of 1 - n . m over unit normals [..., 3] and an estimator's m. Source: SV3D, SV4D."""
    return (weights * (1 - (normals * targets).sum(-1))).mean()


def alpha_entropy(alpha: Tensor) -> Tensor:
    """Return the mean binary entropy, nats, of opacities [...]: 0 where they are 0 or 1; it removes fog."""
    p = alpha.clamp(_TINY, 1 - _TINY)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()


def total_variation(planes: Tensor) -> Tensor:
    """Return the mean squared difference of neighbours of planes [C, H, W] (K-Planes, 2301.10241, 4.2)."""
    return planes.diff(dim=-2).square().mean() + planes.diff(dim=-1).square().mean()


def second_difference(planes: Tensor) -> Tensor:
    """Return the mean squared second time difference of [C, T, N], 0 if T < 3 (K-Planes, 2301.10241, 4.2)."""
    return planes.diff(n=2, dim=-2).square().mean() if planes.shape[-2] > 2 else planes.sum() * 0


def time_difference(planes: Tensor) -> Tensor:
    """Return the mean squared difference of neighbours along time of planes [T, ...]; 0 when T is 1."""
    return planes.diff(dim=0).square().mean() if len(planes) > 1 else planes.sum() * 0


def dissimilarity(rendered: Tensor, target: Tensor) -> Tensor:
    """Return 1 - mean SSIM of patches [N, P, P, 3] in 0..1, of windows up to P (Wang et al. 2004, eq. 13)."""
    from kornia.metrics import ssim

    x, y = rendered.movedim(-1, 1), target.movedim(-1, 1)
    smallest = min(x.shape[-2:])
    window = min(_SSIM_WINDOW, smallest - 1 + smallest % 2)
    return 1 - ssim(x, y, window, eps=0.0, padding="valid").mean()


def _gradient_norm(maps: Tensor) -> Tensor:
    """Return the norm of Sobel's gradient of [N, P, P, C] over directions and channels, [N, P - 2, P - 2]."""
    from kornia.filters import spatial_gradient

    gradients = spatial_gradient(maps.movedim(-1, 1))[..., 1:-1, 1:-1]  # [N, C, 2, P - 2, P - 2]
    return (gradients.square().sum((1, 2)) + _TINY**2).sqrt() - _TINY
