"""The nodes that write a scene as files, and give it to the host's own mesh and splat nodes."""

import json
from collections import namedtuple
from dataclasses import make_dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from sv4d2_host_media import moving_block, still_gaussians
from sv4d2_recorded_schemas import defaults

T, FPS = 3, 4.0
COLOUR = (0.8, 0.4, 0.2)
EXPORT = defaults("SV4D2Export4D", filename_prefix="4d/thing", faces=400, resolution=20, size=16)
MESH = dict(frames=0, faces=400, resolution=20, one_topology=True)


@pytest.fixture(scope="module")
def block(core):
    """Return a scene of one block that moves along x by a cell per frame."""
    return moving_block(core, COLOUR, FPS)


@pytest.fixture(scope="module")
def ball(core):
    """Return a scene of Gaussians, a still ball."""
    points = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    means = 0.25 * torch.nn.functional.normalize(points, dim=-1)
    colours = torch.tensor([COLOUR]).expand(80, 3)
    return still_gaussians(core, means, 0.04, colours, core("cameras").Cameras((0, 0), (0, 100)), FPS)


@pytest.fixture
def export(pack, host_dirs):
    """Return a function that exports as the host does: ``export(scene, format="obj")``."""

    def run(scene, **changes):
        with torch.inference_mode():
            return pack["SV4D2Export4D"].execute(scene, **{**EXPORT, **changes})

    return run


@pytest.fixture
def shown(host_dirs):
    """Return a function that says which files below the output folder a result shows, by kind."""

    def files(result):
        found = {}
        for kind, entries in result.ui.items():
            saved = [one for one in entries if isinstance(one, dict) and one["type"] == "output"]
            if saved:
                found[kind] = [host_dirs.output / one["subfolder"] / one["filename"] for one in saved]
        assert all(file.stat().st_size > 0 for files in found.values() for file in files)
        video = any(file.suffix in (".mp4", ".webm") for file in found.get("images", []))
        assert ("animated" in result.ui) == video
        return found

    return files


def check_handed_on(result, model, splats):
    """Check the outputs that only newer hosts have: the file of a mesh, and that of splats, or a sentence."""
    from comfy_api.latest import io
    from comfy_execution.graph_utils import ExecutionBlocker

    wanted = [("File3DAny", "model_3d", model), ("File3DSplatAny", "splat_3d", splats)]
    wanted = [one for one in wanted if hasattr(io, one[0])]
    for value, (_, name, file) in zip(result.args[2:], wanted, strict=True):
        if file is None:
            assert isinstance(value, ExecutionBlocker)
            assert f"{name} of SV4D2 Export" in value.message and "only; got" in value.message
        else:
            assert value.get_source() == str(file) and value.format == file.suffix[1:]


class TestExport4D:
    def test_each_export_is_a_new_animated_file(self, export, block, host_dirs, shown):
        first, second = export(block), export(block)
        check_handed_on(second, host_dirs.output / second[0], None)
        assert shown(second) == {"3d": [host_dirs.output / second[0]]}
        assert (first[0], second[0]) == ("4d/thing_00001.glb", "4d/thing_00002.glb")
        loaded = trimesh.load(host_dirs.output / first[0], force="mesh")
        assert loaded.bounds[1, 0] == pytest.approx(0.15, abs=0.05)
        assert "follows the frames' own meshes" in first[1] and "Acceleration: " in first[1]
        assert first[1].splitlines() == first.ui["text"]

    def test_a_glb_that_becomes_a_sequence_replaces_nothing(
        self, core, export, block, host_dirs, monkeypatch
    ):
        earlier = host_dirs.output / export(block, format="obj")[0]
        before = {file.name: file.read_bytes() for file in earlier.iterdir()}
        monkeypatch.setattr(core("scene.tracking.track").Tracked, "follows", property(lambda self: False))
        made = host_dirs.output / export(block)[0]
        assert made != earlier and len([*made.glob("mesh_*.glb")]) == T
        assert {file.name: file.read_bytes() for file in earlier.iterdir()} == before
        assert sorted(made.parent.iterdir()) == sorted([earlier, made])

    @pytest.mark.parametrize(
        ("kind", "list_name", "names"),
        [
            ("ply", "3d", [f"/mesh_{t:05d}.ply" for t in range(2)]),
            ("obj", "3d", [f"/mesh_{t:05d}.obj" for t in range(2)]),
            ("dataset", "images", ["/view_00.mp4", "/view_01.mp4"]),
            ("colmap", "images", [f"/frame_00000/images/view_0{view}.png" for view in range(2)]),
            ("turntable-mp4", "images", [".mp4"]),
            ("turntable-webm", "images", [".webm"]),
            ("turntable-gif", "images", [".gif"]),
            ("splat-ply", "3d", [f"/splat_{t:05d}.ply" for t in range(2)]),
            ("splat", "3d", [f"/splat_{t:05d}.splat" for t in range(2)]),
            ("splat-glb", "3d", [f"/splat_{t:05d}.glb" for t in range(2)]),
            ("npz", "files", [".npz"]),
        ],
    )
    def test_the_page_shows_the_files(self, export, block, ball, host_dirs, shown, kind, list_name, names):
        splats = kind.startswith("splat")
        result = export(ball if splats or kind == "npz" else block, format=kind, frames=2, fps=5.0)
        files = [host_dirs.output / f"4d/thing_00001{name}" for name in names]
        assert result[0] == "4d/thing_00001" + ("" if "/" in names[0] else names[0])
        assert shown(result) == {list_name: files}
        # Readers of splats know no GLB; as glTF it shows points everywhere.
        mesh = kind in ("ply", "obj", "splat-glb")
        check_handed_on(result, files[0] if mesh else None, files[0] if splats and not mesh else None)
        if splats:
            assert json.loads((host_dirs.output / result[0] / "sequence.json").read_text())["fps"] == 5

    def test_a_file_without_a_folder(self, export, ball):
        result = export(ball, format="npz", filename_prefix="motion", frames=2)
        assert result[0] == "motion_00001.npz" and result.ui["files"][0]["subfolder"] == ""

    def test_smoothing_rounds_the_corners(self, export, block, host_dirs):
        shares = []
        for more in ({"smoothing": 0}, {}, {"smoothing": 40}):
            folder = host_dirs.output / export(block, format="ply", frames=1, **more)[0]
            mesh = trimesh.load(folder / "mesh_00000.ply", force="mesh")
            shares.append(mesh.volume / mesh.bounding_box.volume)
        assert shares[2] < shares[1] - 0.005 < shares[0] - 0.01

    def test_a_cancelled_export_leaves_nothing(self, export, block, host_dirs, monkeypatch):
        import comfy.model_management
        import comfy.utils

        def cancel(*_args, **_more):
            comfy.model_management.interrupt_current_processing()

        monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel)
        for kind in ("glb", "obj", "turntable-gif"):
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                export(block, format=kind)
        assert not [path for path in host_dirs.output.rglob("*") if path.name != "4d"]


def saved_by_the_host(mesh, host_dirs):
    """Return the files that the host's own SaveGLB makes of a batch."""
    from comfy_api.latest import io

    try:
        from comfy_extras.nodes_save_3d import SaveGLB
    except ImportError:
        from comfy_extras.nodes_hunyuan3d import SaveGLB
    if issubclass(SaveGLB, io.ComfyNode):
        saved = SaveGLB.PREPARE_CLASS_CLONE({}).execute(mesh, "mesh/saved").ui["3d"]
    else:
        saved = SaveGLB().save(mesh, "mesh/saved")["ui"]["3d"]
    return [host_dirs.output / one["subfolder"] / one["filename"] for one in saved]


def glb_attribute(file, name):
    """Return three float32 numbers per vertex, [N, 3], of a GLB's only mesh."""
    data = file.read_bytes()
    length = int.from_bytes(data[12:16], "little")
    document = json.loads(data[20 : 20 + length])
    accessor = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"][name]]
    view = document["bufferViews"][accessor["bufferView"]]
    start = 28 + length + view["byteOffset"]
    values = bytearray(data[start : start + view["byteLength"]])
    return torch.frombuffer(values, dtype=torch.float32).view(-1, 3)


def host_mesh_has(name):
    """Return whether the host's meshes know an attribute, such as normals."""
    import inspect

    from comfy_api import latest

    kind = getattr(getattr(latest, "Types", None), "MESH", None)
    return kind is not None and name in inspect.signature(kind).parameters


class TestSceneToMesh:
    def test_the_host_saves_a_file_per_frame(self, pack, host, block, host_dirs):
        with torch.inference_mode():
            mesh, fps = pack["SV4D2SceneToMesh"].execute(block, **MESH).args
        assert fps == FPS and len(mesh.vertices) == len(mesh.faces) == T
        assert torch.equal(mesh.faces[0], mesh.faces[2])
        moved = (mesh.vertices[2] - mesh.vertices[0]).mean(0)
        torch.testing.assert_close(moved, torch.tensor([0.1, 0, 0]), atol=0.02, rtol=0)
        files = saved_by_the_host(mesh, host_dirs)
        assert len(files) == T
        last = trimesh.load(files[2], force="mesh", process=False)
        assert last.bounds[1, 0] == pytest.approx(0.25, abs=0.05)
        if host_mesh_has("vertex_colors"):
            # The files of both worlds hold the same linear colours.
            colours = glb_attribute(files[2], "COLOR_0")
            torch.testing.assert_close(colours.mean(0), torch.tensor(COLOUR).pow(2.2), atol=0.03, rtol=0)
        if host_mesh_has("normals"):
            outward = (mesh.vertices[2] - mesh.vertices[2].mean(0)) * mesh.normals[2]
            assert (outward.sum(-1) > 0).float().mean() > 0.99
            torch.testing.assert_close(mesh.normals.norm(dim=-1), torch.ones(mesh.vertices.shape[:2]))
            assert torch.equal(glb_attribute(files[2], "NORMAL"), mesh.normals[2])

    @pytest.mark.parametrize("one_topology", [True, False])
    def test_a_baked_texture_replaces_the_colours(self, pack, host, block, host_dirs, one_topology):
        node, size = pack["SV4D2SceneToMesh"], 256
        settings = {**MESH, "frames": 2, "one_topology": one_topology, "texture": size}
        if not host_mesh_has("texture"):
            with torch.inference_mode(), pytest.raises(ValueError, match="256 pixels.*Set texture to 0"):
                node.execute(block, **settings)
            return
        pytest.importorskip("xatlas", reason="xatlas is not installed beside this ComfyUI")
        with torch.inference_mode():
            mesh = node.execute(block, **settings)[0]
        assert mesh.vertex_colors is None and mesh.uvs.shape == (*mesh.vertices.shape[:2], 2)
        assert mesh.texture.shape == (2, size, size, 3) and 0 <= mesh.uvs.min() and mesh.uvs.max() <= 1
        assert torch.equal(mesh.uvs[0], mesh.uvs[1]) == one_topology
        assert (mesh.texture.stride(0) == 0) == one_topology
        torch.testing.assert_close(mesh.texture.mean((0, 1, 2)), torch.tensor(COLOUR), atol=0.02, rtol=0)
        if host_mesh_has("normals"):
            places, index = mesh.vertices[0].unique(dim=0, return_inverse=True)
            first = mesh.normals[0][[(index == i).nonzero()[0, 0] for i in range(len(places))]]
            assert torch.equal(first[index], mesh.normals[0]) and len(places) < len(index)
        files = saved_by_the_host(mesh, host_dirs)
        picture = trimesh.load(files[1], force="mesh").visual.material.baseColorTexture
        assert picture.size == (size, size)
        written = torch.from_numpy(np.array(picture.convert("RGB")))
        assert torch.equal(written, (mesh.texture[1] * 255).round().byte())

    def test_meshes_of_their_own_are_filled_up(self, pack, block):
        with torch.inference_mode():
            mesh, _ = pack["SV4D2SceneToMesh"].execute(block, **{**MESH, "one_topology": False}).args
        assert mesh.vertices.shape[0] == T and int(mesh.faces.max()) < mesh.vertices.shape[1]

    @pytest.mark.parametrize("fields", [(), ("vertex_colors", "vertex_counts", "face_counts", "unlit")])
    def test_each_host_gets_what_its_meshes_hold(self, nodes_of, core, monkeypatch, fields):
        module, kind = nodes_of("export"), core("scene.tracking.mesh").Mesh
        host_mesh = make_dataclass("MESH", ["vertices", "faces", *fields])
        monkeypatch.setattr(module.latest, "Types", SimpleNamespace(MESH=host_mesh), raising=False)
        meshes = [
            kind(torch.rand(n, 3), torch.tensor([[0, 1, 2]] * f), torch.full((n, 3), 0.5))
            for n, f in ((4, 2), (3, 1))
        ]
        given = vars(module.batched(meshes))
        assert given.keys() == {"vertices", "faces", *fields} and given["faces"].shape == (2, 2, 3)
        if fields:
            assert given["vertex_counts"].tolist() == [4, 3] and given["face_counts"].tolist() == [2, 1]
            assert given["vertex_colors"][1, 0, 0] == pytest.approx(0.2140, abs=1e-3) and given["unlit"]
            assert not given["vertex_colors"][1, 3].any()


class TestSceneToSplat:
    def test_a_batch_over_time_in_the_hosts_axes(self, nodes_of, ball, block, monkeypatch):
        module = nodes_of("export")
        splat = namedtuple("splat", "positions scales rotations opacities sh counts")
        monkeypatch.setattr(module.latest, "Types", SimpleNamespace(SPLAT=splat), raising=False)
        with torch.inference_mode():
            (made,) = module.SV4D2SceneToSplat.execute(ball, 2).args
            (moved,) = module.SV4D2SceneToSplat.execute(ball, 5).args
            with pytest.raises(ValueError, match="made of Gaussians"):
                module.SV4D2SceneToSplat.execute(block, 2)
        flipped = ball.canonical.means.detach() * torch.tensor([1.0, -1.0, -1.0])
        torch.testing.assert_close(made.positions[1], flipped)
        assert made.opacities.shape == (2, 80, 1) and made.sh.shape == (2, 80, 1, 3) and made.counts is None
        torch.testing.assert_close(made.opacities, torch.full((2, 80, 1), 0.9))
        # Between frames those of both are carried there.
        assert moved.counts.tolist() == [80, 160, 80, 160, 80] and moved.rotations.shape == (5, 160, 4)
        torch.testing.assert_close(moved.positions[2, :80], flipped)
        assert not moved.opacities[2, 80:].any() and float(moved.opacities[1].min()) > 0.6


class TestExportDataset:
    @pytest.mark.parametrize("kind", ["dataset", "colmap"])
    def test_views_become_a_folder(self, pack, core, host_dirs, shown, kind):
        creature = core("world.body").make_creature(5)
        views = core("world.render").render_views(creature, core("cameras").Cameras.ring(2), 2, 16, 8.0)
        crop = json.dumps({"side": 20.0, "centers": [[8.0, 8.0], [9.0, 8.0]], "size": 16})
        node = pack["SV4D2ExportDataset"]
        made = [node.execute(views, kind, "sets/cat", crop if kind == "dataset" else None) for _ in "12"]
        assert [one[0] for one in made] == ["sets/cat_00001", "sets/cat_00002"]
        folder = host_dirs.output / made[0][0]
        videos = [folder / f"view_0{view}.mp4" for view in range(3)]
        pictures = [folder / f"frame_00000/images/view_0{view}.png" for view in range(3)]
        assert shown(made[0]) == {"images": videos if kind == "dataset" else pictures}
        assert made[0].ui["text"][0].startswith("sets/cat_00001: ")
        if kind == "dataset":
            assert json.loads((folder / "cameras.json").read_text())["crop"]["side"] == 20
            assert (folder / "transforms_test.json").is_file()
        else:
            assert (folder / "frame_00001/sparse/0/cameras.txt").is_file()
