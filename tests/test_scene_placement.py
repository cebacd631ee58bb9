"""The elevation of the input from silhouettes, the path of an object that a crop has followed, the hull."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.data.views_folder import read_crop, write_views
from sv4d2_core.scene.geometry import hull as hull_module
from sv4d2_core.scene.geometry.hull import Occupancy, hull_pixels, visual_hull
from sv4d2_core.scene.geometry.placement import ObjectPath, estimate_elevation, object_path
from sv4d2_core.scene.store import load_scene
from sv4d2_core.video.crop import CropPath
from sv4d2_core.world import benchmark_scenes, corrupt_views
from sv4d2_core.world.body import make_creature, parts_at
from sv4d2_core.world.render import render_views

RIG = Cameras.official("sv4d2")
TIMES = (0.0, 0.5, 1.0)
CROP = CropPath(((100.0, 60.0), (140.0, 60.0), (180.0, 40.0)), 160.0, 32, 240, 320, "per_frame")


@functools.cache
def truth(name, elevation_deg, cameras=RIG, size=48):
    scene = next(s for s in benchmark_scenes() if s.name == name)
    return replace(scene, n_frames=2).views(replace(cameras, input_elevation_deg=elevation_deg), size)


@pytest.mark.parametrize(
    "name, elevation_deg",
    [("walker", 0.0), ("walker", 20.0), ("runner", 10.0), ("robot_arm", -10.0), ("butterfly", 7.0)],
)
def test_true_masks_give_the_elevation_within_two_degrees(name, elevation_deg):
    grid = truth(name, elevation_deg)
    found, certain = estimate_elevation(grid.masks, RIG)
    assert found == pytest.approx(elevation_deg, abs=2) and certain
    # What the cameras say themselves is not read.
    assert estimate_elevation(grid.masks, grid.cameras) == (found, certain)


@pytest.mark.parametrize("name, elevation_deg", [("walker", 10.0), ("aeroplane", 0.0), ("butterfly", -10.0)])
def test_corrupted_masks_give_it_within_five(name, elevation_deg):
    masks = corrupt_views(truth(name, elevation_deg), seed=1).masks
    assert estimate_elevation(masks, RIG)[0] == pytest.approx(elevation_deg, abs=5)


def test_a_body_that_is_round_about_the_vertical_is_not_certain():
    axes = torch.meshgrid(*[torch.arange(48) - 23.5] * 2, indexing="ij")
    ball = torch.linalg.vector_norm(torch.stack(axes), dim=0) < 14
    for masks in (ball.float().expand(2, 5, 48, 48), truth("owl", 10.0).masks):
        assert not estimate_elevation(masks, RIG)[1]
    # Nor is one beyond the candidates.
    assert estimate_elevation(truth("walker", 50.0).masks, RIG) == (40, False)


def test_views_at_several_elevations_and_near_a_pole():
    cameras = Cameras((0, 60, 0, -15), (0, 60, 150, 240))
    found, _ = estimate_elevation(truth("walker", 10.0, cameras).masks, cameras)
    assert found == pytest.approx(10, abs=2)
    with pytest.raises(ValueError, match="up to 85 degrees.*Give the elevation"):
        estimate_elevation(torch.ones(1, 3, 16, 16), Cameras((0, 85, -85), (0, 90, 180)))


def test_empty_frames_do_not_count():
    masks = truth("walker", 10.0).masks
    with_gap = torch.cat([masks, torch.zeros_like(masks[:1])])
    assert estimate_elevation(with_gap, RIG)[0] == pytest.approx(estimate_elevation(masks, RIG)[0], abs=1e-4)


def test_a_source_pixel_of_the_crop_lands_where_the_source_shows_it():
    path = object_path(CROP, RIG, TIMES)
    assert path is not None
    to_pixels = RIG.intrinsics(CROP.size) @ RIG.w2c_opencv()[0, :3]
    for frame, time in enumerate(TIMES):
        seen = to_pixels @ torch.cat([path.at(time), torch.ones(1)])
        # In the picture of one crop that stands still at the middle of the path.
        offset = (np.asarray(CROP.centers[frame]) - (140, 50)) * CROP.size / CROP.side + CROP.size / 2
        assert (seen[:2] / seen[2]).tolist() == pytest.approx(offset.tolist())


def test_paths_are_linear_between_frames_and_survive_json():
    path = object_path(CROP, replace(RIG, input_elevation_deg=20.0), TIMES)
    assert path is not None and ObjectPath.from_json(path.to_json()) == path
    assert torch.allclose(path.at(0.25), (path.at(0) + path.at(0.5)) / 2)
    assert object_path(replace(CROP, centers=((9.0, 9.0),) * 3), RIG, TIMES) is None
    with pytest.raises(ValueError, match="crop of 2 frames, as the views have; got one of 3"):
        object_path(CROP, RIG, TIMES[:2])


@pytest.mark.parametrize("reach", [0.3, 0.9])
@pytest.mark.parametrize("rig", [Cameras.official("sv4d2"), Cameras.for_scenes()])
def test_the_whole_path_is_seen_from_every_side(rig, reach):
    way = torch.tensor([[-reach, 0.0, 0.0], [0.0, 0.0, 0.0], [0.4, 0.2, reach]], dtype=torch.float64)
    path = ObjectPath((0.0, 0.5, 1.0), tuple((x, y, z) for x, y, z in way.tolist()))
    seen = path.seen_by(rig)
    ball = torch.nn.functional.normalize(torch.randn(500, 3, dtype=torch.float64), dim=-1)
    ball = ball * 0.99 * rig.radius * np.sin(np.radians(rig.fov_deg) / 2)
    for shift in way:
        points = torch.cat([ball + shift, torch.ones(500, 1)], dim=1)
        places = torch.einsum("vij,nj->vni", seen.w2c_opencv()[:, :3].double(), points)
        assert float((places[..., :2].abs() / places[..., 2:]).max()) < np.tan(np.radians(seen.fov_deg) / 2)
    still = ObjectPath((0.0,), ((0.0, 0.0, 0.0),)).seen_by(rig)
    assert still.fov_deg == pytest.approx(rig.fov_deg)
    through = ObjectPath((0.0,), ((0.0, 0.0, rig.radius),)).seen_by(rig)
    assert through.fov_deg == pytest.approx(120), "it cannot be held where it meets a camera"


def test_the_scene_moves_as_the_crop_did(tmp_path):
    scene = load_scene(Path(__file__).parent / "data/version_0_1/gaussians.safetensors")
    scene.path, wide = None, replace(RIG, fov_deg=60.0)
    still = scene.render(wide, TIMES, 48, views=[0])
    scene.path = object_path(CROP, RIG, TIMES)
    scene.save(tmp_path / "scene.safetensors")
    moved = load_scene(tmp_path / "scene.safetensors").render(wide, TIMES, 48, views=[0])

    def middle(alpha):
        columns = torch.arange(48.0) + 0.5
        return float((alpha.sum(0) * columns).sum() / alpha.sum())

    shifts = [middle(moved.alpha[t, 0]) - middle(still.alpha[t, 0]) for t in range(3)]
    # A quarter of the crop's width to the left and to the right.
    expected = CROP.size / 4 * float(wide.intrinsics(48)[0, 0] / RIG.intrinsics(32)[0, 0])
    assert shifts[1] == pytest.approx(0, abs=0.2)
    assert shifts[2] == pytest.approx(expected, abs=1) and shifts[0] == pytest.approx(-expected, abs=1)


def test_the_crop_of_a_folder_is_read(tmp_path):
    write_views(tmp_path / "views", render_views(make_creature(5), RIG, 3, 32), crop=CROP.to_json())
    assert read_crop(tmp_path / "views") == CROP
    assert read_crop(tmp_path / "nowhere") is None


@pytest.fixture(scope="module")
def walker():
    creature = make_creature(10)
    views = render_views(creature, RIG, 3, 64)
    return parts_at(creature, torch.linspace(0, 1, 3, dtype=torch.float64)), views


def surface_points(parts, frame, generator, n=200):
    directions = torch.randn(len(parts.radii), n, 3, generator=generator, dtype=torch.float64)
    local = torch.nn.functional.normalize(directions, dim=-1) * parts.radii[:, None].double()
    rotated = torch.einsum("pij,pnj->pni", parts.rotations[frame].double(), local)
    return (rotated + parts.centres[frame][:, None].double()).flatten(0, 1).float()


def test_the_hull_holds_the_object(walker):
    parts, views = walker
    hull = visual_hull(views.masks, RIG, 48)
    generator = torch.Generator().manual_seed(0)
    for t in range(3):
        inside = hull.contains(hull.to_unit(surface_points(parts, t, generator)), t)
        assert float(inside.float().mean()) > 0.995
    # The box is cut to it.
    used = hull.cells.any(0).nonzero()
    assert bool((used.amin(0) <= 3).all()) and bool((used.amax(0) >= 44).all())


def test_the_hull_is_empty_outside_the_silhouettes(walker, monkeypatch):
    _, views = walker
    monkeypatch.setattr(hull_module, "_DILATION", 0)
    hull = visual_hull(views.masks, RIG, 48)
    assert 0.01 < float(hull.cells.float().mean()) < 0.5
    seen = hull_pixels(hull, RIG, 64)
    wide = torch.nn.functional.max_pool2d(views.masks.flatten(0, 1)[:, None], 7, 1, 3)[:, 0] >= 0.5
    assert not bool((seen.flatten(0, 1) & ~wide).any())
    covered = (seen & (views.masks >= 0.5)).sum() / (views.masks >= 0.5).sum()
    assert float(covered) > 0.99


def test_a_contradicting_view_is_overruled(walker):
    _, views = walker
    masks = views.masks.clone()
    masks[:, 2] = masks[:, 2].roll(24, dims=-1)
    seen = hull_pixels(visual_hull(masks, RIG, 48), RIG, 64)[:, 0]
    truth = views.masks[:, 0] >= 0.5
    assert float((seen & truth).sum() / truth.sum()) > 0.97


def test_silhouettes_without_a_common_part_are_refused():
    masks = torch.zeros(1, 5, 32, 32)
    masks[:, ::2, 8:12, 14:18] = 1
    masks[:, 1::2, 20:24, 14:18] = 1
    with pytest.raises(ValueError, match="no part of space is seen by the 5 views"):
        visual_hull(masks, RIG, 16)


def test_cells_are_found_by_their_frame_and_axes():
    cells = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    cells[1, 3, 2, 0] = True  # z, y, x
    occupancy = Occupancy(cells, torch.tensor([[0.0, 0, 0], [4.0, 4, 4]]))
    unit = occupancy.to_unit(torch.tensor([[0.5, 2.5, 3.5], [3.5, 2.5, 0.5], [0.5, 2.5, 4.5]]))
    assert occupancy.contains(unit, torch.tensor([1, 1, 1])).tolist() == [True, False, False]
    assert occupancy.contains(unit, torch.tensor([0, 0, 0])).tolist() == [False, False, False]
    centre = occupancy.centres()[3, 2, 0]
    torch.testing.assert_close(centre, unit[0])
