"""Fields over space and time: planes that change, the canonical field, and following an object."""

import math

import pytest
import torch

from sv4d2_core.scene.config import FieldConfig
from sv4d2_core.scene.dynerf.following import Following, hull_centres, hull_turns
from sv4d2_core.scene.dynerf.motion import FramePath, OffsetGrids, frame_shares, rotations_about
from sv4d2_core.scene.dynerf.planes import Canonical, MovingPlanes, Planes
from sv4d2_core.scene.geometry.hull import Occupancy

CONFIG = FieldConfig(features=3, plane_sizes=(4, 8), hidden=16, deformation_sizes=(3, 5))
BOX = torch.tensor([[-0.6, -0.3, -0.3], [0.6, 0.3, 0.3]])
N_FRAMES = 5
both_kinds = pytest.mark.parametrize("kind", [MovingPlanes, Canonical])
TIMES = torch.linspace(0, 1, N_FRAMES).tolist()


def make_field(seed=0, kind=Canonical):
    """Return a field whose path, if it had one, would count."""
    field = Following(kind(CONFIG, N_FRAMES, torch.Generator().manual_seed(seed)), N_FRAMES)
    field.moves.fill_(True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for planes in (field.field.shape if kind is Canonical else field.field.planes).space:
            planes += 0.3 * torch.rand(planes.shape, generator=generator)
    return field


def random_points(n=200, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, generator=generator) * 2 - 1, torch.rand(n, generator=generator)


def disturb(field, seed=2):
    """Make everything move."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in field.named_parameters():
            if any(part in name for part in ("path", "deformation", "change")):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return field


def offsets(field, points, times):
    """Return what takes points to the anchor frame, in units of the scene's box."""
    return field.arrived(points, times) * field.reach + field.middle - points


def slab_hull(angles, centres, size=32):
    """Return the hull of a flat bar turned about z, in a box of unequal sides."""
    hull = Occupancy(torch.zeros(len(angles), size, size, size, dtype=torch.bool), BOX)
    world = (hull.centres() + 1) / 2 * (BOX[1] - BOX[0]) + BOX[0]
    for t, (angle, centre) in enumerate(zip(angles, centres, strict=True)):
        turn = rotations_about(torch.tensor([[0.0, 0.0, angle]]))[0]
        own = (world - torch.tensor([centre, 0.0, 0.0])) @ turn
        hull.cells[t] = (own.abs() <= torch.tensor([0.22, 0.05, 0.12])).all(-1)
    return hull


@both_kinds
def test_nothing_moves_at_first(kind):
    points, times = random_points()
    field = make_field(kind=kind)
    density, colour = field(points, times)
    assert density.shape == (200,) and colour.shape == (200, 3)
    assert bool((density > 0).all()) and bool(((colour > 0) & (colour < 1)).all())
    torch.testing.assert_close(offsets(field, points, times), torch.zeros(200, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(field(points, times), field(points, None), atol=1e-4, rtol=1e-4)


def test_the_shape_is_that_of_the_canonical_points():
    points, times = random_points()
    field = disturb(make_field())
    still = make_field()(points, None)[0]
    density = field(points + offsets(field, points, times), None)[0]
    torch.testing.assert_close(field(points, times)[0], density)
    # Canonical space does not know the deformation.
    assert torch.equal(field(points, None)[0], still) and not torch.allclose(density, still)


@both_kinds
def test_every_parameter_and_the_points_have_gradients(kind):
    points, times = random_points(400)
    field = disturb(make_field(kind=kind))
    points.requires_grad_()
    density, colour = field(points, times)
    (density.sum() + colour.sum()).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
    assert points.grad is not None and bool(points.grad.abs().sum() > 0)
    grouped = [parameter for group in field.groups() for parameter in group["params"]]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in field.parameters()}
    assert len(grouped) == len(list(field.parameters()))


@both_kinds
def test_points_have_the_gradient_of_finite_differences(kind):
    field = disturb(make_field(kind=kind)).double()
    points, times = (value.double() for value in random_points(6))
    points = (0.8 * points).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: offsets(field, p, times), (points,), atol=1e-5)
    assert torch.autograd.gradcheck(lambda p: field(p, times), (points,), eps=1e-7, atol=1e-5)


def test_a_plane_is_read_at_the_axes_it_spans_and_times_may_come_in_any_order():
    # The features of one scale are the product of three bilinear values; ones leave a single plane standing.
    field = Planes((4,), N_FRAMES, 3, 64)
    points, times = random_points()
    for index, (across, down) in enumerate([(0, 1), (0, 2), (1, 2)]):
        ramp = 10 * torch.arange(4.0)[:, None] + torch.arange(4.0)
        with torch.no_grad():
            field.space[0].fill_(1)
            field.space[0][index] = ramp
            # Grows along time to twice the plane.
            field.change[0].zero_()
            field.change[0][:, index] = torch.linspace(0, 1, N_FRAMES)[:, None, None, None] * ramp
        place = (points + 1) / 2 * 3
        expected = 10 * place[:, down] + place[:, across]
        torch.testing.assert_close(field.features(points, None)[:, 0], expected)
        torch.testing.assert_close(field.features(points, times)[:, 0], expected * (1 + times))
    repeated = torch.tensor([0.0, 0.3, 1.0, 0.3, 0.25]).repeat(40)
    order = repeated.argsort()
    in_order = field.features(points[order], repeated[order])
    torch.testing.assert_close(field.features(points, repeated)[order], in_order)


def test_coarse_changes_are_spread_over_fine_planes():
    field = Planes((8,), 3, 2, 3)
    points, _ = random_points()
    with torch.no_grad():
        field.space[0].fill_(1)
        field.change[0][2, 0] = torch.linspace(-1, 1, 3)  # along x, on the plane xy
    torch.testing.assert_close(field.features(points, torch.ones(200))[:, 0], 1 + points[:, 0])


def test_frames_stand_alone_at_their_own_times_and_lines_stay_lines():
    times = torch.linspace(0, 1, N_FRAMES)
    torch.testing.assert_close(frame_shares(times, N_FRAMES), torch.eye(N_FRAMES), atol=1e-5, rtol=0)
    inner = torch.linspace(0.25, 0.75, 9)
    torch.testing.assert_close(frame_shares(inner, N_FRAMES) @ times, inner)
    torch.testing.assert_close(frame_shares(torch.tensor([0.0]), 1), torch.ones(1, 1))


def test_a_path_takes_a_turned_body_back_to_the_anchor():
    path = FramePath(3)
    centres = torch.tensor([[-0.5, 0.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    turns = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.0], [0.0, 0.0, -0.5]]) * math.pi
    path.start(centres, turns, BOX, centres[1])
    # At frame 2 the body is a quarter turn on, 0.3 world units to the right: x of 1/6 has become y of 1/3.
    seen = torch.tensor([[0.5, 1 / 3, 0.0]])
    torch.testing.assert_close(
        path(seen, torch.ones(1)), torch.tensor([[1 / 6, 0.0, 0.0]]), atol=1e-6, rtol=0
    )


def test_fine_grids_fade_in():
    deformation = OffsetGrids((2, 3, 5), 2)
    with torch.no_grad():
        for grid, value in zip(deformation.grids, (1.0, 10.0, 100.0), strict=True):
            grid.fill_(value)
    seen = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        deformation.share.fill_(share)
        seen.append(float(deformation(torch.zeros(1, 3), torch.zeros(1))[0, 0].detach()))
    assert seen == pytest.approx([1, 6, 11, 61, 111], abs=1e-3)


def test_hulls_tell_centres_and_turns():
    angles, centres = [0.0, 0.5, 1.0, 1.5, 2.0], [-0.3, -0.15, 0.0, 0.15, 0.3]
    hull = slab_hull(angles, centres)
    found, size = hull_centres(hull)
    turns = hull_turns(hull, found, 1)
    assert 0.3 < size < 0.46
    torch.testing.assert_close(found[:, 0], torch.tensor(centres) / 0.6, atol=0.03, rtol=0)
    expected = torch.zeros(5, 3)
    expected[:, 2] = 0.5 - torch.tensor(angles)
    torch.testing.assert_close(turns, expected, atol=0.12, rtol=0)


def test_hulls_that_do_not_turn_get_no_rotation():
    for hull in (slab_hull([0.0] * 3, [-0.2, 0.0, 0.2]), slab_hull([0.3], [0.1])):
        turns = hull_turns(hull, hull_centres(hull)[0], 0)
        assert turns.shape == (len(hull.cells), 3) and not turns.any()


def test_following_lays_all_frames_over_the_anchor():
    hull = slab_hull([0.0] * N_FRAMES, [-0.3, -0.15, 0.0, 0.15, 0.3])
    field = make_field()
    field.follow(hull, 2, TIMES)
    point = torch.tensor([[0.2, 0.1, 0.0]])
    moved = point + torch.tensor([[0.5, 0.0, 0.0]])
    density = field(point, torch.tensor([0.5]))[0]
    torch.testing.assert_close(field(moved, torch.ones(1))[0], density, rtol=0.05, atol=0)
    torch.testing.assert_close(field(point, None)[0], density, rtol=1e-3, atol=0)
    assert float(field.reach[0]) < 0.5


def test_a_translation_is_learnt():
    # A ball moves along y, and the field, which is not told, has to match its density and colour.
    field = make_field()
    optimizer = torch.optim.Adam(field.groups())
    for group in optimizer.param_groups:
        group["lr"] = group["rate"]
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(160):
        field.field.anneal(min(step / 60, 1.0))
        points = torch.rand(600, 3, generator=generator) * 2 - 1
        frames = torch.randint(0, N_FRAMES, (600,), generator=generator)
        times = frames / (N_FRAMES - 1)
        centre = torch.stack([0 * times, 0.5 * times, 0 * times], dim=-1)
        target = 20 * torch.sigmoid(12 * (0.4 - (points - centre).norm(dim=-1)))
        loss = (field(points, times)[0] - target).square().mean()
        loss = loss + field.field.regularisation(True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-20:]) < 0.15 * sum(losses[:20])
    around, _ = random_points(300)
    around = 0.2 * around
    first = offsets(field, around, torch.zeros(300)).mean(0)
    last = offsets(field, around + torch.tensor([0.0, 0.5, 0.0]), torch.ones(300)).mean(0)
    assert float((first - last)[1].detach()) == pytest.approx(0.5, abs=0.15)


def test_cells_between_frames_move_with_the_object():
    hull = slab_hull([0.0] * N_FRAMES, [-0.36, -0.18, 0.0, 0.18, 0.36])
    field = make_field()
    field.follow(hull, 2, TIMES)
    carried = field.carried(hull, (2, 3), (0.5, 0.75, 0.625))
    true = slab_hull([0.0], [0.09]).cells[0]
    assert bool(carried[true].all())
    assert int(carried.sum()) < int((hull.cells[2] | hull.cells[3]).sum()) * 1.6
    far = hull.centres()[carried][:, 0] - 0.15
    assert float(far.abs().max()) < 0.22 / 0.6 + 0.2


def test_regularisation_knows_statics_from_motion():
    field = make_field()
    still = float(field.field.regularisation(False).detach())
    assert still > 0
    assert float(field.field.regularisation(True).detach()) == pytest.approx(still)
    disturb(field)
    assert float(field.field.regularisation(False).detach()) == pytest.approx(still)
    assert float(field.field.regularisation(True).detach()) > still + 1e-4


def test_only_an_object_that_moves_far_is_followed():
    near, far = (slab_hull([0.0] * 5, [d * t for t in (-2, -1, 0, 1, 2)]) for d in (0.04, 0.15))
    for hull, wanted, followed in (
        (near, None, False),
        (far, None, True),
        (near, True, True),
        (far, False, False),
    ):
        field = Following(MovingPlanes(CONFIG, N_FRAMES), N_FRAMES)
        field.follow(hull, 2, TIMES, wanted)
        assert bool(field.moves) == followed
        grouped = [parameter for group in field.groups() for parameter in group["params"]]
        assert any(parameter is field.path.centres for parameter in grouped) == followed
        points, times = random_points()
        assert bool(offsets(field, points, times).abs().max() > 0.1) == followed


def test_frames_at_uneven_times_are_followed_too():
    hull = slab_hull([0.0] * 3, [-0.3, 0.0, 0.3])
    field = Following(MovingPlanes(CONFIG, 3), 3)
    field.follow(hull, 1, (0.0, 0.8, 1.0))
    # Half of the way is done at 0.8, where the anchor is: 3/8 of that half is left at 0.5, the middle node.
    moved = offsets(field, torch.zeros(1, 3), torch.tensor([0.5]))
    assert float(moved[0, 0].detach()) == pytest.approx(0.3 * 3 / 8 / 0.6, abs=0.03)


@both_kinds
def test_frames_that_come_in_start_from_their_neighbours(kind):
    made = make_field(kind=kind)
    with torch.no_grad():
        for i, parameter in enumerate(made.field.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    points, _ = random_points()
    known = made(points, torch.full((200,), 0.5))
    made.field.hold(0.25, 0.5)
    after = made(points, torch.full((200,), 1.0))
    torch.testing.assert_close(after[0], known[0])
    torch.testing.assert_close(after[1], known[1])
