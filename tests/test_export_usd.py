"""USD files: what Pixar's own library reads back, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sv4d2_core.export.mesh import Mesh
from sv4d2_core.export.usd import write_usd

sys.path.insert(0, str(Path(__file__).parent / "three"))
bending = importlib.import_module("bending")

SECONDS = (0.0, 0.5, 2.0)
FPS = 8.0


def pxr(name: str):
    """Return a module of the optional package; skip the test where it is missing."""
    return pytest.importorskip(f"pxr.{name}", reason="the optional extra usd (usd-core) is not installed")


def moving_meshes() -> list[Mesh]:
    animation = bending.bending_ball(n_frames=3)
    return [animation.at(i) for i in range(3)]


def changing_meshes() -> list[Mesh]:
    """Return meshes whose triangles and colours change."""
    coarse = bending.bending_ball(n_frames=3, subdivisions=1).at(1)
    meshes = moving_meshes()
    return [meshes[0], coarse, dataclasses.replace(meshes[2], colours=1 - meshes[2].colours)]


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
        indices = np.asarray(prim.GetFaceVertexIndicesAttr().Get(code))
        assert indices.reshape(-1, 3).tolist() == mesh.faces.tolist()
        assert list(prim.GetFaceVertexCountsAttr().Get(code)) == [3] * len(mesh.faces)
        shown = np.asarray(prim.GetDisplayColorPrimvar().Get(code))
        np.testing.assert_allclose(shown, linear(mesh.colours), atol=1e-6)
        extent = np.asarray(prim.GetExtentAttr().Get(code))
        np.testing.assert_allclose(extent, [points.min(0), points.max(0)], atol=1e-6)
        valid, why = geometry.Mesh.ValidateTopology(
            prim.GetFaceVertexIndicesAttr().Get(code),
            prim.GetFaceVertexCountsAttr().Get(code),
            len(points),
        )
        assert valid, why


def test_what_does_not_change_is_written_once(tmp_path):
    usd, geometry = pxr("Usd"), pxr("UsdGeom")
    write_usd(tmp_path / "a.usdc", moving_meshes(), SECONDS)
    stage = usd.Stage.Open(str(tmp_path / "a.usdc"))
    prim = geometry.Mesh(stage.GetPrimAtPath("/object/mesh"))
    assert prim.GetFaceVertexIndicesAttr().GetNumTimeSamples() == 0
    assert prim.GetDisplayColorPrimvar().GetAttr().GetNumTimeSamples() == 0


def test_an_existing_file_stays_unless_told(tmp_path):
    pxr("Usd")
    path = tmp_path / "a.usdc"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        write_usd(path, moving_meshes(), SECONDS)
    assert path.read_text() == "mine"
    write_usd(path, moving_meshes(), SECONDS, overwrite=True)
    assert path.read_bytes()[:8] == b"PXR-USDC" and len(list(tmp_path.iterdir())) == 1


def test_without_usd_core_the_text_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pxr", None)
    monkeypatch.setitem(sys.modules, "pxr.Usd", None)
    with pytest.raises(ModuleNotFoundError, match="pip install usd-core"):
        write_usd(tmp_path / "out" / "a.usdc", moving_meshes(), SECONDS)
    assert list(tmp_path.iterdir()) == []


def with_nan() -> list[Mesh]:
    first, *others = moving_meshes()
    return [dataclasses.replace(first, vertices=first.vertices * torch.nan), *others]


@pytest.mark.parametrize(
    ("name", "meshes", "seconds", "fps", "text"),
    [
        ("a.usdc", with_nan(), SECONDS, FPS, "162 of 162 in the mesh of frame 0 are NaN"),
        ("a.usdc", moving_meshes(), SECONDS[:2], FPS, "3 meshes and 2 times"),
        ("a.usdc", [], (), FPS, "0 meshes"),
        ("a.usdc", moving_meshes(), (0.0, 1.0, 0.5), FPS, "rise"),
        ("a.usdc", moving_meshes(), SECONDS, 0.0, "got 0"),
        ("a.usd", moving_meshes(), SECONDS, FPS, "got 'a.usd'"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, name, meshes, seconds, fps, text):
    with pytest.raises(ValueError, match=text):
        write_usd(tmp_path / "out" / name, meshes, seconds, fps=fps)
    assert list(tmp_path.iterdir()) == []
