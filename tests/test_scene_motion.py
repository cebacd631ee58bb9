"""Motion between frames: matter is moved, not faded; at frames nothing changes."""

import re
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from test_cli_export import block_scene
from test_export_surface import Arm, dynerf, gaussians
from trimesh.creation import icosphere

from sv4d2_core.cameras import Cameras
from sv4d2_core.export.scene_export import ExportSettings, export_scene, surfaces
from sv4d2_core.scene.dynerf.moved import MovedField
from sv4d2_core.scene.gaussians.splat_torch import GaussiansAt
from sv4d2_core.scene.geometry.hull import Occupancy
from sv4d2_core.scene.scene import even_times, pace, slowed, to_and_fro, turntable
from sv4d2_core.scene.store import load_scene
from sv4d2_core.scene.tracking import motion as motion_module
from sv4d2_core.scene.tracking import track as track_module
from sv4d2_core.scene.tracking.graph import deformation_graph
from sv4d2_core.scene.tracking.limbs import limbs
from sv4d2_core.scene.tracking.motion import Interval, Motion, motion_of
from sv4d2_core.scene.tracking.surface import surface_at
from sv4d2_core.scene.tracking.track import nearest_rotations, track

LEVEL = 40.0  # density at the arm's surface
BETWEEN = 0.75  # half-way between the frames 1 and 2 of three


@pytest.fixture(scope="module")
def arm():
    return Arm(bend_deg=90.0, n_frames=3)


@pytest.fixture(scope="module")
def motion(arm):
    found = motion_of(arm)
    assert found is not None
    return found


def field_of(arm, motion, time=BETWEEN):
    """Return the moved field of an arm that is known at its frames alone."""
    box = torch.tensor([[-0.6] * 3, [0.6] * 3])
    empty = Occupancy(torch.zeros(1, 40, 40, 40, dtype=torch.bool), box)
    centres = empty.centres().flatten(0, 2) * 0.6
    cells = [(arm.distances(centres, at) < 0.06).view(40, 40, 40) for at in arm.times]

    def field(points, times):
        density = torch.zeros_like(points[:, 0])
        for at in times.unique().tolist():
            assert at in arm.times, "a frame's time"
            density[times == at] = arm.densities(points[times == at] * 0.6, at)
        return density, points.abs()

    around = arm_between(arm, time)
    times = arm.times[around[0] : around[0] + 2]
    return MovedField(field, Occupancy(torch.stack(cells), box), motion, around, times, time)


def arm_between(arm, time):
    place = time * (arm.n_frames - 1)
    return int(place), place % 1


@pytest.mark.parametrize("time", [0.25, BETWEEN, 0.625])
def test_a_bent_arm_is_in_one_place_between_frames(arm, motion, time):
    points = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    true = arm.densities(points * 0.6, time) > LEVEL
    density, _ = field_of(arm, motion, time)(points)
    frame, share = arm_between(arm, time)
    ends = [arm.densities(points * 0.6, at) for at in arm.times[frame : frame + 2]]
    faded = (1 - share) * ends[0] + share * ends[1] > LEVEL / 2
    overlap = [float((x & true).sum() / (x | true).sum()) for x in (density > LEVEL, faded)]
    assert overlap[0] > 0.88 > overlap[1] + 0.1
    # Far from the true arm there is nothing, where fading shows both ends.
    outside = arm.distances(points * 0.6, time) > 0.06
    assert float(density[outside].max()) < 0.1 * LEVEL < float(torch.lerp(*ends, share)[outside].max())


@pytest.mark.parametrize("bend_deg", [100.0, 120.0])
def test_a_limb_that_turns_too_far_for_nearest_points_is_followed(bend_deg):
    arm = Arm(bend_deg, n_frames=2)
    start, end = motion_of(arm).intervals[0].positions
    away = (end - arm.moved(start, 0.0, 1.0)).norm(dim=1)
    # Without turned limbs it is off by 0.2 world units on average, of an arm 0.9 long.
    assert float(away.mean()) < 0.04


def test_means_of_far_turns_become_rotations():
    halves = torch.stack([torch.diag(2 * axis - 1) for axis in torch.eye(3, dtype=torch.float64)]).numpy()
    mixed = np.stack([halves.mean(0), halves[0]])
    assert np.linalg.det(mixed[0]) < 0
    found = nearest_rotations(mixed)
    np.testing.assert_allclose(np.linalg.det(found), 1, atol=1e-9)
    np.testing.assert_allclose(found[1], halves[0], atol=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_neighbours_turn_the_same_way_round(sign):
    ball = icosphere(2)
    points, faces = torch.from_numpy(ball.vertices).double(), torch.from_numpy(ball.faces)
    angles = torch.deg2rad(180 + 20 * points[:, 0])  # about z
    turns = torch.stack([(angles / 2).cos(), 0 * angles, 0 * angles, (angles / 2).sin()], dim=1)
    turns[::3] *= sign  # the same turns
    end = torch.stack([-points[:, 0], -points[:, 1], points[:, 2]], dim=1)
    now = Interval(torch.stack([points, end]).float(), turns.float(), faces).posed(0.5)
    np.testing.assert_allclose(np.linalg.norm(now.points, axis=1), 1, atol=0.1)
    assert now.points[:, 2] == pytest.approx(points[:, 2].numpy(), abs=0.1)


@pytest.mark.parametrize("count", [1, 4, 6])
def test_nothing_and_few_nodes_have_no_limbs(count):
    graph = deformation_graph(np.zeros((count, 3)), np.array([[0, 0, 0]]), count)
    assert not list(limbs(graph, graph.nodes))


def test_a_loose_part_is_a_limb_that_hangs_on_what_is_nearest():
    surface = surface_at(Arm(n_frames=2), 0.0, 40, 2000)
    vertices, faces = surface.vertices.numpy(), surface.faces.numpy()
    both = np.concatenate([vertices, vertices + [0.3, 0, 0]])
    graph = deformation_graph(both, np.concatenate([faces, faces + len(vertices)]), 100)
    found = list(limbs(graph, graph.nodes))
    assert all(0 < limb.sum() <= len(limb) / 2 for limb, _ in found)
    right = graph.nodes[:, 0] > 0.15
    (joint,) = {tuple(joint) for limb, joint in found if (limb == right).all() or (limb == ~right).all()}
    assert joint[0] == pytest.approx(0.15, abs=0.02)


def test_where_the_motion_leads_is_one_guess_of_several(arm, monkeypatch):
    class Spy(motion_module.Tracker):
        def __init__(self, *given):
            expected.append(given[4] is not None)
            super().__init__(*given)

    expected = []
    monkeypatch.setattr(motion_module, "Tracker", Spy)
    monkeypatch.setattr(motion_module, "_lost", lambda *_: 1.0)
    motion_of(arm)
    assert expected == [*[False] * 6, True, *[False] * 5]


def test_planes_which_know_no_motion_have_no_guess_of_it(monkeypatch):
    scene, fit_points = block_scene(), Mock(side_effect=AssertionError)
    monkeypatch.setattr(track_module, "fit_points", fit_points)
    track(scene, scene.times[:2], 16, 200)


def test_what_belongs_to_no_motion_fades_and_is_told_of(monkeypatch, caplog):
    monkeypatch.setattr(motion_module, "_WORTH_SAYING", -1.0)
    found = motion_of(Arm(bend_deg=90.0, n_frames=3, gap=-1.0))  # of the upper arm alone
    assert re.search(r"fades on the way to the frames 1 \(\d+ %\), 2 \(\d+ %\)", caplog.text)
    tensors, _ = found.saved()
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors), "files hold none twice"
    whole, time = Arm(bend_deg=90.0, n_frames=3), 0.125
    hands = whole.moved(torch.tensor([[0.0, -0.4, 0.0]]).repeat(2, 1), 0.0, 0.0)
    hands[1] = whole.moved(hands[:1], 0.0, 0.5)[0]
    seen, _ = field_of(whole, found, time)(hands / 0.6)
    inside = whole.densities(hands[:1], 0.0)
    torch.testing.assert_close(seen, torch.tensor([0.75, 0.25]) * inside, rtol=0.05, atol=0.5)


def test_gaussians_go_with_the_motion(arm, motion, monkeypatch):
    scene = gaussians(5)
    scene.motion = motion
    at_rest = torch.tensor([[0.0, 0.3, 0], [0, -0.25, 0], [0, -0.2, 0.02], [0, -0.3, 0], [0.9, 0, 0]])

    def at_time(time):
        means = arm.moved(at_rest, 0.0, time)
        means[4] = at_rest[4]  # belongs to nothing
        ones = torch.ones(5, 4)
        return GaussiansAt(means, ones, ones[:, :3], torch.full((5,), 0.75), ones[:, :3])

    monkeypatch.setattr(scene, "at_time", at_time)
    both = scene.in_world(BETWEEN, moved=True)
    true = arm.moved(at_rest, 0.0, BETWEEN)
    assert both.means.shape == (10, 3)
    assert float((both.means.view(2, 5, 3)[:, :4] - true[:4]).norm(dim=-1).max()) < 0.02
    torch.testing.assert_close(both.means.view(2, 5, 3)[:, 4], at_rest[[4, 4]])
    torch.testing.assert_close((1 - both.opacities).view(2, 5).prod(0), torch.full((5,), 0.25))
    assert len(scene.in_world(0.5, moved=True).means) == 5
    # Where they are added up, as in the density of a surface, both together are as much as either.
    summed = scene.in_world(BETWEEN, moved=True, summed=True)
    torch.testing.assert_close(summed.opacities.view(2, 5).sum(0), torch.full((5,), 0.75))
    assert float(scene.densities(true[:1], BETWEEN)) < 1.1 * float(scene.densities(at_rest[:1], 0.0))


@pytest.mark.parametrize("make", [dynerf, gaussians])
def test_it_is_stored_and_frames_stay_as_they_are(make, motion, tmp_path):
    scene = make()
    cameras = Cameras((0.0, 0.0), (0.0, 90.0))
    before = scene.render(cameras, scene.times, 16)
    scene.motion = Motion(motion.intervals[:2], motion.reach, (0.0, 0.1))
    scene.save(tmp_path / "scene.safetensors")
    read = load_scene(tmp_path / "scene.safetensors")
    assert read.motion.lost == (0.0, 0.1)
    for one, other in zip(read.motion.intervals, motion.intervals, strict=False):
        assert all(torch.equal(x, y) for (_, x), (_, y) in zip(one.tensors(), other.tensors(), strict=True))
    after = read.render(cameras, scene.times, 16)
    assert all(torch.equal(x, y) for x, y in zip(vars(before).values(), vars(after).values(), strict=True))
    assert read.render(cameras, [0.25], 16).rgb.isfinite().all()


def test_a_scene_whose_motion_is_not_found_fades(caplog):
    scene = dynerf()
    cameras = Cameras((0.0, 0.0), (0.0, 90.0))
    for cells in scene.occupancy.cells:
        cells.zero_()
    assert float(scene.render(cameras, [0.25], 8).alpha.max()) == 0
    assert scene.motion is None and "fades" in caplog.text


@pytest.mark.parametrize(("share", "sought"), [(0.0, []), (0.5, [1])])
def test_only_what_is_between_frames_looks_for_the_motion_once(share, sought, monkeypatch, tmp_path):
    scene, heard = gaussians(5), []
    time = scene.times[0] + share * (scene.times[1] - scene.times[0])
    monkeypatch.setattr(motion_module, "motion_of", lambda *_: heard.append(1))
    export_scene(scene, tmp_path / "one.ply", "splat-ply", ExportSettings(times=(time,)))
    scene.render(Cameras((0.0, 0.0), (0.0, 90.0)), [time], 8)
    assert heard == sought


def test_a_splat_file_says_how_many_it_holds_between_frames(motion, tmp_path):
    scene = gaussians(5)
    scene.motion = motion
    made = export_scene(scene, tmp_path / "one.splat", "splat", ExportSettings(times=(0.25,)))
    assert made.n_bytes() == 10 * 32 and made.notes == ("10 Gaussians at time 0.25.",)


@pytest.mark.parametrize(("kind", "name"), [("turntable", "turn"), ("npz", "ways.npz")])
def test_exports_that_show_nothing_between_frames_do_not_look_for_the_motion(
    kind, name, monkeypatch, tmp_path
):
    monkeypatch.setattr(motion_module, "motion_of", Mock(side_effect=AssertionError))
    export_scene(gaussians(5), tmp_path / name, kind, ExportSettings(times=(0.0, 0.25), frames=2, size=8))


@pytest.mark.parametrize(
    "mesh", [surfaces, lambda scene, settings, _: [track(scene, settings.times, 16, 99)]]
)
def test_meshes_between_frames_look_for_the_motion(mesh, monkeypatch):
    look = Mock(return_value=None)
    monkeypatch.setattr(motion_module, "motion_of", look)
    assert len([*mesh(dynerf(), ExportSettings(times=(0.25,), resolution=16, faces=99), None)]) == 1
    look.assert_called_once()


def test_slow_motion_has_more_times_between_frames():
    assert slowed((0.0, 0.5, 1.0), 2) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert slowed((0.0, 0.3, 1.0), 1) == (0.0, 0.3, 1.0)
    assert slowed((0.25,), 8) == (0.25,)
    times = slowed((0.0, 0.1, 1 / 3, 1.0), 4)
    assert times[::4] == (0.0, 0.1, 1 / 3, 1.0) and len(times) == 13


def test_a_slow_turntable_plays_more_pictures_per_frame(monkeypatch):
    scene, seen = dynerf(), []
    draw = scene.render

    def render(cameras, times, *rest, **more):
        seen.extend(times)
        return draw(cameras, [0.0], *rest, **more)

    monkeypatch.setattr(scene, "render", render)
    monkeypatch.setattr(scene, "learn_motion", lambda *_: None)
    turntable(scene, scene.cameras, 16, 8, slow=4)
    assert seen == [i / 8 for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 7, 6, 5, 4, 3, 2, 1)]


@pytest.mark.parametrize(("n_frames", "count", "cycles"), [(21, 96, 2), (21, 40, 1), (3, 6, 2), (21, 5, 1)])
def test_the_motion_of_a_turntable_ends_where_it_began(n_frames, count, cycles):
    times = to_and_fro(even_times(n_frames), count)
    ideal = np.arange(count + 1) * 2 * cycles / count
    np.testing.assert_allclose([*times, times[0]], 1 - np.abs(1 - ideal % 2), atol=1e-9)


def test_a_still_scene_has_a_turntable_and_other_times_keep_the_pace():
    assert to_and_fro((0.25,), 4, slow=2) == (0.25,) * 4
    assert to_and_fro((0.0, 0.5), 4) == (0.0, 0.5, 0.0, 0.5)
    scene = dynerf()  # three frames at 8 per second
    assert pace(scene, scene.times) == pace(scene, [0.5]) == 8
    assert pace(scene, even_times(2)) == 4 and pace(scene, (0.0, 0.25, 0.5)) == 16
    scene.times = (0.0, 0.25, 0.5)  # of a clip of which these are the first frames
    assert pace(scene, scene.times) == 8 and ExportSettings().duration(scene) == 0.5


def test_a_slow_turntable_is_cancelled_while_the_motion_is_sought(monkeypatch):
    def motion_of(_scene, callback):
        callback(1, 5, None)

    monkeypatch.setattr(motion_module, "motion_of", motion_of)
    scene, cancel = dynerf(), Mock(side_effect=InterruptedError)
    with pytest.raises(InterruptedError):
        turntable(scene, scene.cameras, 6, 8, slow=4, callback=cancel)
    cancel.assert_called_once_with(0, 6)


@pytest.mark.parametrize("fault", ["reach", "turns"])
def test_a_damaged_motion_is_refused_when_it_is_read(motion, tmp_path, fault):
    scene, path = gaussians(5), tmp_path / "scene.safetensors"
    first, *others = motion.intervals
    if fault == "reach":
        scene.motion = Motion(motion.intervals, 0.0, motion.lost)
    else:
        turns = torch.cat([torch.zeros_like(first.turns[:1]), first.turns[1:]])
        scene.motion = replace(motion, intervals=(replace(first, turns=turns), *others))
    scene.save(path)
    with pytest.raises(ValueError, match=fault):
        load_scene(path)
