"""Numbered mesh files and USD: what trimesh, plyfile and Pixar's library read back, and what is refused."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from sv4d2_core.export.animations import write_pngs
from sv4d2_core.export.mesh import Mesh
from sv4d2_core.export.sequences import write_mesh_sequence, write_usd

sys.path.insert(0, str(Path(__file__).parent / "three"))
bending = importlib.import_module("bending")

TIMES = (0.0, 0.25, 1.0)
SECONDS = (0.0, 0.5, 2.0)
FPS = 8.0


def moving_meshes() -> list[Mesh]:
    animation = bending.bending_ball(n_frames=3)
    return [animation.at(i) for i in range(3)]


def changing_meshes() -> list[Mesh]:
    """Return meshes whose triangles and colours change."""
    coarse = bending.bending_ball(n_frames=3, subdivisions=1).at(1)
    first, _, last = moving_meshes()
    return [first, coarse, dataclasses.replace(last, colours=1 - last.colours)]


def with_nan() -> list[Mesh]:
    first, second, last = moving_meshes()
    vertices = last.vertices.clone()
    vertices[3:5] = torch.nan
    return [first, second, dataclasses.replace(last, vertices=vertices)]


def grey_levels(mesh: Mesh) -> np.ndarray:
    return np.rint(mesh.colours.numpy() * 255)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", ["glb", "obj", "ply"])
def test_trimesh_reads_each_frame(tmp_path, kind):
    meshes = changing_meshes()
    files = write_mesh_sequence(tmp_path / "out", iter(meshes), TIMES, FPS, kind=kind)
    names = [*(f"mesh_{i:05d}.{kind}" for i in range(3)), "sequence.json"]
    assert [path.name for path in files] == names
    about = {"format": kind, "fps": FPS, "times": list(TIMES), "entries": names}
    assert json.loads(files[-1].read_text()) == about
    for path, mesh in zip(files, meshes, strict=False):
        read = trimesh.load_mesh(path, process=False, maintain_order=True)
        np.testing.assert_allclose(read.vertices, mesh.vertices.numpy(), atol=1e-6)
        assert read.faces.tolist() == mesh.faces.tolist()
        if kind != "glb":  # whose colours are linear; tests of GLB look at them
            np.testing.assert_array_equal(read.visual.vertex_colors[:, :3], grey_levels(mesh))


def test_a_sequence_of_another_kind_is_replaced_only_when_told(tmp_path):
    write_mesh_sequence(tmp_path, changing_meshes(), TIMES, FPS, kind="obj")
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="exists already"):
        write_mesh_sequence(tmp_path, changing_meshes()[:1], TIMES[:1], FPS, kind="ply")
    assert contents(tmp_path) == before
    write_mesh_sequence(tmp_path, changing_meshes()[:1], TIMES[:1], FPS, kind="ply", overwrite=True)
    assert sorted(contents(tmp_path)) == ["mesh_00000.ply", "notes.txt", "sequence.json"]


def test_files_of_other_origin_are_never_replaced(tmp_path):
    (tmp_path / "mesh_00001.glb").write_text("mine")
    with pytest.raises(FileExistsError, match=r"mesh_00001\.glb"):
        write_mesh_sequence(tmp_path, changing_meshes(), TIMES, FPS, overwrite=True)
    assert contents(tmp_path) == {"mesh_00001.glb": b"mine"}
    write_pngs(tmp_path / "pictures", torch.rand(2, 8, 8, 3), torch.ones(2, 8, 8), FPS)
    before = contents(tmp_path / "pictures")
    with pytest.raises(FileExistsError, match=r"export of another kind \(00000\.png\)"):
        write_mesh_sequence(tmp_path / "pictures", changing_meshes(), TIMES, FPS, overwrite=True)
    assert contents(tmp_path / "pictures") == before


@pytest.mark.parametrize(
    ("meshes", "options", "text"),
    [
        (with_nan(), {}, "6 of 486 numbers in the mesh of frame 2 are NaN"),
        (changing_meshes()[:2], {"kind": "obj"}, "shorter"),
        ([*changing_meshes(), *changing_meshes()], {}, "longer"),
    ],
)
def test_a_sequence_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, meshes, options, text):
    with pytest.raises(ValueError, match=text):
        write_mesh_sequence(tmp_path / "out", meshes, TIMES, FPS, **options)
    assert list(tmp_path.iterdir()) == []


def pxr(name: str):
    """Return a module of the optional package; skip the test where it is missing."""
    return pytest.importorskip(f"pxr.{name}", reason="the optional extra usd (usd-core) is not installed")


def linear(colours: torch.Tensor) -> np.ndarray:
    values = colours.double().numpy()
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("suffix", [".usdc", ".usda"])
@pytest.mark.parametrize("make", [moving_meshes, changing_meshes])
def test_pxr_reads_every_frame_at_its_time(tmp_path, make, suffix):
    usd, geometry = pxr("Usd"), pxr("UsdGeom")
    meshes, path = make(), tmp_path / f"a{suffix}"
    assert write_usd(path, meshes, SECONDS, fps=FPS) == path.stat().st_size
    stage = usd.Stage.Open(str(path))
    assert geometry.GetStageUpAxis(stage) == geometry.Tokens.y
    assert geometry.GetStageMetersPerUnit(stage) == 1.0
    assert stage.GetTimeCodesPerSecond() == FPS
    assert (stage.GetStartTimeCode(), stage.GetEndTimeCode()) == (0, 16)
    prim = geometry.Mesh(stage.GetPrimAtPath("/object/mesh"))
    assert stage.GetDefaultPrim() == prim.GetPrim().GetParent()
    assert prim.GetSubdivisionSchemeAttr().Get() == geometry.Tokens.none
    assert prim.GetPointsAttr().GetTimeSamples() == [second * FPS for second in SECONDS]
    for mesh, second in zip(meshes, SECONDS, strict=True):
        code = second * FPS
        points = np.asarray(prim.GetPointsAttr().Get(code))
        np.testing.assert_allclose(points, mesh.vertices.numpy(), atol=1e-6)
        indices, counts = (
            attribute.Get(code)
            for attribute in (prim.GetFaceVertexIndicesAttr(), prim.GetFaceVertexCountsAttr())
        )
        assert np.asarray(indices).reshape(-1, 3).tolist() == mesh.faces.tolist()
        assert list(counts) == [3] * len(mesh.faces)
        shown = np.asarray(prim.GetDisplayColorPrimvar().Get(code))
        np.testing.assert_allclose(shown, linear(mesh.colours), atol=1e-6)
        extent = np.asarray(prim.GetExtentAttr().Get(code))
        np.testing.assert_allclose(extent, [points.min(0), points.max(0)], atol=1e-6)
        valid, why = geometry.Mesh.ValidateTopology(indices, counts, len(points))
        assert valid, why
    # What does not change is written once.
    samples = 0 if make is moving_meshes else 3
    assert prim.GetFaceVertexIndicesAttr().GetNumTimeSamples() == samples
    assert prim.GetDisplayColorPrimvar().GetAttr().GetNumTimeSamples() == samples


def test_usd_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pxr", None)
    monkeypatch.setitem(sys.modules, "pxr.Usd", None)
    with pytest.raises(ModuleNotFoundError, match="pip install usd-core"):
        write_usd(tmp_path / "out" / "a.usdc", moving_meshes(), SECONDS)
    with pytest.raises(ValueError, match="6 of 486 numbers in the mesh of frame 2 are NaN"):
        write_usd(tmp_path / "out" / "a.usdc", with_nan(), SECONDS, fps=FPS)
    assert list(tmp_path.iterdir()) == []
