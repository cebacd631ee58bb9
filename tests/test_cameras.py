"""Camera geometry against formulas written out again, presets, lists and errors."""

from __future__ import annotations

import math

import pytest
import torch

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
    for point, expected in (
        ((0.1, 0.2, 0), (32 + focal * 0.1 / 2, 32 - focal * 0.2 / 2)),
        ((0, 0, 0), (32, 32)),
    ):
        in_camera = cameras.w2c_opencv()[0] @ torch.tensor([*point, 1.0], dtype=torch.float64)
        pixel = cameras.intrinsics(size) @ in_camera[:3]
        assert (pixel[0] / pixel[2]).item() == pytest.approx(expected[0])
        assert (pixel[1] / pixel[2]).item() == pytest.approx(expected[1])
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


def test_network_angles_are_relative():
    polar, azimuth = Cameras((0, 10, -10), (0, 350, 20)).network_angles_rad()
    torch.testing.assert_close(torch.rad2deg(polar), torch.tensor([80.0, 100.0], dtype=torch.float64))
    torch.testing.assert_close(torch.rad2deg(azimuth), torch.tensor([350.0, 20.0], dtype=torch.float64))


def test_json_round_trip():
    assert Cameras.from_json(ORBIT.to_json()) == ORBIT
    with pytest.raises(ValueError, match="azimuths_deg"):
        Cameras.from_json({"elevations_deg": [0, 0]})


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


def test_lists_may_leave_out_the_input_view():
    assert Cameras.from_lists(4, [60, 120, 180, 240]) == Cameras.official("sv4d2")
    assert Cameras.from_lists(4, [0, 60, 120, 180, 240]) == Cameras.official("sv4d2")
    assert Cameras.from_lists(4) == Cameras.official("sv4d2")
    assert Cameras.from_lists(4, range(10, 90, 10)).n_views == 8
    assert Cameras.from_lists(4, None, [0, 1, 2, 3, 4]).elevations_deg == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    "make,message",
    [
        (
            lambda: Cameras.from_lists(4, None, [10]),
            "one value for all views.*in ComfyUI with the preset ring, .* with --ring-elevation",
        ),
        (lambda: Cameras.from_lists(4, [1, 2, 3]), "Expected 4 azimuths.*got 3.*fits is 4"),
        (lambda: Cameras.from_lists(4, range(1, 8)), "got 7.*fits is 8"),
        (lambda: Cameras.from_lists(4, [60, 120, 180, 240], range(8)), "5 azimuths"),
        (lambda: Cameras((0, 0), (5, 60)), r"must be elevation 0, azimuth 0.*got \(0, 5\)"),
        (lambda: Cameras((0,), (0,)), "at least one novel view"),
        (lambda: Cameras((0, 95), (0, 60)), "-90 and 90"),
        (lambda: Cameras((0, 50), (0, 60), input_elevation_deg=45), "-90 and 90"),
        (lambda: Cameras((0, math.nan), (0, 60)), "finite"),
        (lambda: Cameras((0, 0), (0, 60), radius=0), "radius"),
        (lambda: Cameras.official("sv3d"), "sv4d2_8views.*'sv3d'"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_quaternions_turn_vectors_as_the_matrices_do():
    cameras = Cameras((0, 10, -80, 35, 0), (0, 60, 130, 275, 180), input_elevation_deg=-5)
    quaternions, matrices = cameras.quaternions_xyzw(), cameras.c2w_opengl()[:, :3, :3]
    torch.testing.assert_close(quaternions.norm(dim=-1), torch.ones(5, dtype=torch.float64))
    for q, matrix in zip(quaternions, matrices, strict=True):
        for vector in torch.eye(3, dtype=torch.float64):
            twice = 2 * torch.linalg.cross(q[:3], vector)
            turned = vector + q[3] * twice + torch.linalg.cross(q[:3], twice)
            torch.testing.assert_close(turned, matrix @ vector)
