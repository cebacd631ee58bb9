"""The field of feature planes: what depends on what, and gradients."""

from __future__ import annotations

import torch

from sv4d2_core.fourd.planes import KPlanes


def make_field(seed=0, sizes=(4, 8), time_size=5):
    return KPlanes(sizes, time_size, 3, 16, 25.0, torch.Generator().manual_seed(seed))


def random_points(n=50, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, generator=generator) * 2 - 1, torch.rand(n, generator=generator)


def test_density_is_positive_and_colour_is_in_range():
    points, times = random_points()
    with torch.no_grad():
        density, colour = make_field()(points, times)
    assert density.shape == (50,) and colour.shape == (50, 3)
    assert bool((density > 0).all()) and 0 < float(colour.min()) and float(colour.max()) < 1
    assert torch.equal(make_field().densities(points, times), density)


def test_nothing_moves_at_first():
    points, times = random_points()
    field = make_field()
    torch.testing.assert_close(field(points, times), field(points, None))


def test_one_seed_gives_one_field():
    points, times = random_points()
    first, again, other = (make_field(seed)(points, times)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_a_plane_is_read_at_the_axes_it_spans():
    # The features of one scale are the product of six bilinear values; ones leave a single plane standing.
    field = make_field(sizes=(4,))
    points, times = random_points()
    axes = [*points.T, 2 * times - 1]
    spans = [(field.space[0], i, pair) for i, pair in enumerate([(0, 1), (0, 2), (1, 2)])]
    spans += [(field.time[0], i, (i, 3)) for i in range(3)]
    for planes, index, (across, down) in spans:
        with torch.no_grad():
            for other in (*field.space, *field.time):
                other.fill_(1)
            height, width = planes.shape[2:]
            planes[index] = 10 * torch.arange(height)[:, None] + torch.arange(width)
        expected = 10 * (axes[down] + 1) / 2 * (height - 1) + (axes[across] + 1) / 2 * (width - 1)
        torch.testing.assert_close(field.features(points, times)[:, 0], expected)


def test_every_parameter_and_the_points_have_gradients():
    points, times = random_points(400)
    field = make_field()
    points.requires_grad_()
    density, colour = field(points, times)
    (density.sum() + colour.sum()).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
    assert points.grad is not None and bool(points.grad.abs().sum() > 0)


def test_gradient_by_the_point_agrees_with_finite_differences():
    field = make_field().double()
    points, times = (x.double() for x in random_points(8))
    points = (points * 0.9).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: field(p, times), (points,), eps=1e-7, atol=1e-5)
