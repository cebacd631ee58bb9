"""Where a mesh is seen, worked out without a renderer, and how well two silhouettes agree."""

import numpy as np
import torch
from skimage.draw import polygon

from sv4d2_core.cameras import Cameras

# Triangles of up to this many pixels are worked out together.
_SMALL = 6


def silhouette(
    positions: torch.Tensor, faces: torch.Tensor, cameras: Cameras, view: int, size: int
) -> np.ndarray:
    """Return where the pixel centres lie inside a projected triangle, [size, size] bool."""
    w2c = cameras.w2c_opencv()[view]
    seen = (positions.double() @ w2c[:3, :3].T + w2c[:3, 3]) @ cameras.intrinsics(size).T
    pixels = (seen[:, :2] / seen[:, 2:]).numpy() - 0.5
    mask = np.zeros((size, size), bool)
    corners = pixels[faces.numpy()]
    low = np.ceil(corners.min(1)).astype(int)
    small = (corners.max(1) - low < _SMALL).all(1)
    for x, y in corners[~small].transpose(0, 2, 1):
        mask[polygon(y, x, mask.shape)] = True
    # Whether each of the few pixels around a small triangle lies on the same side of all its edges.
    around = np.stack(np.meshgrid(*[np.arange(_SMALL)] * 2, indexing="ij"), -1).reshape(-1, 2)
    places = low[small, None] + around  # [F, P, 2]
    from_corner = places[:, :, None] - corners[small, None]
    edges = np.roll(corners[small], -1, axis=1) - corners[small]
    sides = edges[:, None, :, 0] * from_corner[..., 1] - edges[:, None, :, 1] * from_corner[..., 0]
    x, y = places[(sides >= 0).all(-1) | (sides <= 0).all(-1)].T
    seen_there = (x >= 0) & (y >= 0) & (x < size) & (y < size)
    mask[y[seen_there], x[seen_there]] = True
    return mask


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection over the union of two silhouettes."""
    return float((a & b).sum() / (a | b).sum())
