"""Values of feature planes at the projections of points."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

# The axes that each of the three planes of space spans.
PLANE_AXES = ((0, 1), (0, 2), (1, 2))


def sample_planes(planes: Tensor, coordinates: Tensor) -> Tensor:
    """Return the bilinear values [3, C, N] of three planes [3, C, H, W] at [3, 1, N, 2] (x along W)."""
    return F.grid_sample(planes, coordinates, align_corners=True, padding_mode="border")[:, :, 0]
