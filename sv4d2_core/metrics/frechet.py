"""The Frechet distance between two sets of features, honest about how few samples there are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FrechetDistance:
    """A distance with what is needed to judge it.

    Args:
        distance: squared Frechet distance of the two Gaussians.
        n_samples, n_reference_samples: number of feature vectors on each side.
        shrinkage: share of the covariances that was replaced by a multiple of the identity, 0 for none.
        n_features: length of a feature vector.
    """

    distance: float
    n_samples: int
    n_reference_samples: int
    shrinkage: float
    n_features: int

    @property
    def rank_deficient(self) -> bool:
        """Whether a covariance lacks samples to be full: compare such values only with each other."""
        return min(self.n_samples, self.n_reference_samples) <= self.n_features


def frechet_distance(features: Tensor, reference: Tensor, shrinkage: float = 0.0) -> FrechetDistance:
    """Return the distance between Gaussians fitted to two sets of feature vectors.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` with unbiased covariances, each shrunk towards
    ``tr(S) / D * I`` by ``shrinkage``.

    Args:
        features: [N, D].
        reference: [M, D].
        shrinkage: 0 to 1; the same for all values that are compared.

    Raises:
        ValueError: fewer than two vectors, different lengths, values that are not finite, or a shrinkage out
            of range.
    """
    for name, x in (("features", features), ("reference features", reference)):
        if x.ndim != 2 or len(x) < 2:
            raise ValueError(f"Expected {name} [N, D] with at least 2 samples; got {list(x.shape)}.")
        if not x.isfinite().all():
            raise ValueError(f"Expected finite {name}; got NaN or infinite ones. Look at the images.")
    if features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"Expected features of one length; got {features.shape[1]} and {reference.shape[1]}. Use one "
            f"network for both."
        )
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"Expected a shrinkage from 0 to 1; got {shrinkage:g}.")
    x, y = features.detach().cpu().double(), reference.detach().cpu().double()
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    cov_x, cov_y = _covariance(x - mean_x, shrinkage), _covariance(y - mean_y, shrinkage)
    root_x = _square_root(cov_x)
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


def _square_root(matrix: Tensor) -> Tensor:
    """Return the symmetric root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
