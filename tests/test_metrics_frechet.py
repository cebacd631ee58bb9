"""The orders in which a grid is watched, and the Frechet distance."""

import pytest
import torch

from sv4d2_core.metrics.frechet import ORDERS, clips_of, frechet_distance


def labels(order: str, n_frames: int, n_views: int) -> list[str]:
    """Return each clip as text, an image being its frame's digit and its view's letter."""
    frames, views = torch.meshgrid(torch.arange(n_frames), torch.arange(n_views), indexing="ij")
    clips = clips_of(torch.stack([frames, views], dim=-1), order)
    return ["".join(f"{t}{'abcdefgh'[v]}" for t, v in clip.tolist()) for clip in clips]


def test_orders_on_labelled_images():
    assert labels("F", 3, 2) == ["0a1a2a", "0b1b2b"]
    assert labels("V", 3, 2) == ["0a0b", "1a1b", "2a2b"]
    assert labels("Diag", 4, 3) == ["0a1b2c3a", "0b1c2a3b", "0c1a2b3c"]
    assert labels("4D", 3, 3) == ["0a1a2a", "2b1b0b", "0c1c2c"]


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_shows_every_image_once(order):
    clips = labels(order, 5, 4)
    shown = sorted(clip[i : i + 2] for clip in clips for i in range(0, len(clip), 2))
    assert shown == [f"{t}{v}" for t in range(5) for v in "abcd"]
    assert len({len(clip) for clip in clips}) == 1


def gaussian(mean: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """Return samples whose mean and unbiased covariance are exactly ``mean`` and ``root root^T``."""
    n = len(mean)
    corners = torch.cat([torch.eye(n), -torch.eye(n)]).double()
    whitened = corners * ((2 * n - 1) / 2) ** 0.5
    return whitened @ root.T + mean


def test_distance_of_two_gaussians_is_the_closed_form():
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    scales = torch.rand(2, 4, generator=generator, dtype=torch.float64) + 0.5
    a, b = (gaussian(m, torch.diag(s)) for m, s in zip(means, scales, strict=True))
    expected = (means[0] - means[1]).square().sum() + (scales[0] - scales[1]).square().sum()
    assert frechet_distance(a, b).distance == pytest.approx(float(expected), rel=1e-9)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
    turned = frechet_distance(a @ rotation, b @ rotation).distance
    assert turned == pytest.approx(float(expected), rel=1e-9)


def test_equal_sets_have_no_distance_and_few_samples_are_said():
    features = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    result = frechet_distance(features, features)
    assert result.distance == pytest.approx(0.0, abs=1e-6)
    assert (result.n_samples, result.n_reference_samples, result.n_features) == (5, 5, 8)
    assert result.rank_deficient
    assert not frechet_distance(torch.randn(9, 8), torch.randn(10, 8)).rank_deficient


def test_shrinkage_makes_covariances_round():
    a = gaussian(torch.zeros(2).double(), torch.diag(torch.tensor([2.0, 0.0]).double()))
    b = gaussian(torch.zeros(2).double(), torch.diag(torch.tensor([0.0, 2.0]).double()))
    assert frechet_distance(a, b).distance == pytest.approx(8.0)
    assert frechet_distance(a, b, shrinkage=1.0).distance == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, b, shrinkage=0.5).shrinkage == 0.5
    with pytest.raises(ValueError, match=r"0 to 1; got 1\.5"):
        frechet_distance(a, b, 1.5)
    with pytest.raises(ValueError, match="finite features"):
        frechet_distance(a.where(a > 0, torch.nan), b)
