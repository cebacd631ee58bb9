"""A scene's density in the world, and the surface that is made of it."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.export.surface import density_grid, surface_at, surface_level, vertex_normals, welded_normals
from sv4d2_core.scene.config import GaussiansConfig, RefineConfig
from sv4d2_core.scene.dynerf.dynerf import DyNeRF
from sv4d2_core.scene.gaussians.densities import gaussian_densities
from sv4d2_core.scene.gaussians.gaussians import CanonicalGaussians, Gaussians
from sv4d2_core.scene.gaussians.splat_torch import GaussiansAt, rotations
from sv4d2_core.scene.geometry.hull import Occupancy
from sv4d2_core.scene.geometry.placement import ObjectPath

sys.path.insert(0, str(Path(__file__).parent / "scenes"))
Arm = importlib.import_module("arm").Arm

CAMERAS = Cameras.official("sv4d2")
BOX = torch.tensor([[-0.5, -0.4, -0.5], [0.5, 0.6, 0.5]])
TIMES = (0.0, 0.5, 1.0)
AWAY = ObjectPath(TIMES, ((0.0, 0.0, 0.0), (0.2, 0.1, 0.0), (0.4, 0.0, -0.3)))


def generator():
    return torch.Generator().manual_seed(0)


def dynerf(field="planes"):
    cells = torch.zeros(3, 16, 16, 16, dtype=torch.bool)
    cells[:, 4:12, 5:9, 6:10] = True
    config = replace(
        RefineConfig(features=4, hidden=16), field=field, plane_sizes=(8, 16), deformation_sizes=(4, 8)
    )
    return DyNeRF(Occupancy(cells, BOX), CAMERAS, 8.0, TIMES, config, generator())


def gaussians(count=60, scale=0.03):
    means = torch.rand(count, 3, generator=generator()) * 0.5 - 0.2
    own = CanonicalGaussians(means, scale, 0.6, torch.rand(count, 3, generator=generator()))
    config = GaussiansConfig(features=4, plane_sizes=(8,), hidden=16)
    return Gaussians(own, BOX, (0.01, 0.1), CAMERAS, 8.0, TIMES, config, generator())


def drawn_gaussians(count):
    drawn = generator()
    return GaussiansAt(
        means=torch.rand(count, 3, generator=drawn) - 0.5,
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=drawn), dim=-1),
        scales=torch.rand(count, 3, generator=drawn) * 0.06 + 0.01,
        opacities=torch.rand(count, generator=drawn) * 0.9 + 0.05,
        colours=torch.rand(count, 3, generator=drawn),
    )


def signed_volume(mesh):
    a, b, c = mesh.vertices.double()[mesh.faces].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def test_gaussians_add_up_as_when_every_pair_is_looked_at():
    own, points = drawn_gaussians(200), torch.rand(3000, 3, generator=generator()) * 1.2 - 0.6
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


def test_smoothing_and_decimation_are_as_asked_for():
    rough, smooth = (surface_at(Arm(), 0.0, 32, 100_000, smoothing, 40.0) for smoothing in (0, 10))
    few = surface_at(Arm(), 0.0, 32, 300, 10, 40.0)
    assert len(rough.faces) == len(smooth.faces) > len(few.faces) and len(few.faces) <= 300
    assert not torch.equal(rough.vertices, smooth.vertices)
    assert signed_volume(few) == pytest.approx(signed_volume(smooth), rel=0.05)


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
    with pytest.raises(
        ValueError, match=r"Expected finite densities; \d+ of \d+ numbers in the scene at time 0.5"
    ):
        surface_at(wrong, 0.5, 16, level=1.0)
    with pytest.raises(ValueError, match="finite"):
        surface_at(lost, 0.5, 16, level=1.0)


def test_normals_do_not_know_where_vertices_were_doubled():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, -1]])
    # Two sides of a roof, and the same with the ridge cut open.
    whole = torch.tensor([[0, 1, 2], [0, 1, 3]])
    doubled, opened = corners[[0, 1, 2, 0, 1, 3]], torch.tensor([[0, 1, 2], [3, 4, 5]])
    expected = torch.from_numpy(vertex_normals(corners.double().numpy(), whole.numpy())).float()
    torch.testing.assert_close(welded_normals(corners, whole), expected)
    torch.testing.assert_close(welded_normals(doubled, opened), expected[[0, 1, 2, 0, 1, 3]])
    torch.testing.assert_close(expected[0], torch.tensor([0, 0.5**0.5, 0.5**0.5]))
