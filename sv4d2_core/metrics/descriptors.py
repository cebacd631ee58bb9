"""A description of clips that needs no network: where edges and motions point, and the colours.

Frechet distances over it order clips as FVD does, but are another measure with other numbers, and are never
called FVD. Their names here begin with FHD, Frechet HOG3D distance.

Source: Klaeser, Marszalek, Schmid 2008, "A Spatio-Temporal Descriptor Based on 3D-Gradients" (HOG3D).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_SIDE = 64
# Cells along time, height and width of the gradient histograms, and along height and width of the colours.
_CELLS, _COLOUR_CELLS = (2, 3, 3), (4, 4)


def hog3d_features(clips: Tensor) -> Tensor:
    """Return one vector per clip, [N, 276] float32 on the CPU.

    Histograms of the grey level's gradients in time and space over the ten axes of a dodecahedron's corners
    in 2 x 3 x 3 cells, and mean and deviation over time of the colours in 4 x 4 cells. One pixel of a 64
    pixel picture and one image of the clip are the units of the gradients.

    Args:
        clips: [N, T, H, W, 3] in 0..1, resized to 64 x 64; T at least 2.

    Raises:
        ValueError: clips of one image.
    """
    if clips.shape[1] < 2:
        raise ValueError(
            f"Expected clips of at least 2 images; got {clips.shape[1]}. Use more frames or views."
        )
    return torch.stack([_described(clip) for clip in clips])


def _described(clip: Tensor) -> Tensor:
    images = clip.detach().float().cpu().permute(0, 3, 1, 2)
    images = F.interpolate(images, (_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False)
    cells = F.adaptive_avg_pool2d(images, _COLOUR_CELLS)
    colours = torch.cat([cells.mean(dim=0).flatten(), cells.std(dim=0, correction=0).flatten()])
    return torch.cat([_gradient_histograms(images.mean(dim=1)).flatten(), colours])


def _gradient_histograms(grey: Tensor) -> Tensor:
    """Return the histograms [10, 2, 3, 3] of a clip [T, H, W]."""
    gradient = torch.stack(torch.gradient(grey, dim=(0, 1, 2)), dim=-1)
    magnitude = gradient.norm(dim=-1, keepdim=True)
    along = (gradient @ _axes().T).abs() / magnitude.clamp(min=1e-8)
    # A gradient counts for an axis as far as it is nearer to it than the next axis would be.
    votes = (along - math.cos(math.radians(41.8))).clamp(min=0)
    votes = votes / votes.sum(dim=-1, keepdim=True).clamp(min=1e-8) * magnitude
    return F.adaptive_avg_pool3d(votes.movedim(-1, 0), _CELLS) * 10


def _axes() -> Tensor:
    """Return the ten axes through opposite corners of a dodecahedron, unit vectors [10, 3]."""
    phi = (1 + math.sqrt(5)) / 2
    corners = [(1, y, z) for y in (1, -1) for z in (1, -1)]
    for sign in (1, -1):
        corners += [(0, 1 / phi, sign * phi), (1 / phi, sign * phi, 0), (sign * phi, 0, 1 / phi)]
    return F.normalize(torch.tensor(corners, dtype=torch.float32), dim=-1)
