"""The elevation of the input from silhouettes, and the path of an object that a crop has followed."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.data.views_folder import read_crop, write_views
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.geometry.placement import ObjectPath, estimate_elevation, hull_iou, object_path
from sv4d2_core.scene.refine import refine_scene
from sv4d2_core.scene.store import load_scene
from sv4d2_core.video.crop import CropPath
from sv4d2_core.world import benchmark_scenes, corrupt_views
from sv4d2_core.world.body import make_creature
from sv4d2_core.world.render import render_views

torch.set_num_threads(1)

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


def test_the_hull_of_consistent_masks_fills_them_and_an_alien_view_lowers_the_score():
    masks = truth("butterfly", 0.0).masks
    moved = masks.clone()
    moved[:, 2] = moved[:, 2].roll(8, dims=-1)
    assert 1 >= hull_iou(masks, RIG) > hull_iou(moved, RIG) + 0.1


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
    assert path.seen_by(RIG).fov_deg > RIG.fov_deg + 5


def test_the_scene_moves_as_the_crop_did(tmp_path):
    views = render_views(make_creature(10), RIG, 3, 32)
    config = RefineConfig(
        rounds=0, steps_static=2, steps=10, rays_per_step=128, samples=16, hull_size=24, features=4, hidden=16
    )
    scene = refine_scene(views, config, input_elevation_deg=0.0)
    wide = replace(RIG, fov_deg=60.0)
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
