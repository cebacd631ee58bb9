"""One mesh follows a scene: true to surface and motion, without jumps, and it says where it cannot."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from trimesh.creation import icosphere

from sv4d2_core.export import scene_export as scene_meshes
from sv4d2_core.export.graph import deformation_graph
from sv4d2_core.export.mesh import Mesh, MeshAnimation
from sv4d2_core.export.scene_export import export_scene
from sv4d2_core.export.surface import surface_at
from sv4d2_core.export.track import Tracked, coherence, diagonal, fit_points, projected, spread_points, track

sys.path.insert(0, str(Path(__file__).parent / "scenes"))
Arm = importlib.import_module("arm").Arm

SIZES = {"resolution": 40, "faces": 1500, "level": 40.0}


@pytest.fixture(scope="module")
def followed():
    scene = Arm(bend_deg=80.0, far=0.3)
    seen = []
    return scene, track(scene, scene.times, **SIZES, callback=lambda *step: seen.append(step)), seen


def test_the_mesh_moves_as_the_scene_does(followed):
    scene, tracked, _ = followed
    animation = tracked.animation
    assert animation.positions.shape == (5, len(animation.colours), 3) and tracked.anchor == 2
    assert torch.allclose(animation.positions[2], tracked.frames[2].vertices, atol=1e-5)
    assert animation.times == scene.times and animation.duration == pytest.approx(4 / 8)
    template = animation.positions[2]
    for t, time in enumerate(scene.times):
        assert scene.distances(animation.positions[t], time).abs().mean() < 0.008
        miss = (animation.positions[t] - scene.moved(template, 0.5, time)).norm(dim=-1)
        assert miss.mean() < 0.02 and miss.quantile(0.98) < 0.08
    assert (scene.moved(template, 0.5, 0.0) - template).norm(dim=-1).mean() > 0.1


def test_it_reports_its_deviation_its_progress_and_its_colours(followed):
    scene, tracked, seen = followed
    assert len(tracked.deviation) == 5 and max(tracked.deviation) < 0.02
    assert tracked.follows
    total = seen[0][1]
    assert [step for step, *_ in seen] == [*range(1, total + 1)]
    true = scene.colours(tracked.animation.positions[2], 0.5)
    assert (tracked.animation.colours - true).abs().mean() < 0.12


def test_no_vertex_jumps(followed):
    scene, tracked, _ = followed
    figures = coherence(tracked.animation, tracked.frames)
    assert figures is not None
    template = tracked.animation.positions[2]
    true = torch.stack([scene.moved(template, 0.5, time) for time in scene.times])
    assert figures.largest < (true[1:] - true[:-1]).norm(dim=-1).max()
    assert figures.tracked < 2 * float((true[2:] - 2 * true[1:-1] + true[:-2]).norm(dim=-1).mean()) + 0.01


def test_the_same_scene_gives_the_same_mesh(followed):
    scene, tracked, _ = followed
    again = track(scene, scene.times, **SIZES)
    assert torch.equal(again.animation.positions, tracked.animation.positions)
    assert torch.equal(again.animation.colours, tracked.animation.colours)


def test_a_part_that_vanishes_is_lost():
    scene = Arm(bend_deg=0.0, n_frames=3, gap=0.9)
    tracked = track(scene, scene.times, **SIZES)
    assert not tracked.follows and max(tracked.deviation[:2]) < 0.01 and tracked.deviation[2] > 0.02
    assert len(tracked.frames[2].vertices) < len(tracked.frames[0].vertices)


def test_one_frame_is_a_mesh_that_stands_still():
    tracked = track(Arm(), [0.5], **SIZES)
    assert len(tracked.animation.positions) == 1 and tracked.follows
    assert coherence(tracked.animation, tracked.frames) is None


def test_a_mesh_too_small_for_a_graph_is_followed_too():
    scene = Arm(n_frames=3)
    tracked = track(scene, scene.times, resolution=16, faces=4, level=40.0)
    assert tracked.animation.positions.isfinite().all() and len(tracked.animation.faces) <= 4


def test_a_callback_may_cancel():
    def cancel(*_):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        track(Arm(), [0.0, 1.0], **SIZES, callback=cancel)


def test_a_trembling_mesh_has_a_larger_acceleration():
    mesh = surface_at(Arm(), 0.0, 24, 500, level=40.0)
    even = torch.stack([mesh.vertices + torch.tensor([0.02 * t, 0.0, 0.0]) for t in range(4)])
    trembling = even + torch.tensor([0.0, 0.01, -0.01, 0.0])[:, None, None]
    times = (0.0, 0.3, 0.6, 1.0)
    for positions, expected in ((even, 0.0), (trembling, 0.03 * 3**0.5)):
        animation = MeshAnimation(positions, mesh.faces, mesh.colours, times, 1.0)
        figures = coherence(animation, [animation.at(t) for t in range(4)])
        assert figures is not None and figures.tracked == pytest.approx(expected, abs=1e-4)
        assert figures.nearest == pytest.approx(expected, abs=1e-4)


def test_a_still_surface_is_still_however_it_is_cut_into_triangles():
    cuts = [surface_at(Arm(), 0.0, 40, faces, level=40.0) for faces in (1500, 2000, 2500)]
    one = cuts[0]
    still = MeshAnimation(one.vertices.expand(3, -1, -1), one.faces, one.colours, (0.0, 0.5, 1.0), 1.0)
    figures = coherence(still, cuts)
    assert figures is not None and figures.tracked == figures.largest == 0
    assert 0 < figures.nearest < 1e-3


def test_an_export_tells_accelerations_in_shares_of_the_object(monkeypatch, tmp_path):
    frame = surface_at(Arm(), 0.0, 24, 500, level=40.0)
    positions = frame.vertices.repeat(3, 1, 1)
    positions[1, ::10] *= 1.1
    animation = MeshAnimation(positions, frame.faces, frame.colours, (0.0, 0.5, 1.0), 1.0)
    tracked = Tracked(animation, (0.0, 0.0, 0.0), (frame,) * 3, 0)
    monkeypatch.setattr(scene_meshes, "track", lambda *_, **__: tracked)
    *_, note = export_scene(Arm(n_frames=3), tmp_path / "arm.glb", "glb").notes
    figures = coherence(animation, tracked.frames)
    assert figures is not None and figures.largest > 3 * figures.tracked
    told = [float(share) for share in re.findall(r"([\d.]+) %", note)]
    expected = [figures.tracked, figures.largest, figures.nearest]
    assert told == pytest.approx([100 * one / diagonal(frame) for one in expected], abs=0.01)
    assert len(set(told)) == 3


def test_a_graph_turns_a_mesh_rigidly():
    mesh = surface_at(Arm(), 0.0, 24, 800, level=40.0)
    vertices = mesh.vertices.double().numpy()
    graph = deformation_graph(vertices, mesh.faces.numpy(), 40)
    assert np.allclose(graph.weights.sum(1), 1) and np.allclose(graph.posed(graph.rest), vertices)
    angle = np.deg2rad(50)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    wanted = vertices @ turn.T + [0.1, 0.2, -0.1]
    assert np.abs(graph.posed(fit_points(graph, graph.rest, wanted)) - wanted).max() < 2e-3


def test_parts_that_do_not_touch_have_their_own_nodes():
    mesh = surface_at(Arm(), 0.0, 24, 400, level=40.0)
    one = mesh.vertices.numpy()
    # So close that the nearest nodes through the air are the other's.
    vertices = np.concatenate([one, one + [0.19, 0.0, 0.0]])
    faces = np.concatenate([mesh.faces.numpy(), mesh.faces.numpy() + len(one)])
    graph = deformation_graph(vertices, faces, 30)
    first = graph.nodes[:, 0] < 0.095
    assert first[graph.followed[: len(one)]].all() and not first[graph.followed[len(one) :]].any()
    assert (first[graph.edges[:, 0]] == first[graph.edges[:, 1]]).all()


def test_a_mesh_is_projected_on_bulges_that_a_graph_cannot_follow():
    ball = icosphere(subdivisions=4, radius=0.4)
    points = ball.vertices
    bulging = points * (1 + 0.02 * np.sin(8 * points[:, :1] / 0.4))
    colours = torch.full((len(points), 3), 0.5)
    target = Mesh(torch.from_numpy(bulging).float(), torch.from_numpy(ball.faces.astype(np.int64)), colours)
    there = spread_points(target, 40_000)
    placed = projected(points, ball.faces, there, 0.8)
    before, after = (np.linalg.norm(bulging - at, axis=1).mean() for at in (points, placed))
    assert before > 0.004 and after < before / 10
    # They go straight out or in: what a vertex shows stays where it was.
    outward = points / np.linalg.norm(points, axis=1, keepdims=True)
    moved = placed - points
    assert np.linalg.norm(moved - (moved * outward).sum(1, keepdims=True) * outward, axis=1).max() < 0.001
    # Another surface further off does not draw it.
    far = projected(points, ball.faces, there._replace(points=there.points * 1.5), 0.8)
    assert np.array_equal(far, points)
