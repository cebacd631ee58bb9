"""Our cameras and those of ComfyUI's own 3D nodes: one projection, both ways, and pictures as views."""

from __future__ import annotations

import importlib

import pytest
import torch
import trimesh
from sv4d2_host_media import still_gaussians

SIZE = 128
ANGLES = ((0, 10, -20, 35), (0, 60, 130, 275))
FROM_HOST = dict(input_view=["first camera"], input_elevation_deg=[0.0], fov_deg=[33.8])
# Positions of points and marks, world units; the object is about 1 large.
MARKS = torch.tensor([[0.3, 0.2, -0.1], [-0.35, 0.1, 0.2], [0.0, -0.4, 0.3]], dtype=torch.float64)


def of_the_host(name):
    """Return a fixture with one of ComfyUI's own modules of 3D nodes; versions without it skip the test."""

    def module(host):
        try:
            return importlib.import_module(f"comfy_extras.{name}")
        except ModuleNotFoundError as error:
            pytest.skip(f"this ComfyUI has no {error.name}")

    return pytest.fixture(module, scope="module")


splat_nodes = of_the_host("nodes_gaussian_splat")
mesh_nodes = of_the_host("nodes_mesh_postprocess")


@pytest.fixture(scope="module")
def cameras(core):
    return core("cameras").Cameras(*ANGLES, radius=2.3, fov_deg=40.0, input_elevation_deg=15.0)


@pytest.fixture(scope="module")
def infos(pack, cameras):
    """Return the cameras as camera_info, one per view."""
    return pack["SV4D2CamerasToCameraInfo"].execute(cameras, 1).args[1]


def to_cameras(pack, *infos, **changes):
    node = pack["SV4D2CameraInfoToCameras"]
    return node.execute(camera_info=list(infos), **{**FROM_HOST, **changes}).args[0]


def pixels(cameras, points, size):
    """Return where our cameras project points [N, 3], [V + 1, N, 2] pixels."""
    ones = torch.ones_like(points[:, :1])
    in_camera = torch.einsum("vij,nj->vni", cameras.w2c_opencv(), torch.cat([points, ones], dim=-1))[..., :3]
    projected = in_camera @ cameras.intrinsics(1).T * size
    return projected[..., :2] / in_camera[..., 2:]


def centre_of(mask):
    """Return the mean position of a mask [H, W] in pixels; pixel j covers j to j + 1."""
    at = torch.arange(len(mask), dtype=torch.float64) + 0.5
    weights = mask.double() / mask.double().sum()
    return torch.stack([(weights.sum(0) * at).sum(), (weights.sum(1) * at).sum()])


def equal_cameras(actual, expected, tolerance_deg=1e-4):
    pairs = zip(actual.azimuths_deg, expected.azimuths_deg, strict=True)
    assert max(abs((a - e + 180) % 360 - 180) for a, e in pairs) < tolerance_deg
    for field in ("elevations_deg", "radius", "fov_deg", "input_elevation_deg"):
        assert getattr(actual, field) == pytest.approx(getattr(expected, field), abs=tolerance_deg), field


class TestProjection:
    @pytest.mark.parametrize("view", [0, 2, 3])
    def test_a_rendered_mesh_is_where_our_cameras_project_it(self, mesh_nodes, cameras, infos, view):
        from comfy_api.latest import Types

        ends = torch.cat([torch.eye(3), -torch.eye(3)]) * 0.04
        faces = torch.tensor([[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2]])
        faces = torch.cat([faces, torch.tensor([[1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]])])
        for mark, expected in zip(MARKS, pixels(cameras, MARKS, SIZE)[view], strict=True):
            mesh = Types.MESH((mark.float() + ends)[None], faces[None])
            image, mask = mesh_nodes.RenderMesh.execute(
                mesh, "solid", SIZE, SIZE, "#FFFFFF", camera_info=infos[view]
            ).args
            assert (centre_of(mask[0]) - expected).abs().max() < 0.4
            assert (image[0][mask[0] == 0] == 1).all()


def render_splat(splat_nodes, splat, info):
    """Return the host's pictures and masks of a splat on white."""
    options = dict(width=SIZE, height=SIZE, frames=1, splat_scale=1.0, sharpen=1.0, headlight_shading=0.0)
    options |= dict(opacity_threshold=0.0, background="#FFFFFF", render_style="color")
    return splat_nodes.RenderSplat.execute(splat, **options, camera_info=info).args


class TestCamerasToCameraInfo:
    def test_all_cameras_are_there_and_one_is_picked(self, pack, cameras, infos):
        assert len(infos) == 4
        for view in range(4):
            assert pack["SV4D2CamerasToCameraInfo"].execute(cameras, view).args[0] == infos[view]
        assert pack["SV4D2CamerasToCameraInfo"].GET_NODE_INFO_V1()["output_is_list"] == [False, True, False]

    def test_camera_lists_need_a_host_that_has_them(self, pack, host, cameras, infos, monkeypatch):
        from comfy_execution.graph_utils import ExecutionBlocker

        def camera_list():
            return pack["SV4D2CamerasToCameraInfo"].execute(cameras, 1).args[2]

        monkeypatch.delitem(host.NODE_CLASS_MAPPINGS, "BatchCameras", raising=False)
        blocked = camera_list()
        assert isinstance(blocked, ExecutionBlocker) and "Connect all_cameras instead" in blocked.message
        monkeypatch.setitem(host.NODE_CLASS_MAPPINGS, "BatchCameras", object)
        assert camera_list() == infos


class TestCameraInfoToCameras:
    def test_ours_come_back_one_by_one_and_as_a_camera_list(self, pack, cameras, infos):
        for given in (infos, [infos], [infos[:2], infos[2:]], [infos[0], tuple(infos[1:])]):
            equal_cameras(to_cameras(pack, *given), cameras, 1e-7)

    def test_cameras_that_the_host_creates(self, pack, cameras, splat_nodes):
        create = getattr(splat_nodes, "CreateCameraInfo", None)
        create = create or importlib.import_module("comfy_extras.nodes_camera").CreateCameraInfo
        made = []
        for elevation, azimuth in zip(*ANGLES, strict=True):
            orbit = {"mode": "orbit", "yaw": azimuth + 20.0, "pitch": elevation + 15.0, "distance": 2.3}
            made.append(create.execute(orbit, 0.5, -1.0, 2.0, 0.0, 40.0).args[0])
        equal_cameras(to_cameras(pack, *made), cameras)
        at = {f"position_{axis}": made[2]["position"][axis] for axis in "xyz"}
        made[2] = create.execute({"mode": "look_at", **at}, 0.5, -1.0, 2.0, 0.0, 40.0).args[0]
        equal_cameras(to_cameras(pack, *made), cameras)
        made[2] = create.execute({"mode": "look_at", **at}, 0.5, -1.0, 2.0, 7.0, 40.0).args[0]
        with pytest.raises(ValueError, match=r"camera 3 of 4 is rolled by 7\.00 degrees"):
            to_cameras(pack, *made)

    def test_older_hosts_state_no_field_of_view_and_no_rotation(self, pack, cameras, infos):
        kept = ("position", "target", "zoom", "cameraType")
        older = [{key: info[key] for key in kept} for info in infos]
        equal_cameras(to_cameras(pack, *older, fov_deg=[40.0]), cameras, 1e-7)

    def test_one_camera_is_a_novel_view_seen_from_the_front(self, pack, infos):
        made = to_cameras(pack, infos[3], input_view=["front"], input_elevation_deg=[15.0])
        assert made.azimuths_deg == pytest.approx((0, 275)) and made.elevations_deg == pytest.approx((0, 35))
        assert (made.input_elevation_deg, made.n_views) == (15, 1)

    def test_a_viewer_that_scales_its_model(self, pack, cameras, infos):
        def seen(point):
            return {axis: 5 * point[axis] + (2.5 if axis == "y" else 0) for axis in "xyz"}

        placed = [{**info, **{key: seen(info[key]) for key in ("position", "target")}} for info in infos]
        model = {"position": {"x": 0, "y": 2.5, "z": 0}, "quaternion": {"x": 0, "y": 0, "z": 0, "w": 1}}
        model["scale"] = {"x": 5, "y": 5, "z": 5}
        equal_cameras(to_cameras(pack, *placed, model_3d_info=[[model]]), cameras, 1e-7)
        # A viewer without a model gives an empty list.
        assert to_cameras(pack, *placed, model_3d_info=[[]]).radius == pytest.approx(5 * 2.3)

    def test_what_is_no_camera(self, pack, infos):
        flat = {**infos[2], "cameraType": "orthographic"}
        for given, message in (
            ([], "at least one camera; got none"),
            ([None], "at least one camera; got none"),
            (["front"], "camera_info with position and target"),
            ([{"position": {"x": 0, "y": 0, "z": 1}}], "camera_info with position and target"),
            ([*infos[:2], flat], "perspective cameras; got an orthographic one"),
        ):
            with pytest.raises(ValueError, match=message):
                to_cameras(pack, *given)


@pytest.fixture(scope="module")
def scene(core, cameras):
    """Return a still scene of coloured Gaussians, seen from our cameras."""
    draw = torch.Generator().manual_seed(0)
    means = torch.rand(60, 3, generator=draw) - 0.5
    return still_gaussians(core, means, torch.rand(60, 3, generator=draw), 0.03, cameras, 4.0)


def render(pack, scene, cameras, size=SIZE):
    """Return the views that our own node renders."""
    with torch.inference_mode():
        return pack["SV4D2Render4D"].execute(scene, "views", 2, size, 1.0, cameras).args[4]


def as_views(pack, images, cameras, fps, masks=None):
    """Return the host's renders, one batch per camera, as our views."""
    order = ["view by view"]
    given = dict(images=list(images), cameras=[cameras], order=order, fps=[fps], masks=masks and list(masks))
    return pack["SV4D2RendersToViews"].execute(**given).args[0]


class TestRenders:
    def test_the_hosts_pictures_of_a_scene_over_time_are_ours(self, pack, splat_nodes, scene, cameras, infos):
        ours = render(pack, scene, cameras)
        with torch.inference_mode():
            (splat,) = pack["SV4D2SceneToSplat"].execute(scene, 2).args
        pictures, masks = zip(*(render_splat(splat_nodes, splat, info) for info in infos), strict=True)
        assert pictures[0].shape == (2, SIZE, SIZE, 3), "the frames of one camera"
        theirs = as_views(pack, pictures, to_cameras(pack, infos), 4.0, masks)
        assert theirs.images.shape == ours.images.shape and theirs.fps == 4
        for view in range(4):
            error = (theirs.images[:, view] - ours.images[:, view]).square().mean()
            others = (theirs.images[:, view] - ours.images.roll(1, dims=1)[:, view]).square().mean()
            assert -10 * error.log10() > 25 and -10 * others.log10() < 19, view
            assert (theirs.masks[:, view] - ours.masks[:, view]).abs().mean() < 0.03

    def test_a_mesh_becomes_views(self, pack, mesh_nodes, cameras, infos):
        from comfy_api.latest import Types

        body, head = trimesh.creation.box((0.6, 0.3, 0.2)), trimesh.creation.box((0.2, 0.2, 0.2))
        head.apply_translation((0.3, 0.3, 0.0))
        model = trimesh.util.concatenate([body, head])
        vertices = torch.tensor(model.vertices)
        mesh = Types.MESH(vertices.float()[None], torch.tensor(model.faces).long()[None])
        seen = [
            mesh_nodes.RenderMesh.execute(mesh, "solid", SIZE, SIZE, "#FFFFFF", camera_info=info).args
            for info in infos
        ]
        views = as_views(pack, [image for image, _ in seen], cameras, 8.0, [mask for _, mask in seen])
        assert views.images.shape == (1, 4, SIZE, SIZE, 3)
        # The corners of the model bound what each camera shows.
        for mask, corners in zip(views.masks[0], pixels(cameras, vertices, SIZE), strict=True):
            rows, columns = torch.where(mask > 0)
            box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            expected = torch.cat([corners.amin(dim=0), corners.amax(dim=0)])
            assert (box - expected).abs().max() < 1.5

    def test_our_scenes_are_seen_from_a_camera_of_the_host(self, pack, scene, cameras, infos):
        ours = render(pack, scene, cameras, 48)
        made = to_cameras(pack, infos[2], input_view=["front"], input_elevation_deg=[15.0])
        seen = render(pack, scene, made, 48)
        torch.testing.assert_close(seen.images[:, 0], ours.images[:, 0], atol=1e-4, rtol=0)
        torch.testing.assert_close(seen.images[:, 1], ours.images[:, 2], atol=1e-4, rtol=0)

    def test_batches_of_different_sizes(self, pack, cameras):
        batches = [torch.ones(1, 8, 8, 3), torch.ones(1, 8, 12, 3)]
        with pytest.raises(ValueError, match=r"images of one size from all cameras; got \[\(8, 8, 3\), "):
            as_views(pack, batches, cameras, 8.0)
