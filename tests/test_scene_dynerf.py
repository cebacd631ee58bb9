"""Fields over space and time that may follow an object; rays, renderings and files of scenes made of them."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sv4d2_core.cameras import Cameras
from sv4d2_core.scene.config import FieldConfig
from sv4d2_core.scene.dynerf.dynerf import DyNeRF
from sv4d2_core.scene.dynerf.dynerf_fit import dense_cells
from sv4d2_core.scene.dynerf.following import Following, hull_centres, hull_turns
from sv4d2_core.scene.dynerf.motion import OffsetGrids, rotations_about
from sv4d2_core.scene.dynerf.planes import Canonical, MovingPlanes, Planes
from sv4d2_core.scene.dynerf.rays import box_span, ray_weights, sample_distances
from sv4d2_core.scene.geometry.hull import Occupancy
from sv4d2_core.scene.scene import Scene4D
from sv4d2_core.scene.store import load_scene

CAMERAS = Cameras((0, 0, 35), (0, 90, 200))
CONFIG = FieldConfig(features=2, plane_sizes=(4, 8), hidden=8, samples=128)
BOX = torch.tensor([[-0.4, -0.3, -0.2], [0.4, 0.3, 0.2]])


def make_scene(cells=None):
    cells = torch.ones(3, 16, 16, 16, dtype=torch.bool) if cells is None else cells
    generator = torch.Generator().manual_seed(0)
    return DyNeRF(Occupancy(cells, BOX), CAMERAS, 8.0, (0.0, 0.5, 1.0), CONFIG, generator)


def fill(scene, density, rgb):
    """Make the field constant."""
    scale = scene.field.field.decoder.density_scale
    with torch.no_grad():
        for parameter in scene.field.parameters():
            parameter.zero_()
        scene.field.field.decoder.density.bias.fill_(1 + torch.tensor(density / scale).expm1().log())
        scene.field.field.decoder.colour[2].bias.copy_(torch.tensor(rgb).logit())
    return scene


def test_a_solid_block_has_its_colour_depth_and_normals(close):
    scene = fill(make_scene(), 400.0, [0.2, 0.4, 0.6])
    picture = scene.render(CAMERAS, [0.5], 33)
    assert picture.rgb.shape == (1, 3, 33, 33, 3) and picture.alpha.shape == (1, 3, 33, 33)
    assert picture.rgb.dtype == picture.normal.dtype == torch.float32
    middle = (0, slice(None), 16, 16)
    close(picture.alpha[middle], torch.ones(3), 1e-3)
    close(picture.rgb[middle], torch.tensor([0.2, 0.4, 0.6]).expand(3, 3), 2e-3)
    # The block's faces are 0.2 (front) and 0.4 (side) from the centre, the cameras 2.
    close(picture.depth[0, :2, 16, 16], torch.tensor([1.8, 1.6]), 0.01)
    corner = (0, slice(None), 0, 0)
    assert torch.equal(picture.rgb[corner], torch.ones(3, 3))
    assert not picture.alpha[corner].any() and not picture.depth[corner].any()
    # Thin matter lets the white through.
    alpha = fill(scene, 2.0, [0.2, 0.4, 0.6]).render(CAMERAS, [0.0], 33).alpha[0, :2, 16, 16]
    close(alpha, 1 - torch.exp(-2.0 * torch.tensor([0.4, 0.8])), 1e-4)


def test_normals_point_out_of_the_matter():
    scene = make_scene()
    with torch.no_grad():
        for parameter in scene.field.parameters():
            parameter.zero_()
        # Density falls with x: one feature of the plane xy, which both other planes leave alone.
        scene.field.field.planes.space[1].fill_(1)
        scene.field.field.planes.space[1][0, 0] = torch.linspace(2, 0, 8).expand(8, 8)
        scene.field.field.decoder.trunk.weight[0, 2] = 1
        scene.field.field.decoder.density.weight[0, 0] = 1
    with_normals, without = (scene.render(CAMERAS, [0.0], 33, normals=wanted) for wanted in (True, False))
    assert torch.equal(with_normals.rgb, without.rgb) and torch.equal(with_normals.depth, without.depth)
    assert without.normal.shape == without.rgb.shape and not without.normal.any()
    normal = with_normals.normal[0, 0, 16, 16]
    torch.testing.assert_close(normal, torch.tensor([1.0, 0.0, 0.0]), atol=1e-4, rtol=0)


def test_frames_and_cells_are_kept_apart():
    cells = torch.zeros(3, 16, 16, 16, dtype=torch.bool)
    cells[0, :, :, :8] = True  # x < 0
    cells[2, :, :, 8:] = True
    scene = fill(make_scene(cells), 400.0, [0.5, 0.5, 0.5])
    alpha = scene.render(CAMERAS, [0.0, 0.25, 0.5, 0.75, 1.0], 32).alpha[:, 0]
    left, right = alpha[..., :16].amax((1, 2)), alpha[..., 16:].amax((1, 2))
    assert (left > 0.5).tolist() == [True, True, False, False, False]
    assert (right > 0.5).tolist() == [False, False, False, True, True]


def test_dense_cells_are_those_that_hold_something():
    scene = fill(make_scene(), 400.0, [0.5, 0.5, 0.5])
    hull = Occupancy(torch.rand(3, 16, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.5, BOX)
    assert torch.equal(dense_cells(scene, hull, range(3)).cells, hull.cells)
    assert not dense_cells(fill(scene, 1e-3, [0.5, 0.5, 0.5]), hull, range(3)).cells.any()


@pytest.mark.parametrize(
    ("backend", "means"),
    [("dynerf", (0.81508, 0.37379, 0.92639, -0.0778)), ("gaussians", (0.86102, 0.36696, 1.27452, 0.12656))],
)
def test_scenes_of_version_0_1_0_render_as_they_did(backend, means, monkeypatch):
    """Their headers hold every number of the fit, here none of them the default; they know no motion."""
    monkeypatch.setattr(Scene4D, "learn_motion", lambda *_: None)
    scene = load_scene(Path(__file__).parent / "data/version_0_1/all_settings" / f"{backend}.safetensors")
    assert (scene.backend, scene.n_frames, scene.times) == (backend, 3, (0.0, 0.5, 1.0))
    assert scene.path is not None and scene.path.shifts[2] == (0.1, 0, 0)
    rendering = scene.render(Cameras((0, 10), (0, 45)), [0.0, 0.3], 24)
    assert [float(x.mean()) for x in vars(rendering).values()] == pytest.approx(means, abs=2e-4)


def test_files_that_are_no_scene_are_refused(tmp_path):
    path = tmp_path / "scene.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_scene(path)
    make_scene().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        load_scene(path)
    path.write_bytes(whole)
    tensors = load_file(path)
    for key, backend, text in (
        ("x", "dynerf", "of another kind"),
        ("sv4d2.scene", "voxels", "holds backend 'voxels'"),
        ("sv4d2.scene", "dynerf", "numbers as times in the sv4d2.scene of"),
    ):
        save_file(tensors, path, {key: json.dumps({"backend": backend, "version": 1})})
        with pytest.raises(ValueError, match=text):
            load_scene(path)


def test_rendering_reports_can_be_cancelled_and_refuses_times_and_sizes_out_of_range():
    for times, size in (([], 8), ([1.5], 8), ([0.5], 0)):
        with pytest.raises(ValueError, match="times? in 0..1"):
            make_scene().render(CAMERAS, times, size)
    heard = []

    def stop_at_two(done, total, info):
        heard.append((done, total))
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        make_scene().render(CAMERAS, [0.0, 1.0], 8, callback=stop_at_two)
    assert heard == [(1, 6), (2, 6)]


def test_layers_hide_each_other_and_dense_matter_stays_finite():
    # Opacities .75 in front and .5 behind: .75 + .25 * .5.
    density = torch.tensor([[math.log(4), 0.0, math.log(2)]])
    torch.testing.assert_close(ray_weights(density, torch.ones(1, 1)), torch.tensor([[0.75, 0.0, 0.125]]))
    density = torch.full((1, 64), 1e5, requires_grad=True)
    weights = ray_weights(density, torch.full((1, 1), 0.1))
    assert float(weights.detach().sum()) == 1
    weights.sum().backward()
    assert density.grad is not None and bool(density.grad.isfinite().all())


def test_where_rays_cross_a_box_and_every_stretch_has_one_sample():
    origins = torch.tensor([[0.0, 0, 2], [0.0, 0.6, 2], [0.0, 0, 0], [3.0, 0, 0]])
    directions = torch.tensor([[0.0, 0, -1], [0.0, 0, -1], [1.0, 0, 0], [1.0, 0, 0]])
    entry, leave = box_span(origins, directions, torch.tensor([[-1.0, -0.5, -0.25], [1.0, 0.5, 0.25]]))
    torch.testing.assert_close(entry[[0, 2]], torch.tensor([1.75, 0.0]))
    torch.testing.assert_close(leave[[0, 2]], torch.tensor([2.25, 1.0]))
    assert bool((leave[[1, 3]] <= entry[[1, 3]]).all())
    entry, leave = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.5])
    jitter = torch.rand(2, 10, generator=torch.Generator().manual_seed(0))
    distances = sample_distances(entry, leave, 10, jitter)
    stretch = ((distances - entry[:, None]) / (leave - entry)[:, None] * 10).floor()
    assert torch.equal(stretch, torch.arange(10.0).expand(2, 10))
    torch.testing.assert_close(sample_distances(entry, leave, 2)[0], torch.tensor([1.5, 2.5]))


FIELD = FieldConfig(features=3, plane_sizes=(4, 8), hidden=16, deformation_sizes=(3, 5))
LONG_BOX = torch.tensor([[-0.6, -0.3, -0.3], [0.6, 0.3, 0.3]])
N_FRAMES = 5
both_kinds = pytest.mark.parametrize("kind", [MovingPlanes, Canonical])
TIMES = torch.linspace(0, 1, N_FRAMES).tolist()


def make_field(seed=0, kind=Canonical):
    """Return a field whose path, if it had one, would count."""
    field = Following(kind(FIELD, N_FRAMES, torch.Generator().manual_seed(seed)), N_FRAMES)
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
    hull = Occupancy(torch.zeros(len(angles), size, size, size, dtype=torch.bool), LONG_BOX)
    world = (hull.centres() + 1) / 2 * (LONG_BOX[1] - LONG_BOX[0]) + LONG_BOX[0]
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
    cases = (near, None, False), (far, None, True), (near, True, True), (far, False, False)
    for hull, wanted, followed in cases:
        field = Following(MovingPlanes(FIELD, N_FRAMES), N_FRAMES)
        field.follow(hull, 2, TIMES, wanted)
        assert bool(field.moves) == followed
        grouped = [parameter for group in field.groups() for parameter in group["params"]]
        assert any(parameter is field.path.centres for parameter in grouped) == followed
        points, times = random_points()
        assert bool(offsets(field, points, times).abs().max() > 0.1) == followed


def test_frames_at_uneven_times_are_followed_too():
    hull = slab_hull([0.0] * 3, [-0.3, 0.0, 0.3])
    field = Following(MovingPlanes(FIELD, 3), 3)
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
