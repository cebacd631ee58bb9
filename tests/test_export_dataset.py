"""Camera files, read the way other programs read them, point at the pixels of the rendered object."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from sv4d2_core.cameras import Cameras
from sv4d2_core.data.views_folder import cameras_json, transforms_json, write_views
from sv4d2_core.world import make_creature, parts_at, render_views

torch.set_num_threads(1)

CAMERAS = Cameras((0, 0, 25, -15), (0, 60, 150, 280), input_elevation_deg=10.0)
N_FRAMES, SIZE = 3, 64


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    write_views(
        folder, render_views(make_creature(6), CAMERAS, N_FRAMES, SIZE), crop={"box": [1, 2, 3]}, run={}
    )
    cameras = json.loads((folder / "cameras.json").read_text())
    transforms = json.loads((folder / "transforms_train.json").read_text())
    return folder, cameras, transforms


def to_z_up(point: np.ndarray) -> np.ndarray:
    """Our world to D-NeRF's: forward of the input camera is +y there, up is +z."""
    x, y, z = point
    return np.array([x, -z, y])


def pixel(
    w2c: np.ndarray, focal: float, centre: float, point: np.ndarray, opencv: bool
) -> tuple[float, float]:
    """Project by hand, in OpenCV or OpenGL camera axes."""
    x, y, z = (w2c @ np.append(point, 1.0))[:3]
    if opencv:
        return centre + focal * x / z, centre + focal * y / z
    return centre + focal * x / -z, centre - focal * y / -z


def test_both_files_project_a_point_to_the_same_pixel(dataset):
    _, cameras, transforms = dataset
    rng = np.random.default_rng(0)
    for view, frame in zip(cameras["views"], transforms["frames"], strict=False):
        focal = 0.5 * SIZE / math.tan(0.5 * transforms["camera_angle_x"])
        assert focal == pytest.approx(view["K"][0][0]) == pytest.approx(transforms["fl_x"])
        for point in rng.uniform(-0.4, 0.4, (5, 3)):
            ours = pixel(np.linalg.inv(view["c2w_opencv"]), focal, SIZE / 2, point, opencv=True)
            opengl = pixel(np.linalg.inv(view["c2w_opengl"]), focal, SIZE / 2, point, opencv=False)
            nerf = np.linalg.inv(frame["transform_matrix"])
            theirs = pixel(nerf, transforms["fl_x"], transforms["cx"], to_z_up(point), opencv=False)
            assert opengl == pytest.approx(ours, abs=1e-6)
            assert theirs == pytest.approx(ours, abs=1e-6)


def test_rays_made_as_d_nerf_makes_them_meet_the_mask_where_they_meet_the_object(dataset):
    """D-NeRF's ray formula on the written file, against the creature's ellipsoids and the written masks."""
    folder, _, transforms = dataset
    creature = make_creature(6)
    j, i = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
    focal = 0.5 * SIZE / np.tan(0.5 * transforms["camera_angle_x"])
    in_camera = np.stack([(j - SIZE / 2) / focal, -(i - SIZE / 2) / focal, -np.ones_like(i)], -1)
    for frame in transforms["frames"]:
        c2w = np.array(frame["transform_matrix"])
        directions, origin = in_camera @ c2w[:3, :3].T, c2w[:3, 3]
        parts = parts_at(creature, torch.tensor([frame["time"]], dtype=torch.float64))
        hit = np.zeros((SIZE, SIZE), bool)
        for centre, rotation, radii in zip(
            parts.centres[0].numpy(), parts.rotations[0].numpy(), parts.radii.numpy(), strict=True
        ):
            axes = np.stack([to_z_up(axis) for axis in rotation.T])
            o, d = (axes @ (origin - to_z_up(centre))) / radii, (directions @ axes.T) / radii
            b, a, c = d @ o, (d * d).sum(-1), o @ o - 1
            hit |= b * b - a * c > 0
        with Image.open(folder / f"{frame['file_path']}.png") as picture:
            object_pixels = np.asarray(picture).min(-1) < 250
        with Image.open(folder / frame["mask_path"]) as picture:
            mask = np.asarray(picture)
        assert (mask[hit] > 0).all()
        assert (mask[~hit] == 255).mean() < 0.002  # a pixel whose middle looks between two limbs
        assert not (object_pixels & (mask == 0)).any()
        assert hit.mean() > 0.05


def test_every_view_and_time_is_listed_once(dataset):
    folder, _, transforms = dataset
    listed = [(frame["file_path"], frame["time"]) for frame in transforms["frames"]]
    expected = [(f"./frames/view_{v:02d}/{t:05d}", t / 2) for t in range(N_FRAMES) for v in range(4)]
    assert listed == expected
    assert all((folder / f"{path}.png").is_file() for path, _ in listed)
    assert transforms["camera_angle_x"] == pytest.approx(math.radians(33.8))
    assert (transforms["cx"], transforms["cy"], transforms["w"], transforms["h"]) == (32, 32, 64, 64)


def test_the_input_camera_stands_in_front_in_the_z_up_world():
    first = transforms_json(Cameras.ring(2), 64, 8.0, [0.0], False)["frames"][0]["transform_matrix"]
    assert [row[3] for row in first] == pytest.approx([0, -2, 0, 1])
    up = [row[1] for row in first[:3]]
    assert up == pytest.approx([0, 0, 1])
    rotation = torch.tensor(first)[:3, :3]
    assert float(torch.linalg.det(rotation)) == pytest.approx(1)


def test_cameras_json_states_angles_conventions_and_crop(dataset):
    _, cameras, _ = dataset
    assert Cameras.from_json(cameras) == CAMERAS
    assert (cameras["size"], cameras["fps"], cameras["n_frames"]) == (SIZE, 8.0, N_FRAMES)
    assert cameras["crop"] == {"box": [1, 2, 3]}
    assert [view["azimuth_deg"] for view in cameras["views"]] == [0, 60, 150, 280]
    assert [view["elevation_deg"] for view in cameras["views"]] == [0, 0, 25, -15]
    assert [view["absolute_elevation_deg"] for view in cameras["views"]] == [10, 10, 35, -5]
    assert {"world", "angles", "c2w_opengl", "c2w_opencv", "K", "times", "crop"} <= cameras[
        "conventions"
    ].keys()
    assert cameras_json(CAMERAS, 32, 8.0, [0.0], None)["crop"] is None
