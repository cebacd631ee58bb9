"""Camera geometry against formulas written out again, presets, lists and errors."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from sv4d2_core.cameras import Cameras

ORBIT = Cameras((0, 10, -20, 35), (0, 60, 130, 275), input_elevation_deg=15)


def test_poses_are_rigid_and_look_at_the_origin():
    for c2w in (ORBIT.c2w_opengl(), ORBIT.c2w_opencv()):
        rotation = c2w[:, :3, :3]
        identity = torch.eye(3, dtype=torch.float64).expand_as(rotation)
        torch.testing.assert_close(rotation @ rotation.mT, identity)
        torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(4, dtype=torch.float64))
    forward = ORBIT.c2w_opencv()[:, :3, 2]
    torch.testing.assert_close(forward * ORBIT.radius, -ORBIT.eyes())
    assert (ORBIT.c2w_opengl()[:, 1, 1] > 0).all(), "the picture's up has a component along +y"


def test_positive_azimuth_moves_the_camera_to_the_viewers_right_and_elevation_lifts_it():
    eyes = Cameras((0, 0, 30), (0, 90, 0)).eyes()
    torch.testing.assert_close(eyes[0], torch.tensor([0, 0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(eyes[1], torch.tensor([2.0, 0, 0], dtype=torch.float64))
    assert eyes[2, 1] == pytest.approx(1.0)


def test_projection_of_known_points():
    size = 64
    cameras = Cameras((0, 0), (0, 90))
    focal = 32 / math.tan(math.radians(33.8 / 2))
    for x, y in ((0.1, 0.2), (0, 0)):
        in_camera = cameras.w2c_opencv()[0] @ torch.tensor([x, y, 0, 1.0], dtype=torch.float64)
        pixel = cameras.intrinsics(size) @ in_camera[:3]
        assert (pixel / pixel[2]).tolist() == pytest.approx([32 + focal * x / 2, 32 - focal * y / 2, 1])
    # Seen from azimuth 90, the world's +z axis (towards the input camera) points to the picture's left.
    in_camera = cameras.w2c_opencv()[1] @ torch.tensor([0, 0, 0.1, 1], dtype=torch.float64)
    assert in_camera[0] < 0


def test_rays_go_back_through_their_pixels():
    origins, directions = ORBIT.rays(8)
    points = origins[:, None, None] + 1.7 * directions
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
    in_camera = torch.einsum("vij,vhwj->vhwi", ORBIT.w2c_opencv(), homogeneous)[..., :3]
    pixels = in_camera @ ORBIT.intrinsics(8).T
    pixels = pixels[..., :2] / pixels[..., 2:]
    y, x = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    torch.testing.assert_close(pixels, torch.stack([x, y], -1).double().expand_as(pixels))
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(4, 8, 8, dtype=torch.float64))


def test_presets():
    assert Cameras.official("sv4d2").azimuths_deg == (0, 60, 120, 180, 240)
    assert Cameras.default(8) == Cameras.official("sv4d2_8views")
    assert Cameras.ring(3).azimuths_deg == (0, 90, 180, 270)
    assert Cameras.ring(4, 20).azimuths_deg == (0, 0, 90, 180, 270)
    rings = Cameras.rings(4, (-15, 20))
    assert rings.n_views == 8 and rings.elevations_deg == (0, *[-15] * 4, *[20] * 4)
    sweep = Cameras.sweep(3, 360, 10)
    assert sweep.azimuths_deg == (0, 90, 180, 270)
    assert sweep.elevations_deg == pytest.approx((0, 10, 0, -10))
    assert ORBIT.select([2]).azimuths_deg == (0, 275)
    assert Cameras.from_json(ORBIT.to_json()) == ORBIT


def test_lists_may_leave_out_the_input_view():
    for azimuths in (None, [60, 120, 180, 240], [0, 60, 120, 180, 240]):
        assert Cameras.from_lists(4, azimuths) == Cameras.official("sv4d2")
    assert Cameras.from_lists(4, range(10, 90, 10)).n_views == 8
    assert Cameras.from_lists(4, None, [0, 1, 2, 3, 4]).elevations_deg == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (Cameras.from_lists, (4, None, [10]), "one value for all.*the preset ring, .*--ring-elevation"),
        (Cameras.from_lists, (4, [1, 2, 3]), "Expected 4 azimuths.*got 3.*fits is 4"),
        (Cameras.from_lists, (4, range(1, 8)), "got 7.*fits is 8"),
        (Cameras.from_lists, (4, [60, 120, 180, 240], range(8)), "5 azimuths"),
        (Cameras.from_json, ({"elevations_deg": [0, 0]},), "azimuths_deg"),
        (Cameras, ((0, 0), (5, 60)), r"must be elevation 0, azimuth 0.*got \(0, 5\)"),
        (Cameras, ((0,), (0,)), "at least one novel view"),
        (Cameras, ((0, 95), (0, 60)), "-90 and 90"),
        (Cameras, ((0, 50), (0, 60), 2.0, 33.8, 45), "-90 and 90"),
        (Cameras, ((0, math.nan), (0, 60)), "finite"),
        (Cameras, ((0, 0), (0, 60), 0), "radius"),
        (Cameras.official, ("sv3d",), "sv4d2_8views.*'sv3d'"),
    ],
)
def test_errors(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments)


def test_quaternions_turn_vectors_as_the_matrices_do():
    cameras = Cameras((0, 10, -80, 35, 0), (0, 60, 130, 275, 180), input_elevation_deg=-5)
    quaternions = cameras.quaternions_xyzw()
    turned = torch.from_numpy(Rotation.from_quat(quaternions.numpy()).as_matrix())
    torch.testing.assert_close(quaternions.norm(dim=-1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(turned, cameras.c2w_opengl()[:, :3, :3])
