"""Projection of 3D Gaussians to 2D Gaussians on the picture of one camera.

Source: Zwicker et al. 2001, "EWA Splatting" (the affine approximation of the perspective projection by its
Jacobian, the low-pass filter); Kerbl et al. 2023, "3D Gaussian Splatting for Real-Time Radiance Field
Rendering" (covariance from rotation and scale, filter of 0.3 px, the limit of the Jacobian off screen).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOW_PASS = 0.3  # square pixels, added to the 2D variance
NEAR = 0.01  # world units along the optical axis; nearer Gaussians and those behind the camera are skipped
MIN_ALPHA = 1 / 255  # what a contribution must reach in a pixel
MAX_ALPHA = 0.99
MIN_TRANSMITTANCE = 1e-4  # a Gaussian that would leave less light than this, and all behind it, are skipped
_SCREEN_MARGIN = 1.3  # the Jacobian is evaluated at most this many half pictures from the centre

# Columns of `Projected.splats`.
MEAN_X, MEAN_Y, WHITEN_P, WHITEN_H, WHITEN_R, OPACITY, RED, GREEN, BLUE, DEPTH = range(10)


@dataclass(frozen=True)
class Projected:
    """M of N Gaussians, those that may show, nearest first.

    A pixel centre at the offset (dx, dy) from the mean has alpha ``opacity * exp(-(u^2 + v^2) / 2)`` with
    ``u = p dx + h dy`` and ``v = r dy``: (p, h, r) is the upper triangular root of the inverse 2D covariance.

    Args:
        splats: [M, 10] mean x, mean y (pixels), p, h, r (1 / pixels), opacity, red, green, blue, depth
            along the optical axis. Differentiable.
        extents: [M, 2] half width and height of the box outside of which alpha is below 1/255, pixels.
    """

    splats: Tensor
    extents: Tensor


def project(
    means: Tensor,  # [N, 3] world units
    quats: Tensor,  # [N, 4] wxyz, any length
    scales: Tensor,  # [N, 3] standard deviations, world units
    opacities: Tensor,  # [N] 0..1
    colours: Tensor,  # [N, 3]
    w2c: Tensor,  # [4, 4] OpenCV camera axes
    focal: float,  # pixels
    size: int,
) -> Projected:
    """Return the Gaussians as seen by a camera whose principal point is the centre of its square picture."""
    w2c = w2c.to(means)
    x, y, z = (means @ w2c[:3, :3].T + w2c[:3, 3]).unbind(-1)
    front = z > NEAR
    # The value of what is not in front does not matter, but its gradient must stay finite.
    z = torch.where(front, z, torch.ones_like(z))
    centre = torch.stack([focal * x / z + size / 2, focal * y / z + size / 2], dim=-1)
    row_x, row_y = _picture_axes(x / z, y / z, w2c[:3, :3] @ rotations(quats) * scales[:, None], focal, size)
    row_x, row_y = row_x / z[:, None], row_y / z[:, None]
    whitening, variances = _whitening(row_x, row_y)
    # Colours keep their own type under mixed precision; the list of pictures does not.
    columns = [centre, whitening, opacities[:, None], colours, z[:, None]]
    splats = torch.cat([column.to(means) for column in columns], dim=-1)
    with torch.no_grad():
        reach = (2 * torch.log((opacities / MIN_ALPHA).clamp(min=1))).sqrt()
        # Rounding must not move a pixel at the limit out of the box.
        extents = reach[:, None] * variances.sqrt() * (1 + 1e-4) + 1e-3
        inside = ((centre + extents > 0.5) & (centre - extents < size - 0.5)).all(-1)
        shown = torch.nonzero(front & inside & (opacities >= MIN_ALPHA)).squeeze(-1)
        order = shown[torch.argsort(z[shown], stable=True)]
    return Projected(splats[order], extents[order])


def rotations(quats: Tensor) -> Tensor:
    """Return the rotation matrices of quaternions (w, x, y, z) of any length, [N, 4] -> [N, 3, 3]."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    entries = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def _picture_axes(
    slope_x: Tensor, slope_y: Tensor, axes: Tensor, focal: float, size: int
) -> tuple[Tensor, Tensor]:
    """Return z times the two rows of Jacobian x axes, [N, 3] each: where the scaled axes end in the picture.

    Args:
        slope_x: [N] x / z of the means in the camera.
        slope_y: [N] y / z.
        axes: [N, 3, 3] the Gaussians' axes in the camera, one per column, as long as their scales.
        focal: pixels.
        size: pixels.
    """
    limit = _SCREEN_MARGIN * size / 2 / focal
    row_x = axes[:, 0] - slope_x.clamp(-limit, limit)[:, None] * axes[:, 2]
    row_y = axes[:, 1] - slope_y.clamp(-limit, limit)[:, None] * axes[:, 2]
    return focal * row_x, focal * row_y


def _whitening(row_x: Tensor, row_y: Tensor) -> tuple[Tensor, Tensor]:
    """Return (p, h, r) [N, 3] of `Projected` and the variances along x and y [N, 2], low-pass included.

    The determinant is a sum of squares (Cauchy-Binet: the 2x2 minors of the rows are their cross product),
    so that needles lose no digits in float32.
    """
    square_x, square_y = (row_x * row_x).sum(-1), (row_y * row_y).sum(-1)
    xx, yy, xy = square_x + LOW_PASS, square_y + LOW_PASS, (row_x * row_y).sum(-1)
    minors = torch.linalg.cross(row_x, row_y)
    det = (minors * minors).sum(-1) + LOW_PASS * (square_x + square_y) + LOW_PASS**2
    whitening = torch.stack([(yy / det).sqrt(), -xy / (yy * det).sqrt(), yy.rsqrt()], dim=-1)
    return whitening, torch.stack([xx, yy], dim=-1)


def ray_lengths(focal: float, size: int) -> Tensor:
    """Return the distance along each pixel's ray per unit of depth, [size, size] float64, at least 1."""
    offset = (torch.arange(size, dtype=torch.float64) + 0.5 - size / 2) / focal
    return (1 + offset[:, None] ** 2 + offset[None] ** 2).sqrt()
