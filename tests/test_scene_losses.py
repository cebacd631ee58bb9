"""The fit's loss terms: known values, and gradients against finite differences."""

import math

import pytest
import torch
from torch import Tensor

from sv4d2_core.metrics.image import ssim
from sv4d2_core.scene import losses

torch.set_num_threads(1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return values in 0.1..0.9, away from the kinks."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return 0.1 + 0.8 * torch.rand(shape, generator=generator, dtype=torch.float64)


def ramp(size: int, slope: float) -> Tensor:
    """Return one patch [1, size, size] that rises to the right."""
    return (slope * torch.arange(size, dtype=torch.float64)).expand(1, size, size)


OTHER, WEIGHTS, IMAGES = noise(2, 6, 6, 3, seed=1), noise(2, 6, 6, seed=2), noise(2, 6, 6, 3, seed=3)
TERMS = {
    "mean_squared": (lambda x: losses.mean_squared(x, OTHER, WEIGHTS), (2, 6, 6, 3)),
    "mask_loss": (lambda x: losses.mask_loss(x, OTHER[..., 0]), (2, 6, 6)),
    "depth_smoothness": (lambda x: losses.depth_smoothness(x, WEIGHTS), (2, 6, 6)),
    "normal_smoothness": (lambda x: losses.normal_smoothness(x, IMAGES, WEIGHTS), (2, 6, 6, 3)),
    "normal_consistency": (lambda x: losses.normal_consistency(x, OTHER, WEIGHTS), (2, 6, 6, 3)),
    "alpha_entropy": (losses.alpha_entropy, (2, 6, 6)),
    "total_variation": (losses.total_variation, (3, 4, 5)),
    "second_difference": (losses.second_difference, (3, 4, 5)),
    "time_difference": (losses.time_difference, (3, 4, 5)),
    "dissimilarity": (lambda x: losses.dissimilarity(x, OTHER), (2, 6, 6, 3)),
}


@pytest.mark.parametrize("name", TERMS)
def test_gradients_agree_with_finite_differences(name: str):
    term, shape = TERMS[name]
    x = noise(*shape, seed=7).requires_grad_()
    value = term(x)
    assert value.shape == () and float(value.detach()) > 0
    assert torch.autograd.gradcheck(term, x)
    assert float(torch.autograd.grad(value, x)[0].abs().sum()) > 0


@pytest.mark.parametrize("term", [losses.mean_squared, losses.normal_consistency])
def test_weights_of_a_half_halve_the_loss_and_zero_weights_drop_a_pixel(term):
    a, b = (noise(8, 3, seed=s) for s in (4, 5))
    whole = float(term(a, b, torch.ones(8)))
    assert float(term(a, b, torch.full((8,), 0.5).double())) == pytest.approx(whole / 2)
    first = torch.zeros(8, dtype=torch.float64)
    first[0] = 1
    assert float(term(a, b, first)) == pytest.approx(float(term(a[:1], b[:1], first[:1])) / 8)


def test_differences_of_known_size():
    zeros, tenth = torch.zeros(5, 3), torch.full((5, 3), 0.1)
    assert float(losses.mean_squared(tenth, zeros, torch.ones(5))) == pytest.approx(0.01)
    assert float(losses.mask_loss(tenth, zeros)) == pytest.approx(0.01)
    up, side = torch.tensor([[0.0, 1, 0]]), torch.tensor([[1.0, 0, 0]])
    values = [float(losses.normal_consistency(up, other, torch.ones(1))) for other in (up, side, -up)]
    assert values == [0, 1, 2]


def test_a_sloping_depth_costs_its_squared_slope_and_a_step_to_nothing_costs_nothing():
    ones = torch.ones(1, 6, 6)
    assert float(losses.depth_smoothness(ramp(6, 0.3), ones)) == pytest.approx(0.09)
    assert float(losses.depth_smoothness(ramp(6, 0.3).mT, ones)) == pytest.approx(0.09)
    depth = torch.full((1, 6, 6), 2.0)
    depth[:, :, 3:] = 0
    assert float(losses.depth_smoothness(depth, ones)) > 0.1
    assert float(losses.depth_smoothness(depth, (depth > 0).float())) == 0


def test_normals_may_bend_at_edges_of_the_picture_only():
    flat, ones = torch.zeros(1, 7, 7, 3, dtype=torch.float64), torch.ones(1, 7, 7)
    grey = torch.full((1, 7, 7, 3), 0.5, dtype=torch.float64)
    assert float(losses.normal_smoothness(flat, grey, ones)) == 0
    bent = torch.stack([ramp(7, 0.2), flat[..., 0], flat[..., 0]], dim=-1)
    expected = math.sqrt(1.2) - 1
    assert float(losses.normal_smoothness(bent, grey, ones)) == pytest.approx(expected, rel=1e-5)
    # A picture that rises by 0.1 per pixel in each of three channels has a gradient of 0.1 sqrt(3).
    edge = ramp(7, 0.1)[..., None].expand(-1, -1, -1, 3)
    expected *= math.exp(-3 * 0.1 * math.sqrt(3))
    assert float(losses.normal_smoothness(bent, edge, ones)) == pytest.approx(expected, rel=1e-5)
    flat.requires_grad_()
    losses.normal_smoothness(flat, grey, ones).backward()
    assert flat.grad is not None and bool(flat.grad.isfinite().all())


def test_entropy_is_largest_at_a_half_and_0_when_decided():
    assert float(losses.alpha_entropy(torch.full((4,), 0.5))) == pytest.approx(math.log(2))
    decided = torch.tensor([0.0, 1.0], requires_grad=True)
    value = losses.alpha_entropy(decided)
    assert float(value.detach()) < 1e-4
    value.backward()
    assert decided.grad is not None and bool(decided.grad.isfinite().all())


def test_plane_terms_of_constant_steady_and_sudden_planes():
    ones, steady = torch.ones(2, 5, 4), 0.5 * torch.arange(5.0)[:, None].expand(2, 5, 4)
    assert float(losses.total_variation(ones)) == float(losses.time_difference(ones)) == 0
    assert float(losses.total_variation(steady)) == pytest.approx(0.25)
    assert float(losses.second_difference(steady)) == 0
    # A parabola's second difference is constant; only time, the middle dimension, counts.
    assert float(losses.second_difference(steady.square())) == pytest.approx(0.25)
    assert float(losses.second_difference(steady.square().mT)) == 0
    assert float(losses.second_difference(ones[:, :2])) == 0
    moving = 0.3 * torch.arange(4.0)[:, None] * ones[:1, 0]
    assert float(losses.time_difference(moving)) == pytest.approx(0.09)
    assert float(losses.time_difference(moving[:1])) == 0


@pytest.mark.parametrize("size", [4, 7, 11, 12])
def test_dissimilarity_of_small_patches_and_otherwise_one_minus_the_metric(size: int):
    x, y = noise(1, size, size, 3, seed=1), noise(1, size, size, 3, seed=2)
    assert float(losses.dissimilarity(x, x)) == pytest.approx(0, abs=1e-12)
    assert 0.1 < float(losses.dissimilarity(x, y)) < 2
    x, y = noise(3, 20, 20, 3, seed=1), noise(3, 20, 20, 3, seed=2)
    assert float(losses.dissimilarity(x, y)) == pytest.approx(1 - float(ssim(x, y).mean()), abs=1e-9)
