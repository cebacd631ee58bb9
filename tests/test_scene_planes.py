"""The field of feature planes: what depends on what, and gradients."""

from __future__ import annotations

import torch

from sv4d2_core.scene.config import FieldConfig
from sv4d2_core.scene.dynerf.planes import MovingPlanes, Planes


def make_field(seed=0, sizes=(4, 8), time_size=5):
    config = FieldConfig(plane_sizes=sizes, features=3, hidden=16)
    return MovingPlanes(config, time_size, torch.Generator().manual_seed(seed))


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


def disturbed(field, seed=2):
    """Give every plane values of its own: nothing is constant, and things move."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for planes in field.planes.parameters():
            planes += torch.rand(planes.shape, generator=generator)
    return field


def test_a_plane_is_read_at_the_axes_it_spans():
    # The features of one scale are the product of three bilinear values; ones leave a single plane standing.
    field = make_field(sizes=(4,)).planes
    points, times = random_points()
    for index, (across, down) in enumerate([(0, 1), (0, 2), (1, 2)]):
        ramp = 10 * torch.arange(4.0)[:, None] + torch.arange(4.0)
        with torch.no_grad():
            field.space[0].fill_(1)
            field.space[0][index] = ramp
            # Grows along time to twice the plane.
            field.change[0].zero_()
            field.change[0][:, index] = torch.linspace(0, 1, 5)[:, None, None, None] * ramp
        place = (points + 1) / 2 * 3
        expected = 10 * place[:, down] + place[:, across]
        torch.testing.assert_close(field.features(points, None)[:, 0], expected)
        torch.testing.assert_close(field.features(points, times)[:, 0], expected * (1 + times))


def test_the_order_of_the_times_does_not_matter():
    field = disturbed(make_field()).planes
    points, _ = random_points()
    times = torch.tensor([0.0, 0.3, 1.0, 0.3, 0.25]).repeat(10)
    order = times.argsort()
    sorted_by_time = field.features(points[order], times[order])
    torch.testing.assert_close(field.features(points, times)[order], sorted_by_time)


def test_coarse_changes_are_spread_over_fine_planes():
    field = Planes((8,), 3, 2, 3, torch.Generator().manual_seed(0))
    points, _ = random_points()
    ramp = torch.linspace(-1, 1, 3)
    with torch.no_grad():
        field.space[0].fill_(1)
        field.change[0][2, 0] = ramp  # along x, on the plane xy
    torch.testing.assert_close(field.features(points, torch.ones(50))[:, 0], 1 + points[:, 0])


def test_every_parameter_and_the_points_have_gradients():
    points, times = random_points(400)
    field = disturbed(make_field())
    points.requires_grad_()
    density, colour = field(points, times)
    (density.sum() + colour.sum()).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
    assert points.grad is not None and bool(points.grad.abs().sum() > 0)


def test_gradient_by_the_point_agrees_with_finite_differences():
    field = disturbed(make_field()).double()
    points, times = (x.double() for x in random_points(8))
    points = (points * 0.9).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: field(p, times), (points,), eps=1e-7, atol=1e-5)
