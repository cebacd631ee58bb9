"""The path of an object that a crop has followed is given back to the scene."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.data.views_folder import read_crop, write_views
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.geometry.paths import ObjectPath, object_path
from sv4d2_core.scene.refine import refine_scene as whole_job
from sv4d2_core.scene.store import load_scene
from sv4d2_core.video.crop import CropPath
from sv4d2_core.world.body import make_creature
from sv4d2_core.world.render import render_views

# The scenes are rendered at known cameras: nothing is estimated.
refine_scene = partial(whole_job, input_elevation_deg=0.0)

CAMERAS = Cameras.official("sv4d2")
TIMES = (0.0, 0.5, 1.0)
CROP = CropPath(((100.0, 60.0), (140.0, 60.0), (180.0, 40.0)), 160.0, 32, 240, 320, "per_frame")


def test_a_source_pixel_of_the_crop_lands_where_the_source_shows_it():
    path = object_path(CROP, CAMERAS, TIMES)
    assert path is not None
    to_pixels = CAMERAS.intrinsics(CROP.size) @ CAMERAS.w2c_opencv()[0, :3]
    for frame, time in enumerate(TIMES):
        seen = to_pixels @ torch.cat([path.at(time), torch.ones(1)])
        # In the picture of one crop that stands still at the middle of the path.
        offset = (np.asarray(CROP.centers[frame]) - (140, 50)) * CROP.size / CROP.side + CROP.size / 2
        assert (seen[:2] / seen[2]).tolist() == pytest.approx(offset.tolist())


def test_paths_are_linear_between_frames_and_survive_json():
    path = object_path(CROP, replace(CAMERAS, input_elevation_deg=20.0), TIMES)
    assert path is not None and ObjectPath.from_json(path.to_json()) == path
    assert torch.allclose(path.at(0.25), (path.at(0) + path.at(0.5)) / 2)
    assert object_path(replace(CROP, centers=((9.0, 9.0),) * 3), CAMERAS, TIMES) is None
    with pytest.raises(ValueError, match="crop of 2 frames, as the views have; got one of 3"):
        object_path(CROP, CAMERAS, TIMES[:2])
    assert path.seen_by(CAMERAS).fov_deg > CAMERAS.fov_deg + 5


def test_the_scene_moves_as_the_crop_did(tmp_path):
    views = render_views(make_creature(10), CAMERAS, 3, 32)
    config = RefineConfig(
        rounds=0, steps_static=2, steps=10, rays_per_step=128, samples=16, hull_size=24, features=4, hidden=16
    )
    scene = refine_scene(views, config)
    wide = replace(CAMERAS, fov_deg=60.0)
    still = scene.render(wide, TIMES, 48, views=[0])
    scene.path = object_path(CROP, CAMERAS, TIMES)
    scene.save(tmp_path / "scene.safetensors")
    moved = load_scene(tmp_path / "scene.safetensors").render(wide, TIMES, 48, views=[0])

    def middle(alpha):
        columns = torch.arange(48.0) + 0.5
        return float((alpha.sum(0) * columns).sum() / alpha.sum())

    shifts = [middle(moved.alpha[t, 0]) - middle(still.alpha[t, 0]) for t in range(3)]
    # A quarter of the crop's width to the left and to the right.
    expected = CROP.size / 4 * float(wide.intrinsics(48)[0, 0] / CAMERAS.intrinsics(32)[0, 0])
    assert shifts[1] == pytest.approx(0, abs=0.2)
    assert shifts[2] == pytest.approx(expected, abs=1) and shifts[0] == pytest.approx(-expected, abs=1)


def test_the_crop_of_a_folder_is_read(tmp_path):
    write_views(tmp_path / "views", render_views(make_creature(5), CAMERAS, 3, 32), crop=CROP.to_json())
    assert read_crop(tmp_path / "views") == CROP
    assert read_crop(tmp_path / "nowhere") is None
