"""Volume rendering against closed forms and finite differences."""

from __future__ import annotations

import math

import torch

from sv4d2_core.scene.dynerf.rays import box_span, composite_on_white, ray_weights, sample_distances

BOX = torch.tensor([[-1.0, -0.5, -0.25], [1.0, 0.5, 0.25]])


def test_constant_density_gives_the_exponential_law():
    density = torch.full((1, 40), 3.0, dtype=torch.float64)
    weights = ray_weights(density, torch.full((1, 1), 0.05, dtype=torch.float64))
    colour = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    rgb, opacity = composite_on_white(weights, colour.expand(1, 40, 3))
    expected = 1 - math.exp(-3.0 * 0.05 * 40)
    torch.testing.assert_close(opacity, torch.tensor([expected], dtype=torch.float64))
    torch.testing.assert_close(rgb[0], expected * colour + (1 - expected))


def test_two_layers_hide_each_other():
    # Opacities .75 in front and .5 behind: .75 + .25 * .5.
    density = torch.tensor([[math.log(4), 0.0, math.log(2)]])
    weights = ray_weights(density, torch.ones(1, 1))
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.0, 0.125]]))


def test_dense_matter_stays_finite():
    density = torch.full((1, 64), 1e5, requires_grad=True)
    weights = ray_weights(density, torch.full((1, 1), 0.1))
    assert float(weights.detach().sum()) == 1
    weights.sum().backward()
    assert density.grad is not None and bool(density.grad.isfinite().all())


def test_gradients_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(0)
    density = 5 * torch.rand(3, 7, generator=generator, dtype=torch.float64)
    colours = torch.rand(3, 7, 3, generator=generator, dtype=torch.float64)
    lengths = 0.1 + torch.rand(3, 1, generator=generator, dtype=torch.float64)
    inputs = (density.requires_grad_(), colours.requires_grad_())
    assert torch.autograd.gradcheck(lambda d, c: composite_on_white(ray_weights(d, lengths), c), inputs)


def test_where_rays_cross_a_box():
    origins = torch.tensor([[0.0, 0, 2], [0.0, 0.6, 2], [0.0, 0, 0], [3.0, 0, 0]])
    directions = torch.tensor([[0.0, 0, -1], [0.0, 0, -1], [1.0, 0, 0], [1.0, 0, 0]])
    entry, leave = box_span(origins, directions, BOX)
    torch.testing.assert_close(entry[[0, 2]], torch.tensor([1.75, 0.0]))
    torch.testing.assert_close(leave[[0, 2]], torch.tensor([2.25, 1.0]))
    assert bool((leave[[1, 3]] <= entry[[1, 3]]).all())


def test_every_stretch_has_one_sample():
    entry, leave = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.5])
    jitter = torch.rand(2, 10, generator=torch.Generator().manual_seed(0))
    distances = sample_distances(entry, leave, 10, jitter)
    stretch = ((distances - entry[:, None]) / (leave - entry)[:, None] * 10).floor()
    assert torch.equal(stretch, torch.arange(10.0).expand(2, 10))
    torch.testing.assert_close(sample_distances(entry, leave, 2)[0], torch.tensor([1.5, 2.5]))
