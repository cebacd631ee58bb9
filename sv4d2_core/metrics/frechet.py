"""Frechet distances between the clips of a grid of views, watched in the four orders of SV4D.

The features of a clip come from I3D (FVD), or from HOG3D and colour descriptors, which need no network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

ClipFeatures = Callable[[Tensor], Tensor]  # clips [N, T, H, W, 3] in 0..1 to features [N, D]


@dataclass(frozen=True)
class FrechetDistance:
    """A distance with what is needed to judge it."""

    distance: float  # squared, of the two Gaussians
    n_samples: int
    n_reference_samples: int
    shrinkage: float  # share of the covariances that was replaced by a multiple of the identity
    n_features: int  # length of a feature vector

    @property
    def rank_deficient(self) -> bool:
        """Whether a covariance lacks samples to be full: compare such values only with each other."""
        return min(self.n_samples, self.n_reference_samples) <= self.n_features


def frechet_distance(features: Tensor, reference: Tensor, shrinkage: float = 0.0) -> FrechetDistance:
    """Return the distance between Gaussians fitted to features [N, D] and [M, D], N and M at least 2.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``, where unbiased covariances are shrunk towards
    ``tr(S)/D*I`` by ``shrinkage`` in 0..1, the same for all that is compared. Raises ValueError for one out
    of range and values that are not finite.
    """
    for name, x in (("features", features), ("reference features", reference)):
        if not x.isfinite().all():
            raise ValueError(f"Expected finite {name}; got NaN or infinite ones. Look at the images.")
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"Expected a shrinkage from 0 to 1; got {shrinkage:g}.")
    x, y = features.detach().cpu().double(), reference.detach().cpu().double()
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    cov_x, cov_y = _covariance(x - mean_x, shrinkage), _covariance(y - mean_y, shrinkage)
    values, vectors = torch.linalg.eigh(cov_x)
    root_x = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # tr((S1 S2)^(1/2)) is the sum of the roots of the eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2).
    cross = torch.linalg.eigvalsh(root_x @ cov_y @ root_x).clamp(min=0).sqrt().sum()
    distance = (mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross
    return FrechetDistance(max(0.0, float(distance)), len(x), len(y), shrinkage, x.shape[1])


def _covariance(centred: Tensor, shrinkage: float) -> Tensor:
    """Return the unbiased covariance [D, D] of centred samples [N, D], shrunk towards a multiple of I."""
    n_features = centred.shape[1]
    covariance = centred.T @ centred / (len(centred) - 1)
    target = covariance.trace() / n_features * torch.eye(n_features, dtype=centred.dtype)
    return torch.lerp(covariance, target, shrinkage)


ORDERS = ("F", "V", "Diag", "4D")


def clips_of(images: Tensor, order: str) -> Iterator[Tensor]:
    """Yield the clips [L, ...] of a grid [T, V, ...] of novel views, watched in one of `ORDERS`.

    F: the T frames of each view. V: the V views of each frame. Diag: clip n shows view (n + t) mod V at frame
    t. 4D: as F, but every second view backwards, as in a scan through all images.
    """
    n_frames, n_views = images.shape[:2]
    frames = torch.arange(n_frames)
    if order == "V":
        yield from images
    elif order == "Diag":
        yield from (images[frames, (start + frames) % n_views] for start in range(n_views))
    else:
        turns = order == "4D"
        yield from (images[:, v].flip(0) if turns and v % 2 else images[:, v] for v in range(n_views))


def clip_features(images: Tensor, describe: ClipFeatures, order: str) -> Tensor:
    """Return the features [N, D] of all clips of a grid [T, V, H, W, 3] in one of `ORDERS`."""
    return torch.cat([describe(clip[None]) for clip in clips_of(images, order)])


_HOG3D_SIDE = 64
_CELLS, _COLOUR_CELLS = (2, 3, 3), (4, 4)  # of gradients along time, y, x; of colours along y, x
_NEIGHBOUR_DEG = 41.8  # between neighbours among the axes of `_axes`


def hog3d_features(clips: Tensor) -> Tensor:
    """Return one vector per clip [N, T, H, W, 3] in 0..1, [N, 276] float32 on the CPU; T is at least 2.

    Histograms of the grey level's gradients in time and space over the ten axes of a dodecahedron's corners
    in 2 x 3 x 3 cells, and mean and deviation over time of the colours in 4 x 4 cells, all at 64 x 64 pixels.

    Source: Klaeser, Marszalek, Schmid 2008, "A Spatio-Temporal Descriptor Based on 3D-Gradients".
    """
    return torch.stack([_described(clip) for clip in clips])


def _described(clip: Tensor) -> Tensor:
    images = clip.detach().float().cpu().permute(0, 3, 1, 2)
    size = (_HOG3D_SIDE, _HOG3D_SIDE)
    images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    cells = F.adaptive_avg_pool2d(images, _COLOUR_CELLS)
    colours = [cells.mean(dim=0).flatten(), cells.std(dim=0, correction=0).flatten()]
    return torch.cat([_gradient_histograms(images.mean(dim=1)).flatten(), *colours])


def _gradient_histograms(grey: Tensor) -> Tensor:
    """Return the histograms [10, 2, 3, 3] of a clip [T, H, W]."""
    gradient = torch.stack(torch.gradient(grey, dim=(0, 1, 2)), dim=-1)
    magnitude = gradient.norm(dim=-1, keepdim=True)
    along = (gradient @ _axes().T).abs() / magnitude.clamp(min=1e-8)
    # A gradient counts for an axis as far as it is nearer to it than the next axis would be.
    votes = (along - math.cos(math.radians(_NEIGHBOUR_DEG))).clamp(min=0)
    votes = votes / votes.sum(dim=-1, keepdim=True).clamp(min=1e-8) * magnitude
    return F.adaptive_avg_pool3d(votes.movedim(-1, 0), _CELLS) * 10


def _axes() -> Tensor:
    """Return the ten axes through opposite corners of a dodecahedron, unit vectors [10, 3]."""
    phi = (1 + math.sqrt(5)) / 2
    corners = [(1, y, z) for y in (1, -1) for z in (1, -1)]
    for sign in (1, -1):
        corners += [(0, 1 / phi, sign * phi), (1 / phi, sign * phi, 0), (sign * phi, 0, 1 / phi)]
    return F.normalize(torch.tensor(corners, dtype=torch.float32), dim=-1)
