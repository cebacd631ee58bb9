"""The nodes that write a scene as files, and give it to the host's own mesh and splat nodes."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import trimesh

Core = Callable[[str], ModuleType]

T, FPS = 3, 4.0
COLOUR = (0.8, 0.4, 0.2)
EXPORT = dict(
    format="glb",
    filename_prefix="4d/thing",
    frames=0,
    faces=400,
    resolution=20,
    texture=0,
    size=16,
    fps=0.0,
)
MESH = dict(frames=0, faces=400, resolution=20, one_topology=True)


@pytest.fixture(scope="module")
def block(core: Core) -> Any:
    """Return a scene of one block that moves along x by a cell per frame."""
    config = core("fourd.config").RefineConfig(
        features=2, plane_sizes=(4, 8), hidden=8, samples=48, hull_size=16
    )
    cells = torch.zeros(T, 16, 16, 16, dtype=torch.bool)
    for t in range(T):
        cells[t, 4:12, 4:12, 3 + t : 11 + t] = True
    box = torch.tensor([[-0.4] * 3, [0.4] * 3])
    cameras = core("cameras").Cameras((0, 0), (0, 100))
    occupancy = core("fourd.hull").Occupancy(cells, box)
    scene = core("fourd.dynerf").DyNeRF.untrained(occupancy, cameras, FPS, (0.0, 0.5, 1.0), config)
    decoder = scene.field.field.decoder
    with torch.no_grad():
        for parameter in scene.field.parameters():
            parameter.zero_()
        decoder.density.bias.fill_(1 + torch.tensor(200.0 / decoder.density_scale).expm1().log())
        decoder.colour[2].bias.copy_(torch.tensor(COLOUR).logit())
    return scene


@pytest.fixture(scope="module")
def ball(core: Core) -> Any:
    """Return a scene of Gaussians, a still ball."""
    gaussians = core("fourd.gaussians")
    points = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    means = 0.25 * torch.nn.functional.normalize(points, dim=-1)
    canonical = gaussians.CanonicalGaussians(means, 0.04, 0.9, torch.tensor([COLOUR]).expand(80, 3))
    config = core("fourd.gaussians_config").GaussiansConfig(count=80, features=4, plane_sizes=(8,), hidden=8)
    cameras = core("cameras").Cameras((0, 0), (0, 100))
    box = torch.tensor([[-0.4] * 3, [0.4] * 3])
    return gaussians.Gaussians.still(canonical, box, (1e-3, 0.1), cameras, FPS, (0.0, 0.5, 1.0), config)


@pytest.fixture
def export(pack: dict[str, Any], host_dirs: Any) -> Callable[..., Any]:
    """Return a function that exports as the host does: ``export(scene, format="obj")``."""

    def run(scene: Any, **changes: Any) -> Any:
        with torch.inference_mode():
            return pack["SV4D2Export4D"].execute(scene, **{**EXPORT, **changes})

    return run


class TestExport4D:
    def test_inputs_keep_their_order(self, pack: dict[str, Any]) -> None:
        schema = pack["SV4D2Export4D"].GET_SCHEMA()
        assert [one.id for one in schema.inputs] == ["scene", *EXPORT, "cameras", "smoothing"]
        assert [one.io_type for one in schema.outputs] == ["STRING", "STRING"]

    def test_each_export_is_a_new_animated_file(self, export: Any, block: Any, host_dirs: Any) -> None:
        first, second = export(block), export(block)
        assert (first[0], second[0]) == ("4d/thing_00001.glb", "4d/thing_00002.glb")
        loaded = trimesh.load(host_dirs.output / first[0], force="mesh")
        assert loaded.bounds[1, 0] == pytest.approx(0.15, abs=0.05)
        assert "follows the surface" in first[1] and "Acceleration: " in first[1]
        assert first[1].splitlines() == first.ui["text"]

    @pytest.mark.parametrize(
        ("kind", "suffix", "count"),
        [("ply", ".ply", T), ("obj", ".obj", T), ("dataset", ".mp4", 2), ("colmap", ".json", 1)],
    )
    def test_folders(
        self, export: Any, block: Any, host_dirs: Any, kind: str, suffix: str, count: int
    ) -> None:
        folder = host_dirs.output / export(block, format=kind)[0]
        assert folder.name == "thing_00001"
        assert len([file for file in folder.iterdir() if file.suffix == suffix]) == count

    @pytest.mark.parametrize("kind", ["turntable-mp4", "turntable-webm", "turntable-gif"])
    def test_turntables(self, export: Any, block: Any, host_dirs: Any, kind: str) -> None:
        name = export(block, format=kind, frames=4)[0]
        assert name == f"4d/thing_00001.{kind.rpartition('-')[2]}"
        assert (host_dirs.output / name).stat().st_size > 100

    @pytest.mark.parametrize(("kind", "suffix"), [("splat-ply", ".ply"), ("splat-glb", ".glb")])
    def test_gaussians(self, export: Any, ball: Any, host_dirs: Any, kind: str, suffix: str) -> None:
        folder = host_dirs.output / export(ball, format=kind, frames=2, fps=5.0)[0]
        sequence = json.loads((folder / "sequence.json").read_text())
        assert sequence["fps"] == 5 and len([*folder.glob(f"*{suffix}")]) == 2

    def test_smoothing_rounds_the_corners(self, export: Any, block: Any, host_dirs: Any) -> None:
        shares = []
        for more in ({"smoothing": 0}, {}, {"smoothing": 40}):
            folder = host_dirs.output / export(block, format="ply", frames=1, **more)[0]
            mesh = trimesh.load(folder / "mesh_00000.ply", force="mesh")
            shares.append(mesh.volume / mesh.bounding_box.volume)
        assert shares[2] < shares[1] - 0.005 < shares[0] - 0.01

    @pytest.mark.parametrize("kind", ["splat-ply", "splat-glb", "npz"])
    def test_what_cannot_be_written_leaves_nothing(
        self, export: Any, block: Any, host_dirs: Any, kind: str
    ) -> None:
        with pytest.raises(ValueError, match="made of Gaussians"):
            export(block, format=kind)
        assert not [path for path in host_dirs.output.rglob("*") if path.name != "4d"]

    def test_a_cancelled_export_leaves_nothing(
        self, export: Any, block: Any, host_dirs: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import comfy.model_management
        import comfy.utils

        def cancel(*_args: Any, **_more: Any) -> None:
            comfy.model_management.interrupt_current_processing()

        monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel)
        for kind in ("glb", "obj", "turntable-gif"):
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                export(block, format=kind)
        assert not [path for path in host_dirs.output.rglob("*") if path.name != "4d"]

    def test_names_that_leave_the_output_folder_are_refused(
        self, export: Any, block: Any, host_dirs: Any
    ) -> None:
        with pytest.raises(Exception, match="outside the output folder"):
            export(block, filename_prefix="../thing")
        assert not [*host_dirs.output.iterdir()] and not [*host_dirs.output.parent.glob("thing*")]


def save_glb(mesh: Any, prefix: str) -> list[dict[str, str]]:
    """Return the entries of the files that the host's own node writes, wherever and however it has it."""
    try:
        from comfy_extras.nodes_save_3d import SaveGLB
    except ImportError:
        from comfy_extras.nodes_hunyuan3d import SaveGLB
    if hasattr(SaveGLB, "save"):
        return SaveGLB().save(mesh, prefix)["ui"]["3d"]
    return SaveGLB.PREPARE_CLASS_CLONE(None).execute(mesh, prefix).ui["3d"]


class TestSceneToMesh:
    def test_inputs_keep_their_order(self, pack: dict[str, Any]) -> None:
        schema = pack["SV4D2SceneToMesh"].GET_SCHEMA()
        assert [one.id for one in schema.inputs] == ["scene", *MESH, "smoothing"]

    def test_the_host_saves_a_file_per_frame(
        self, pack: dict[str, Any], host: Any, block: Any, host_dirs: Any
    ) -> None:
        with torch.inference_mode():
            mesh, fps = pack["SV4D2SceneToMesh"].execute(block, **MESH).args
        assert fps == FPS and len(mesh.vertices) == len(mesh.faces) == T
        assert torch.equal(mesh.faces[0], mesh.faces[2])
        moved = (mesh.vertices[2] - mesh.vertices[0]).mean(0)
        torch.testing.assert_close(moved, torch.tensor([0.1, 0, 0]), atol=0.02, rtol=0)
        files = [
            host_dirs.output / one["subfolder"] / one["filename"] for one in save_glb(mesh, "mesh/saved")
        ]
        assert len(files) == T
        assert trimesh.load(files[2], force="mesh").bounds[1, 0] == pytest.approx(0.25, abs=0.05)

    def test_meshes_of_their_own_are_filled_up(self, pack: dict[str, Any], block: Any) -> None:
        with torch.inference_mode():
            mesh, _ = pack["SV4D2SceneToMesh"].execute(block, **{**MESH, "one_topology": False}).args
        assert mesh.vertices.shape[0] == T and int(mesh.faces.max()) < mesh.vertices.shape[1]

    @pytest.mark.parametrize("one_topology", [True, False])
    def test_smoothing_rounds_the_corners(self, pack: dict[str, Any], block: Any, one_topology: bool) -> None:
        settings = {**MESH, "frames": 1, "one_topology": one_topology}
        shares = []
        with torch.inference_mode():
            for smoothing in (0, 40):
                batch, _ = pack["SV4D2SceneToMesh"].execute(block, **settings, smoothing=smoothing).args
                mesh = trimesh.Trimesh(batch.vertices[0].numpy(), batch.faces[0].numpy())
                shares.append(mesh.volume / mesh.bounding_box.volume)
        assert shares[1] < shares[0] - 0.01

    def test_newer_hosts_get_counts_and_linear_colours(
        self, nodes_of: Any, core: Core, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module, kind = nodes_of("scene_mesh"), core("export.mesh.mesh").Mesh
        monkeypatch.setattr(module.latest, "Types", SimpleNamespace(MESH=_taken), raising=False)
        meshes = [
            kind(torch.rand(n, 3), torch.tensor([[0, 1, 2]] * f), torch.full((n, 3), 0.5))
            for n, f in ((4, 2), (3, 1))
        ]
        given = module.batched(meshes)
        assert given["vertex_counts"].tolist() == [4, 3] and given["face_counts"].tolist() == [2, 1]
        assert given["vertex_colors"][1, 0, 0] == pytest.approx(0.2140, abs=1e-3) and given["unlit"]
        assert not given["vertex_colors"][1, 3].any() and given["faces"].shape == (2, 2, 3)


def _taken(vertices: torch.Tensor, faces: torch.Tensor, **more: Any) -> dict[str, Any]:
    return {"vertices": vertices, "faces": faces, **more}


class TestSceneToSplat:
    def test_a_batch_over_time_in_the_hosts_axes(
        self, nodes_of: Any, ball: Any, block: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = nodes_of("scene_splat")
        splat = namedtuple("splat", "positions scales rotations opacities sh")
        monkeypatch.setattr(module.latest, "Types", SimpleNamespace(SPLAT=splat), raising=False)
        with torch.inference_mode():
            (made,) = module.SV4D2SceneToSplat.execute(ball, 2).args
            with pytest.raises(ValueError, match="made of Gaussians"):
                module.SV4D2SceneToSplat.execute(block, 2)
        flipped = ball.canonical.means.detach() * torch.tensor([1.0, -1.0, -1.0])
        torch.testing.assert_close(made.positions[1], flipped)
        assert made.opacities.shape == (2, 80, 1) and made.sh.shape == (2, 80, 1, 3)
        torch.testing.assert_close(made.opacities, torch.full((2, 80, 1), 0.9))


class TestExportDataset:
    @pytest.mark.parametrize("kind", ["dataset", "colmap"])
    def test_views_become_a_folder(self, pack: dict[str, Any], core: Core, host_dirs: Any, kind: str) -> None:
        creature = core("world.anatomy").make_creature(5)
        views = core("world.render").render_views(creature, core("cameras").Cameras.ring(2), 2, 16, 8.0)
        crop = json.dumps({"side": 20.0, "centers": [[8.0, 8.0], [9.0, 8.0]], "size": 16})
        node = pack["SV4D2ExportDataset"]
        names = [node.execute(views, kind, "sets/cat", crop if kind == "dataset" else None)[0] for _ in "12"]
        assert names == ["sets/cat_00001", "sets/cat_00002"]
        folder = host_dirs.output / names[0]
        if kind == "dataset":
            assert json.loads((folder / "cameras.json").read_text())["crop"]["side"] == 20
            assert (folder / "transforms_test.json").is_file()
        else:
            assert (folder / "frame_00001/sparse/0/cameras.txt").is_file()
            assert Path(folder / "frame_00001/images/view_01.png").is_file()
