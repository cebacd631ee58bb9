"""Cameras out of camera files: ours, D-NeRF's and nerfstudio's, and what stands on no orbit."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from test_viewer_cameras import close_cameras, random_orbit

from sv4d2_core.cameras import Cameras
from sv4d2_core.data.transforms import read_cameras
from sv4d2_core.data.views_folder import transforms_json, write_views
from sv4d2_core.views import ViewGrid

CAMERAS = Cameras((0, 0, 12.5), (0, 60, 210), radius=2.2, fov_deg=35.0, input_elevation_deg=8.0)
SIZE, TIMES = 32, (0.0, 0.5, 1.0)


def transforms(folder, cameras=CAMERAS, edit=lambda content: None):
    content = json.loads(json.dumps(transforms_json(cameras, SIZE, 8, TIMES, False)))
    edit(content)
    file = folder / "transforms.json"
    file.write_text(json.dumps(content))
    return file


def matrix(frame) -> np.ndarray:
    return np.array(frame["transform_matrix"])


def test_cameras_survive_our_own_files(tmp_path):
    write_views(tmp_path, ViewGrid(torch.ones(2, 3, SIZE, SIZE, 3), CAMERAS))
    for name in ("cameras.json", "", "transforms.json", "transforms_train.json"):
        assert read_cameras(tmp_path / name) == read_cameras(str(tmp_path / name)) == CAMERAS
    (tmp_path / "cameras.json").unlink()
    assert read_cameras(tmp_path) == CAMERAS


@pytest.mark.parametrize("seed", range(5))
def test_any_orbit_survives_a_transforms_file(tmp_path, seed):
    cameras = random_orbit(seed)
    close_cameras(read_cameras(transforms(tmp_path, cameras)), cameras, 1e-6)


def test_blender_cameras_by_hand(tmp_path):
    """D-NeRF: +z up, the camera looks along its own -z; the first stands at the front, -y, 45 degrees up."""
    s = math.sqrt(0.5)
    front_above = [[1, 0, 0, 0], [0, s, -s, -4 * s], [0, s, s, 4 * s], [0, 0, 0, 1]]
    right = [[0, 0, 1, 4], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    behind = [[-1, 0, 0, 0], [0, 0, 1, 4], [0, 1, 0, 0], [0, 0, 0, 1]]
    frames = [{"file_path": "./a", "transform_matrix": m} for m in (front_above, right, front_above, behind)]
    (tmp_path / "transforms_test.json").write_text(json.dumps({"camera_angle_x": 0.69, "frames": frames}))
    read = read_cameras(tmp_path / "transforms_test.json")
    close_cameras(read, Cameras((0, -45, -45), (0, 90, 180), 4.0, math.degrees(0.69), 45.0), 1e-9)


def test_cameras_of_single_precision_are_told_apart(tmp_path):
    noise = np.random.default_rng(0)

    def blur(content):
        for frame in content["frames"]:
            frame["transform_matrix"] = (matrix(frame) + noise.uniform(-2e-6, 2e-6, (4, 4))).tolist()

    def nudge(content):
        content["frames"][-1]["transform_matrix"][0][3] += 3e-2

    close_cameras(read_cameras(transforms(tmp_path, edit=blur)), CAMERAS, 1e-4)
    assert read_cameras(transforms(tmp_path, edit=nudge)).n_views == CAMERAS.n_views + 1


@pytest.mark.parametrize("places", ["file", "frames"])
@pytest.mark.parametrize("keys", [("fl_x", "w"), ("fl_x", "fl_y", "w", "h", "cx", "cy"), ("fl_y", "h")])
def test_nerfstudio_intrinsics_tell_the_field_of_view(tmp_path, keys, places):
    """Without camera_angle_x, once for all frames or in every frame."""

    def edit(content):
        lens = {key: content.pop(key) for key in ("camera_angle_x", "fl_x", "fl_y", "cx", "cy", "w", "h")}
        stated = {key: lens[key] for key in keys}
        for target in [content] if places == "file" else content["frames"]:
            target.update(stated)

    close_cameras(read_cameras(transforms(tmp_path, edit=edit)), CAMERAS, 1e-6)


def moved(content):
    for frame in content["frames"]:
        frame["transform_matrix"][2][3] += 0.1


def turned(content, axis, degrees):
    """Turn camera 1 about one of its own axes."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz"[axis], degrees, degrees=True).as_matrix()
    for frame in content["frames"][1::3]:
        frame["transform_matrix"] = (matrix(frame) @ turn).tolist()


def scaled(content, factor, rows, columns, frames=slice(None)):
    for frame in content["frames"][frames]:
        changed = matrix(frame)
        changed[rows, columns] *= factor
        frame["transform_matrix"] = changed.tolist()


NAN = float("nan")
STRAIGHT_DOWN = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2.2], [0, 0, 0, 1]]
REFUSED = {
    "straight above": (
        lambda c: c["frames"].append({"file_path": "a", "transform_matrix": STRAIGHT_DOWN}),
        r"between -90 and 90 degrees; got 8 to 90 ",
    ),
    "another centre": (moved, r"look at the origin \(to 1 degree\); frame \d .*looks 2\.\d+ degrees past"),
    "panned": (lambda c: turned(c, 1, 1.2), r"frame 1 \(./frames/view_01/00000\) .* looks 1\.20 degrees"),
    "rolled": (lambda c: turned(c, 2, 5), r"frame 1 .* is rolled by 5\.00 degrees.*whose world has \+z up"),
    "OpenCV axes": (lambda c: scaled(c, -1, slice(3), slice(1, 3)), r"180\.00 degrees past it.*OpenGL"),
    "mirrored": (lambda c: scaled(c, -1, slice(3), 0), r"frame 0 .* mirrored \(determinant -1\)"),
    "scaled axes": (
        lambda c: scaled(c, 2, slice(3), slice(3)),
        r"at right angles \(to 0\.001\); those of frame . .* are off by 3",
    ),
    "another distance": (
        lambda c: scaled(c, 1.1, slice(3), 3, slice(2, None, 3)),
        r"one distance from the origin \(to 1 %\); frame 2 .* is at 2\.42, 10 % off the median 2\.2",
    ),
    "transposed": (
        lambda c: [f.update(transform_matrix=matrix(f).T.tolist()) for f in c["frames"]],
        r"last row of the transform_matrix of frame 0",
    ),
    "NaN": (
        lambda c: scaled(c, NAN, 0, slice(2), slice(4, 5)),
        r"4 x 4 finite numbers as transform_matrix in frame 4",
    ),
    "no matrix": (
        lambda c: c["frames"][5].pop("transform_matrix"),
        r"as transform_matrix in frame 5.*got none",
    ),
    "ragged": (
        lambda c: c["frames"][1]["transform_matrix"][2].pop(),
        r"4 x 4 finite numbers as transform_matrix in frame 1 ",
    ),
    "words": (lambda c: c["frames"][2].update(transform_matrix="up"), r"4 x 4 finite numbers .* frame 2"),
    "one camera": (lambda c: c.update(frames=c["frames"][:1]), r"at least two different cameras.* got 1\."),
    "no frames": (
        lambda c: c.update(frames=[]),
        r"at least one object as frames in .*transforms.json; got \[\]",
    ),
    "unequal focal lengths": (
        lambda c: c.update(fl_y=1.1 * c["fl_y"]),
        r"across and down \(to 1 %\).*fl_x = 50\.7\d+ \(35 deg.*fl_y = 55\.8\d+ \(31\.99 deg",
    ),
    "angle against focal length": (
        lambda c: c.update(camera_angle_x=0.69),
        r"camera_angle_x = 0\.69 \(39\.53 degrees\), fl_x = ",
    ),
    "principal point": (lambda c: c.update(cx=18), r"cx = 18 of 32 pixels instead of 16"),
    "not square": (lambda c: c.update(h=48), r"square images; .*w = 32 and h = 48"),
    "distorted": (lambda c: c.update(k1=-0.2), r"distortion; .* k1 = -0\.2"),
    "fisheye": (lambda c: c.update(camera_model="OPENCV_FISHEYE"), r"pinhole .* OPENCV_FISHEYE"),
    "two lenses": (
        lambda c: c["frames"][4].update(camera_angle_x=0.4, fl_x=None, fl_y=None),
        r"one field of view for all frames \(to 1 %\); got 35 degrees for frame 0.*22\.92 for frame 4",
    ),
    "no lens": (
        lambda c: [c.pop(key) for key in ("camera_angle_x", "w", "h")],
        r"camera_angle_x, or fl_x with w; frame 0",
    ),
    "a word for a number": (lambda c: c.update(fl_x="wide"), r"finite number as fl_x in frame.*; got 'wide'"),
    "flat": (lambda c: c.update(camera_angle_x=4.0, fl_x=None, fl_y=None), r"0 to 180 degrees; .*229"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_cameras_on_no_orbit_are_refused_with_numbers(tmp_path, case):
    edit, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        read_cameras(transforms(tmp_path, edit=edit))
    assert str(tmp_path / "transforms.json") in str(caught.value)


def test_small_errors_of_cameras_are_forgiven(tmp_path):
    def edit(content):
        turned(content, 1, 0.8)
        turned(content, 2, 0.8)
        scaled(content, 1.008, slice(3), 3, slice(2, None, 3))
        content.update(fl_y=1.008 * content["fl_y"], cx=15.5, cy=15.5)

    close_cameras(read_cameras(transforms(tmp_path, edit=edit)), CAMERAS, 1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "readable JSON in .*cameras.json; it is damaged"),
        ("[" * 100_000, "readable JSON in .*cameras.json; it is damaged"),
        ("[1]", r"JSON object in .*cameras.json; got \[1\]"),
        ("{}", "as elevations_deg in .*cameras.json; got none"),
        ('{"azimuths_deg": null, "elevations_deg": [0]}', "azimuths_deg in .*cameras.json; got None"),
        ('{"azimuths_deg": [0, "x"], "elevations_deg": [0, 0]}', "azimuths_deg in .*json; got .*'x'"),
        (b"\xff\xfe{", "readable JSON in .*cameras.json; it is damaged"),
    ],
)
def test_damaged_camera_files_are_named(tmp_path, text, message):
    file = tmp_path / "cameras.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_cameras(file)


def test_missing_camera_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*nothing.json"):
        read_cameras(tmp_path / "nothing.json")
    with pytest.raises(FileNotFoundError, match="cameras.json or transforms_train.json or transforms.json"):
        read_cameras(tmp_path)
