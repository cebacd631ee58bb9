"""Cameras of three.js viewers: there and back, what the front and a placed model do, what is refused."""

import math
import random
from dataclasses import replace

import pytest
import torch
from scipy.spatial.transform import Rotation

from sv4d2_core.cameras import Cameras
from sv4d2_core.export.viewer_cameras import Placement, ViewerCamera, from_viewer, to_viewer

ORBIT = Cameras((0, 10, -20, 35), (0, 60, 130, 275), radius=2.3, fov_deg=40.0, input_elevation_deg=15)
CAMERA = ViewerCamera((0.0, 0.0, 2.0), (0.0, 0.0, 0.0), 40.0)
PLACEMENT = Placement((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0), (1.0, 1.0, 1.0))


def close_cameras(actual: Cameras, expected: Cameras, tolerance=1e-7):
    turned = [
        (a - e + 180) % 360 - 180 for a, e in zip(actual.azimuths_deg, expected.azimuths_deg, strict=True)
    ]
    assert turned == pytest.approx([0] * len(turned), abs=tolerance)
    for field in ("elevations_deg", "radius", "fov_deg", "input_elevation_deg"):
        assert getattr(actual, field) == pytest.approx(getattr(expected, field), abs=tolerance), field


def times(quaternion: tuple, axis: str, angle_deg: float) -> tuple:
    """Return the quaternion (x, y, z, w) that turns about an axis, then as the given one does."""
    turn = Rotation.from_euler(axis, angle_deg, degrees=True)
    return tuple((Rotation.from_quat(quaternion) * turn).as_quat().tolist())


def random_orbit(seed: int) -> Cameras:
    draw = random.Random(seed)
    n, top = draw.randint(1, 9), draw.uniform(-40, 40)
    return Cameras(
        (0, *(draw.uniform(-89, 89) - top for _ in range(n))),
        (0, *(draw.uniform(-400, 800) for _ in range(n))),
        draw.uniform(0.5, 9),
        draw.uniform(5, 120),
        top,
    )


@pytest.mark.parametrize("seed", range(8))
def test_any_orbit_comes_back(seed):
    cameras = random_orbit(seed)
    viewer = to_viewer(cameras)
    close_cameras(from_viewer(viewer), cameras)
    close_cameras(from_viewer([replace(camera, quaternion_xyzw=None) for camera in viewer]), cameras)


def test_rounding_to_single_precision_costs_less_than_a_ten_thousandth_of_a_degree():
    single = [
        replace(
            camera,
            position=tuple(torch.tensor(camera.position).float().tolist()),
            quaternion_xyzw=tuple(torch.tensor(camera.quaternion_xyzw).float().tolist()),
        )
        for camera in to_viewer(ORBIT)
    ]
    close_cameras(from_viewer(single), ORBIT, tolerance=1e-4)


def test_the_first_camera_is_the_input_view_wherever_it_stands():
    viewer = to_viewer(Cameras((0, 5, -10), (0, 30, 100), input_elevation_deg=20))
    close_cameras(
        from_viewer([viewer[2], viewer[0], viewer[1]]),
        Cameras((0, 10, 15), (0, 260, 290), input_elevation_deg=10),
    )


def test_zoom_narrows_the_field_of_view():
    viewer = [replace(camera, zoom=2.0) for camera in to_viewer(ORBIT)]
    narrow = math.degrees(2 * math.atan(math.tan(math.radians(20)) / 2))
    assert from_viewer(viewer).fov_deg == pytest.approx(narrow)
    # A camera that halves the zoom of a longer lens sees the same.
    long = [replace(viewer[0], fov_deg=narrow, zoom=1.0), *viewer[1:]]
    assert from_viewer(long).fov_deg == pytest.approx(narrow)


def test_from_the_front_one_camera_is_a_novel_view():
    one = to_viewer(ORBIT)[3]
    expected = Cameras((0, 50), (0, 275), radius=2.3, fov_deg=40.0)
    close_cameras(from_viewer([one], front_elevation_deg=0.0), expected)
    # The elevation of the clip's camera is taken off, as all elevations are relative to it.
    above = from_viewer([one], front_elevation_deg=15.0)
    close_cameras(above, replace(expected, elevations_deg=(0, 35), input_elevation_deg=15.0))
    torch.testing.assert_close(above.c2w_opengl()[1], ORBIT.c2w_opengl()[3])


def placed(model: Placement) -> list[ViewerCamera]:
    """Return the cameras of the orbit, in a world in which its model was placed."""
    turn, scale = Rotation.from_quat(model.quaternion_xyzw), model.scale[0]

    def moved(point: tuple) -> tuple:
        return tuple((scale * turn.apply(point) + model.position).tolist())

    return [
        replace(
            camera,
            position=moved(camera.position),
            target=moved(camera.target),
            quaternion_xyzw=tuple((turn * Rotation.from_quat(camera.quaternion_xyzw)).as_quat().tolist()),
        )
        for camera in to_viewer(ORBIT)
    ]


@pytest.mark.parametrize("front", [None, 15.0])
def test_a_model_that_was_placed_is_seen_as_in_its_file(front):
    model = Placement((1.0, 2.5, -3.0), times((0.0, 0.0, 0.0, 1.0), "y", 50), (2.5, 2.5, 2.5))
    viewer = placed(model)
    seen = from_viewer(viewer[0 if front is None else 1 :], front_elevation_deg=front, model=model)
    close_cameras(seen, ORBIT)
    # Without it the cameras are about the world, 2.5 times as far away.
    assert from_viewer(viewer).radius == pytest.approx(2.5 * 2.3)
    # Cameras go around their target, wherever it is.
    close_cameras(from_viewer(placed(replace(PLACEMENT, position=(3.0, -0.5, 7.0)))), ORBIT)


def changed(view: int, **fields):
    return lambda: [replace(c, **fields) if i == view else c for i, c in enumerate(to_viewer(ORBIT))]


def rolled(angle_deg: float):
    return changed(2, quaternion_xyzw=times(to_viewer(ORBIT)[2].quaternion_xyzw, "z", angle_deg))


def from_pole(top: float):
    return lambda: [to_viewer(ORBIT)[0], ViewerCamera((0.0, 2.3 * top, 0.0), (0.0, 0.0, 0.0), 40.0)]


def nearer(share: float):
    return changed(1, position=tuple(share * x for x in to_viewer(ORBIT)[1].position))


def looking_away(angle_deg: float):
    return changed(3, quaternion_xyzw=times(to_viewer(ORBIT)[3].quaternion_xyzw, "y", angle_deg))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (list, "at least one camera; got none"),
        (lambda: to_viewer(ORBIT)[:1], "at least two cameras, the input view's first; got 1"),
        (rolled(3), r"upright cameras \(to 0\.1 degree\); camera 3 of 4 is rolled by 3\.00 degrees"),
        (rolled(180), r"camera 3 of 4 is rolled by 180\.00 degrees"),
        (
            nearer(0.5),
            r"one distance from their common target.*camera 2 of 4 is at 1\.15, 50 % off the median 2",
        ),
        (
            changed(2, target=(0.0, 0.4, 0.0)),
            r"camera 1 of 4 has \(0, 0, 0\), camera 3 of 4 \(0, 0\.4, ",
        ),
        (looking_away(2), r"look at their common target.*camera 4 of 4 looks 2\.00 degrees past it"),
        (changed(1, fov_deg=50.0), r"camera 1 of 4 has \(40\), camera 2 of 4 \(50\)"),
        (changed(1, zoom=2.0), r"zoom included.*camera 2 of 4 \(20\.6\d\)"),
        (from_pole(1.0), r"between -90 and 90 degrees; got .*90"),
        (from_pole(-1.0), r"between -90 and 90 degrees; got .*90"),
    ],
)
def test_what_stands_on_no_orbit_is_refused_with_a_number(make, message):
    with pytest.raises(ValueError, match=message):
        from_viewer(make())


@pytest.mark.parametrize("make", [rolled(0.05), nearer(1.0005), looking_away(0.05)])
def test_rounding_is_no_reason_to_refuse(make):
    close_cameras(from_viewer(make()), ORBIT, tolerance=2e-3)


@pytest.mark.parametrize(
    ("possible", "fields", "message"),
    [
        (CAMERA, {"position": (math.nan, 0.0, 1.0)}, "finite numbers in a camera"),
        (CAMERA, {"fov_deg": 0.0}, r"between 0 and 180 degrees.* fov_deg=0\.0"),
        (CAMERA, {"zoom": -1.0}, "a zoom above 0; got .* zoom=-1"),
        (CAMERA, {"target": (0.0, 0.0, 2.0)}, "looks at a point away from itself"),
        (CAMERA, {"quaternion_xyzw": (0.0, 0.0, 0.0, 0.0)}, "looks at a point away from itself"),
        (PLACEMENT, {"scale": (1.0, 1.0, 2.0)}, r"for all axes of the model \(to 0\.1 %\); got 1, 1, 2"),
        (PLACEMENT, {"scale": (-1.0, -1.0, -1.0)}, "got -1, -1, -1"),
        (PLACEMENT, {"quaternion_xyzw": (0.0, 0.0, 0.0, 0.0)}, "a rotation of a model"),
        (PLACEMENT, {"position": (math.inf, 0.0, 0.0)}, "finite numbers"),
    ],
)
def test_impossible_cameras_and_placements(possible, fields, message):
    with pytest.raises(ValueError, match=message):
        replace(possible, **fields)
