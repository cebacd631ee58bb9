"""Our cameras and those of ComfyUI's own 3D nodes: one projection, both ways, and pictures as views."""

import importlib
import json

import pytest
import torch
from sv4d2_host_media import SPLAT_LOOK, still_gaussians
from sv4d2_recorded_schemas import defaults

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

    @pytest.mark.parametrize("view", [0, 2, 3])
    def test_a_rendered_splat_is_where_our_cameras_project_it(self, splat_nodes, cameras, infos, view):
        for mark, expected in zip(MARKS, pixels(cameras, MARKS, SIZE)[view], strict=True):
            _, masks = render_splat(splat_nodes, splat_of(mark[None, None], 0.03), infos[view])
            error = centre_of(masks[0]) - expected
            # Some versions take a pixel's corner for its centre.
            assert min(error.abs().max(), (error - 0.5).abs().max()) < 0.1


def splat_of(points, scale):
    """Return grey round Gaussians at points [T, N, 3] of our world, as a batch of the host's."""
    from comfy_api.latest import Types

    means = points.float() * torch.tensor([1.0, -1.0, -1.0])
    shape = means.shape[:2]
    turns = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(*shape, 4)
    return Types.SPLAT(
        means, torch.full_like(means, scale), turns, torch.full((*shape, 1), 0.99), torch.zeros(*shape, 1, 3)
    )


def render_splat(splat_nodes, splat, info, size=SIZE):
    """Return the host's pictures and masks of a splat on white."""
    picture = dict(width=size, height=size, frames=1, camera_info=info)
    return splat_nodes.RenderSplat.execute(splat, **SPLAT_LOOK, **picture).args


class TestCamerasToCameraInfo:
    def test_all_cameras_are_there_and_one_is_picked(self, pack, cameras, infos):
        node = pack["SV4D2CamerasToCameraInfo"]
        positions = torch.tensor([[info["position"][axis] for axis in "xyz"] for info in infos])
        torch.testing.assert_close(positions, cameras.c2w_opengl()[:, :3, 3].float())
        assert json.loads(json.dumps(infos)) == infos
        for view, info in enumerate(infos):
            assert node.execute(cameras, view).args[0] == info
            assert info["target"] == {"x": 0, "y": 0, "z": 0}
            assert (info["fov"], info["zoom"], info["cameraType"]) == (40, 1, "perspective")
        assert infos[0]["quaternion"].keys() == {*"xyzw"}
        assert node.GET_NODE_INFO_V1()["output_is_list"] == [False, True, False]
        with pytest.raises(ValueError, match=r"from 0 \(the input\) to 3; got 4"):
            node.execute(cameras, 4)

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

    def test_cameras_that_the_host_creates(self, pack, core, splat_nodes):
        create = getattr(splat_nodes, "CreateCameraInfo", None)
        create = create or importlib.import_module("comfy_extras.nodes_camera").CreateCameraInfo
        expected = core("cameras").Cameras(*ANGLES, radius=2.3, fov_deg=40.0, input_elevation_deg=15.0)
        made = []
        for elevation, azimuth in zip(*ANGLES, strict=True):
            orbit = {"mode": "orbit", "yaw": azimuth + 20.0, "pitch": elevation + 15.0, "distance": 2.3}
            made.append(create.execute(orbit, 0.5, -1.0, 2.0, 0.0, 40.0).args[0])
        equal_cameras(to_cameras(pack, *made), expected)
        at = {f"position_{axis}": made[2]["position"][axis] for axis in "xyz"}
        made[2] = create.execute({"mode": "look_at", **at}, 0.5, -1.0, 2.0, 0.0, 40.0).args[0]
        equal_cameras(to_cameras(pack, *made), expected)
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

        placed = [
            {**info, "position": seen(info["position"]), "target": seen(info["target"])} for info in infos
        ]
        model = {
            "position": {"x": 0, "y": 2.5, "z": 0},
            "quaternion": {"x": 0, "y": 0, "z": 0, "w": 1},
            "scale": {"x": 5, "y": 5, "z": 5},
        }
        equal_cameras(to_cameras(pack, *placed, model_3d_info=[[model]]), cameras, 1e-7)
        # A viewer without a model gives an empty list.
        assert to_cameras(pack, *placed, model_3d_info=[[]]).radius == pytest.approx(5 * 2.3)

    def test_what_is_no_camera(self, pack, infos):
        no_target, flat = {"position": {"x": 0, "y": 0, "z": 1}}, {**infos[2], "cameraType": "orthographic"}
        for given, message in (
            ([], "at least one camera; got none"),
            ([None], "at least one camera; got none"),
            (["front"], "camera_info with position and target"),
            ([no_target], "camera_info with position and target"),
            ([{**infos[0], "position": [0, 0, 2]}], "Expected numbers x, y, z .*; got .0, 0, 2."),
            ([{**infos[0], "target": None}], "Expected numbers x, y, z .*; got None"),
            ([{**infos[0], "fov": "wide"}], "Expected numbers fov, zoom .*; got .*wide"),
            ([*infos[:2], flat], "perspective cameras; got an orthographic one"),
        ):
            with pytest.raises(ValueError, match=message):
                to_cameras(pack, *given)
        with pytest.raises(ValueError, match="Expected numbers x, y, z, w .*; got None"):
            to_cameras(pack, *infos, model_3d_info=[[{"position": {"x": 0, "y": 0, "z": 0}}]])


@pytest.fixture(scope="module")
def scene(core, cameras):
    """Return a still scene of coloured Gaussians, seen from our cameras."""
    draw = torch.Generator().manual_seed(0)
    means, colours = torch.rand(60, 3, generator=draw) - 0.5, torch.rand(60, 3, generator=draw)
    return still_gaussians(core, means, 0.03, colours, cameras, 4.0)


def render(pack, scene, cameras, size=SIZE):
    """Return the views that our own node renders."""
    with torch.inference_mode():
        return pack["SV4D2Render4D"].execute(scene, "views", 2, size, 1.0, cameras).args[4]


def to_views(pack, cameras, images, **more):
    """Return the views of renders, a batch per camera."""
    lists = dict(cameras=[cameras], order=["view by view"], fps=[4.0], **more)
    return pack["SV4D2RendersToViews"].execute(images=images, **lists).args[0]


class TestRenders:
    def test_the_hosts_pictures_of_a_scene_over_time_are_ours(self, pack, splat_nodes, scene, cameras, infos):
        ours = render(pack, scene, cameras)
        with torch.inference_mode():
            (splat,) = pack["SV4D2SceneToSplat"].execute(scene, 2).args
        pictures, masks = zip(*(render_splat(splat_nodes, splat, info) for info in infos), strict=True)
        assert pictures[0].shape == (2, SIZE, SIZE, 3), "the frames of one camera"
        theirs = to_views(pack, to_cameras(pack, infos), list(pictures), masks=list(masks))
        assert theirs.images.shape == ours.images.shape and theirs.fps == 4
        for view in range(4):
            error = (theirs.images[:, view] - ours.images[:, view]).square().mean()
            others = (theirs.images[:, view] - ours.images.roll(1, dims=1)[:, view]).square().mean()
            assert -10 * error.log10() > 25 and -10 * others.log10() < 19, view
            assert (theirs.masks[:, view] - ours.masks[:, view]).abs().mean() < 0.03

    def test_batches_of_different_sizes(self, pack, cameras):
        batches = [torch.ones(1, 8, 8, 3), torch.ones(1, 8, 12, 3)]
        with pytest.raises(ValueError, match=r"images of one size from all cameras; got \[\(8, 8, 3\), "):
            to_views(pack, cameras, batches)


ORBIT = defaults("SV4D2CameraOrbit", preset="custom", elevations_deg="10 -20", azimuths_deg="60 200")
ORBIT |= dict(input_elevation_deg=15.0, radius=2.3, fov_deg=40.0)
REFINE = defaults("SV4D2Refine4D", steps=12, stages="1", trust=False, elevation="given")
MESH = dict(frames=0, faces=200, resolution=16, one_topology=True)


def graph_of(kind):
    """Return: a scene as mesh or splat -> rendered from all cameras of an orbit -> views -> a folder."""
    refine = {"views": ["1", 0], **REFINE, "backend": "dynerf" if kind == "Mesh" else "gaussians"}
    picture = {"width": 64, "height": 64, "camera_info": ["5", 1]}
    options = {"mode": "auto", "background": "#FFFFFF"} if kind == "Mesh" else {**SPLAT_LOOK, "frames": 1}
    scene = {"scene": ["2", 0], **(MESH if kind == "Mesh" else {"frames": 0})}
    renders = dict(images=["6", 0], masks=["6", 1], cameras=["4", 0], order="view by view", fps=8.0)
    save = {"views": ["7", 0], "filename_prefix": f"renders/{kind}", "save_latents": False}
    return {
        "1": {"class_type": "SV4D2LoadViews", "inputs": {"folder": "creature"}},
        "2": {"class_type": "SV4D2Refine4D", "inputs": refine},
        "3": {"class_type": f"SV4D2SceneTo{kind}", "inputs": scene},
        "4": {"class_type": "SV4D2CameraOrbit", "inputs": ORBIT},
        "5": {"class_type": "SV4D2CamerasToCameraInfo", "inputs": {"cameras": ["4", 0], "view": 0}},
        "6": {"class_type": f"Render{kind}", "inputs": {kind.lower(): ["3", 0], **picture, **options}},
        "7": {"class_type": "SV4D2RendersToViews", "inputs": renders},
        "8": {"class_type": "SV4D2SaveViews", "inputs": save},
    }


class TestGraphs:
    @pytest.mark.parametrize(("kind", "frames"), [("Mesh", 1), ("Splat", 3)])
    def test_an_asset_becomes_views_of_our_cameras(self, server, need, core, kind, frames):
        need(f"Render{kind}")
        outcome = server.prompt(graph_of(kind), timeout=120)
        assert outcome.status == "success", outcome.message
        (folder,) = (server.base / "output/renders").glob(f"{kind}*")
        views = core("data.reader").read_any_views(folder)
        assert views.images.shape == (frames, 3, 64, 64, 3) and views.masks is not None
        equal_cameras(views.cameras, core("cameras").Cameras((0, 10, -20), (0, 60, 200), 2.3, 40.0, 15.0))
        # The object is in every picture, whole, and stands on white.
        shown = views.masks > 0.5
        assert (shown.flatten(2).float().mean(-1) > 0.01).all()
        assert views.images[views.masks == 0].min() > 0.97

    def test_cameras_of_the_host_render_our_scene(self, server, need):
        need("CreateCameraInfo")
        graph = graph_of("Mesh")
        look = {"mode": "orbit", "mode.yaw": 75.0, "mode.pitch": 20.0, "mode.distance": 2.3}
        look |= {"target_x": 0.0, "target_y": 0.0, "target_z": 0.0, "roll": 0.0, "fov": 40.0, "zoom": 1.0}
        back = {"camera_info": ["3", 0], "input_view": "front", "input_elevation_deg": 0.0, "fov_deg": 33.8}
        pictures = {"scene": ["2", 0], "cameras": ["4", 0], "mode": "views", "frames": 1, "size": 32}
        graph = {
            **{number: graph[number] for number in "12"},
            "3": {"class_type": "CreateCameraInfo", "inputs": {**look, "camera_type": "perspective"}},
            "4": {"class_type": "SV4D2CameraInfoToCameras", "inputs": back},
            "5": {"class_type": "SV4D2Render4D", "inputs": {**pictures, "turns": 1.0}},
            "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
        }
        outcome = server.prompt(graph, timeout=120)
        assert outcome.status == "success", outcome.message
        assert len(outcome.outputs["6"]["images"]) == 2
