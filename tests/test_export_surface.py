"""A scene's density, the surface that is made of it, and one mesh that follows the surface."""

import math
import re
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor
from trimesh.creation import icosphere

from sv4d2_core.cameras import Cameras
from sv4d2_core.export import scene_export as scene_meshes
from sv4d2_core.export.scene_export import export_scene
from sv4d2_core.scene.config import GaussiansConfig, RefineConfig
from sv4d2_core.scene.dynerf.dynerf import DyNeRF
from sv4d2_core.scene.gaussians.densities import gaussian_densities
from sv4d2_core.scene.gaussians.gaussians import CanonicalGaussians, Gaussians
from sv4d2_core.scene.gaussians.splat_torch import rotations
from sv4d2_core.scene.geometry.hull import Occupancy
from sv4d2_core.scene.geometry.placement import ObjectPath
from sv4d2_core.scene.scene import SceneRendering
from sv4d2_core.scene.tracking.graph import deformation_graph
from sv4d2_core.scene.tracking.mesh import Mesh, MeshAnimation
from sv4d2_core.scene.tracking.surface import (
    density_grid,
    surface_at,
    surface_level,
    vertex_normals,
    welded_normals,
)
from sv4d2_core.scene.tracking.track import (
    Tracked,
    coherence,
    diagonal,
    fit_points,
    projected,
    spread_points,
    track,
)

CAMERAS = Cameras.official("sv4d2")
BOX = torch.tensor([[-0.5, -0.4, -0.5], [0.5, 0.6, 0.5]])
TIMES = (0.0, 0.5, 1.0)
AWAY = ObjectPath(TIMES, ((0.0, 0.0, 0.0), (0.2, 0.1, 0.0), (0.4, 0.0, -0.3)))


LENGTH, RADIUS, SOFTNESS = 0.4, 0.09, 0.012
DENSITY = 80.0


class Arm:
    """A scene in closed form: an arm of two capsules, whose elbow bends at the origin.

    Args:
        bend_deg: angle of the elbow at time 1; it is 0 at time 0.
        far: world units that all moves along x from time 0 to 1.
        gap: time from which the forearm is gone; a surface that no mesh can follow.
    """

    backend = "arm"
    path = None
    fps = 8.0

    def __init__(self, bend_deg: float = 70.0, far: float = 0.0, n_frames: int = 5, gap: float = 2.0) -> None:
        self.bend_deg, self.far, self.gap = bend_deg, far, gap
        self.cameras = Cameras((0.0, 0.0, 30.0), (0.0, 90.0, 200.0))
        self.n_frames = n_frames
        self.times = tuple(i / (n_frames - 1) for i in range(n_frames))

    def learn_motion(self, *_: object) -> None:
        """Know it already."""

    def bounds(self, time: float) -> Tensor:
        reach = torch.tensor([LENGTH + 2 * RADIUS] * 3)
        return torch.stack([-reach, reach]) + self._shift(time)

    def densities(self, points: Tensor, time: float) -> Tensor:
        return DENSITY * torch.sigmoid(-self.distances(points, time) / SOFTNESS)

    def colours(self, points: Tensor, time: float) -> Tensor:
        """Return stripes that go with the arm."""
        upper, fore = self._local(points, time)
        x, y, z = torch.where((capsule(upper) < capsule(fore, -1))[:, None], upper, fore).unbind(-1)
        return 0.5 + 0.5 * torch.stack([torch.sin(25 * y), 10 * x, 10 * z], dim=-1).clamp(-1, 1)

    def carried(self, points: Tensor, start: float, end: float) -> Tensor:
        return points + self._shift(end) - self._shift(start)

    def distances(self, points: Tensor, time: float) -> Tensor:
        """Return the signed distances to the surface."""
        upper, fore = self._local(points, time)
        nearest = capsule(upper)
        return nearest if time >= self.gap else torch.minimum(nearest, capsule(fore, -1))

    def moved(self, points: Tensor, start: float, end: float) -> Tensor:
        """Return where points of the surface truly are at another time."""
        upper, fore = self._local(points, start)
        turned = fore @ self._turn(end).T + self._shift(end)
        return torch.where((capsule(upper) < capsule(fore, -1))[:, None], upper + self._shift(end), turned)

    def render(self, cameras, times, size, *, views=None, normals=True, callback=None) -> SceneRendering:
        origins, directions = cameras.rays(size)
        distances = torch.linspace(1.2, 2.8, 160)
        alpha = torch.zeros(len(times), len(origins), size, size)
        for t, time in enumerate(times):
            for v, eye in enumerate(origins):
                points = eye + distances[:, None, None, None] * directions[v]
                density = self.densities(points.reshape(-1, 3).float(), time).view(points.shape[:3])
                alpha[t, v] = 1 - torch.exp(-density.sum(0) * float(distances[1] - distances[0]))
        empty = torch.zeros(*alpha.shape, 3)
        return SceneRendering(empty, alpha, alpha, empty)

    def _shift(self, time: float) -> Tensor:
        return torch.tensor([self.far * time, 0.0, 0.0])

    def _turn(self, time: float) -> Tensor:
        angle = math.radians(self.bend_deg * time)
        sin, cos = math.sin(angle), math.cos(angle)
        return torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])

    def _local(self, points: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """Return points as the upper arm, which hangs from the elbow, and the forearm at rest have them."""
        points = points.float() - self._shift(time)
        return points, points @ self._turn(time)


def capsule(points: Tensor, sign: float = 1.0) -> Tensor:
    """Return the signed distances to a capsule from the origin up (1) or down (-1)."""
    along = (sign * points[:, 1]).clamp(0, LENGTH)
    nearest = torch.stack([torch.zeros_like(along), sign * along, torch.zeros_like(along)], dim=-1)
    return (points - nearest).norm(dim=-1) - RADIUS


def generator():
    return torch.Generator().manual_seed(0)


def dynerf(field="planes"):
    cells = torch.zeros(3, 16, 16, 16, dtype=torch.bool)
    cells[:, 4:12, 5:9, 6:10] = True
    sizes = {"plane_sizes": (8, 16), "deformation_sizes": (4, 8)}
    config = RefineConfig(features=4, hidden=16, field=field, **sizes)
    return DyNeRF(Occupancy(cells, BOX), CAMERAS, 8.0, TIMES, config, generator())


def gaussians(count=60, scale=0.03):
    means = torch.rand(count, 3, generator=generator()) * 0.5 - 0.2
    own = CanonicalGaussians(means, scale, 0.6, torch.rand(count, 3, generator=generator()))
    config = GaussiansConfig(features=4, plane_sizes=(8,), hidden=16)
    return Gaussians(own, BOX, (0.01, 0.1), CAMERAS, 8.0, TIMES, config, generator())


def signed_volume(mesh):
    a, b, c = mesh.vertices.double()[mesh.faces].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def test_gaussians_add_up_as_when_every_pair_is_looked_at():
    drawn = generator()
    own, points = gaussians(200).at_time(None), torch.rand(3000, 3, generator=drawn) * 0.8 - 0.35
    quats = torch.nn.functional.normalize(torch.randn(200, 4, generator=drawn), dim=-1)
    scales, opacities = torch.rand(200, 4, generator=drawn).split([3, 1], dim=-1)
    own = own._replace(quats=quats, scales=scales * 0.06 + 0.01, opacities=0.05 + 0.9 * opacities[:, 0])
    offsets = torch.einsum("nji,pnj->pni", rotations(own.quats), points[:, None] - own.means) / own.scales
    squared = offsets.square().sum(-1)
    expected = (own.opacities * torch.exp(-squared / 2) * (squared <= 9)).sum(-1)
    assert torch.allclose(gaussian_densities(own, points), expected, atol=1e-5)
    assert expected.max() > 0.5 and (expected == 0).any()
    assert gaussian_densities(own, points[:0]).shape == (0,)


@pytest.mark.parametrize("make", [dynerf, gaussians])
def test_density_and_colour_go_with_the_path_of_the_object(make):
    scene = make()
    points = torch.rand(500, 3, generator=generator()) * 0.9 - 0.4
    before = scene.densities(points, 0.5), scene.colours(points, 0.5), scene.bounds(0.5)
    scene.path = AWAY
    shift = AWAY.at(0.5).float()
    assert torch.allclose(scene.densities(points + shift, 0.5), before[0], atol=1e-3)
    assert torch.allclose(scene.colours(points + shift, 0.5), before[1], atol=1e-3)
    assert torch.allclose(scene.bounds(0.5), before[2] + shift, atol=1e-6)
    assert before[0].max() > 0 and not torch.allclose(scene.densities(points, 0.5), before[0], atol=1e-3)
    moved = scene.carried(points + shift, 0.5, 1.0)
    assert torch.allclose(moved, points + AWAY.at(1.0).float(), atol=1e-4)


def test_a_field_is_empty_outside_its_cells():
    scene = dynerf()
    low, high = scene.bounds(0.5)
    expected = BOX[0] + torch.tensor([[6, 5, 4], [10, 9, 12]]) / 16 * (BOX[1] - BOX[0])
    assert torch.allclose(torch.stack([low, high]), expected)
    outside = torch.stack([low - 0.01, high + 0.01, torch.tensor([9.0, 9.0, 9.0])])
    assert scene.densities(outside, 0.5).tolist() == [0, 0, 0]
    assert scene.densities((low + high)[None] / 2, 0.5) > 0


def test_a_field_that_knows_its_motion_takes_points_along():
    scene = dynerf("canonical")
    with torch.no_grad():
        for grid in scene.field.field.deformation.grids:
            grid.uniform_(-0.15, 0.15, generator=generator())
    points = torch.rand(200, 3, generator=generator()) * 0.6 - 0.2
    moved = scene.carried(points, 0.0, 1.0)
    unit, there = scene.occupancy.to_unit(points), scene.occupancy.to_unit(moved)
    start = scene.field.arrived(unit, 0.0)
    end = scene.field.arrived(there, 1.0)
    assert (moved - points).norm(dim=-1).mean() > 0.05
    # Where the motion folds space there is no way back.
    assert (start - end).norm(dim=-1).quantile(0.9) < 1e-3


def test_gaussians_take_points_along():
    scene = gaussians()
    with torch.no_grad():
        scene.deformation.head.bias[:3] = torch.tensor([0.1, 0.0, -0.2])
        scene.deformation.time[0][:, :, 0] = 0
        scene.deformation.head.weight[:3] = 0.05
    means = scene.at_time(0.0).means.detach()
    moved = scene.carried(means, 0.0, 1.0)
    true = scene.at_time(1.0).means.detach()
    assert (true - means).norm(dim=-1).mean() > 0.01
    assert (moved - true).norm(dim=-1).mean() < 0.3 * (true - means).norm(dim=-1).mean()


def test_the_surface_lies_where_the_density_is_the_level():
    scene = Arm()
    mesh = surface_at(scene, 0.0, 48, 2000, level=40.0)
    assert scene.distances(mesh.vertices, 0.0).abs().mean() < 0.004
    assert 1500 < len(mesh.faces) <= 2000 and mesh.faces.dtype == torch.int64
    # Outward faces enclose a positive volume: two capsules that share a ball.
    assert signed_volume(mesh) == pytest.approx(np.pi * 0.09**2 * (0.8 + 0.09 * 4 / 3), rel=0.05)
    assert (mesh.colours - scene.colours(mesh.vertices, 0.0)).abs().mean() < 0.1
    assert mesh.colours.min() >= 0 and mesh.colours.max() <= 1


class Speckled(Arm):
    """A hollow arm with a speck beside it."""

    def densities(self, points, time):
        speck = (points - torch.tensor([0.45, 0.45, 0.45])).norm(dim=-1) < 0.027
        filled = super().densities(points, time) * (self.distances(points, time) > -0.05)
        return torch.where(speck, 80.0, filled)


def test_specks_and_hollows_leave_no_surface():
    plain, mesh = (surface_at(scene, 0.0, 48, 50_000, 0, 40.0) for scene in (Arm(), Speckled()))
    assert len(mesh.faces) == len(plain.faces)
    assert signed_volume(mesh) == pytest.approx(signed_volume(plain), rel=1e-3)


def test_the_level_gives_the_silhouettes_of_the_pictures():
    scene = Arm(n_frames=2)
    level = surface_level(scene, 48)
    grid = density_grid(scene, 1.0, 48)
    # The pictures turn opaque outside the shell at half the density: a chord through its edge is long.
    assert 0.08 < level < 60
    alpha = scene.render(scene.cameras, [1.0], 64).alpha[0, 0] >= 0.5
    origins, directions = scene.cameras.rays(64)
    along = torch.linspace(1.2, 2.8, 200)[:, None, None, None]
    shown = (grid.at(origins[0] + along * directions[0]) >= level).any(0)
    assert (shown & alpha).sum() / (shown | alpha).sum() > 0.95


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"resolution": 8}, "a resolution of 16 to 512"),
        ({"resolution": 1000}, "a resolution of 16 to 512"),
        ({"faces": 3}, "a time in 0..1, at least 4 faces"),
        ({"smoothing": -1}, "a time in 0..1, at least 4 faces"),
        ({"level": 200.0}, "highest density, 80, is below the surface's level 200"),
    ],
)
def test_what_cannot_be_a_surface_is_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        surface_at(Arm(), 0.0, **{"resolution": 32, "level": 40.0, **arguments})


def test_an_empty_scene_and_one_that_diverged_are_refused():
    empty, wrong, gone, lost = dynerf(), dynerf(), gaussians(), gaussians()
    empty.occupancy.cells[:] = False
    with torch.no_grad():
        wrong.field.field.decoder.density.bias[:] = torch.nan
        gone.canonical.opacities[:] = -20
        lost.canonical.means[3] = torch.inf
    for scene in (empty, gone):
        with pytest.raises(ValueError, match="Expected an object at time 0.5; the scene is empty"):
            surface_at(scene, 0.5, 16, level=1.0)
    numbers = r"Expected finite densities; \d+ of \d+ numbers in the scene at time 0.5"
    for scene, text in ((wrong, numbers), (lost, "finite")):
        with pytest.raises(ValueError, match=text):
            surface_at(scene, 0.5, 16, level=1.0)


def test_normals_do_not_know_where_vertices_were_doubled():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, -1]])
    # Two sides of a roof, and the same with the ridge cut open.
    whole = torch.tensor([[0, 1, 2], [0, 1, 3]])
    doubled, opened = corners[[0, 1, 2, 0, 1, 3]], torch.tensor([[0, 1, 2], [3, 4, 5]])
    expected = torch.from_numpy(vertex_normals(corners.double().numpy(), whole.numpy())).float()
    torch.testing.assert_close(welded_normals(corners, whole), expected)
    torch.testing.assert_close(welded_normals(doubled, opened), expected[[0, 1, 2, 0, 1, 3]])
    torch.testing.assert_close(expected[0], torch.tensor([0, 0.5**0.5, 0.5**0.5]))


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


def test_times_that_are_not_even_make_no_vertex_slide():
    scene, times = Arm(bend_deg=90.0, n_frames=5), (0.0, 0.1, 0.5, 0.6, 1.0)
    tracked = track(scene, times, 32, 1500)
    base = tracked.animation.positions[tracked.anchor]
    for frame in (1, 3):
        true = scene.moved(base, times[tracked.anchor], times[frame])
        apart = (tracked.animation.positions[frame] - true).norm(dim=-1).mean()
        assert float(apart) < (0.0085, 0.005)[frame > 2]
    assert coherence(tracked.animation, tracked.frames) is None


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
    with pytest.raises(InterruptedError):
        track(Arm(), [0.0, 1.0], **SIZES, callback=Mock(side_effect=InterruptedError))


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
