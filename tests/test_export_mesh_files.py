"""Numbered mesh files: what trimesh and plyfile read back, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from plyfile import PlyData

from sv4d2_core.export.animations import write_pngs
from sv4d2_core.export.mesh import Mesh
from sv4d2_core.export.sequences import SEQUENCE_KINDS, write_mesh_sequence

sys.path.insert(0, str(Path(__file__).parent / "three"))
bending = importlib.import_module("bending")

TIMES = (0.0, 0.25, 1.0)


def changing_meshes() -> list[Mesh]:
    """Return three meshes of two topologies."""
    coarse, fine = (bending.bending_ball(n_frames=3, subdivisions=n) for n in (1, 2))
    return [coarse.at(0), fine.at(1), coarse.at(2)]


def grey_levels(mesh: Mesh) -> np.ndarray:
    return np.rint(mesh.colours.numpy() * 255)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", SEQUENCE_KINDS)
def test_trimesh_reads_each_frame(tmp_path, kind):
    meshes = changing_meshes()
    files = write_mesh_sequence(tmp_path / "out", iter(meshes), TIMES, 8.0, kind=kind)
    assert [path.name for path in files] == [*(f"mesh_{i:05d}.{kind}" for i in range(3)), "sequence.json"]
    about = json.loads(files[-1].read_text())
    assert about == {
        "format": kind,
        "fps": 8.0,
        "times": list(TIMES),
        "entries": [path.name for path in files],
    }
    for path, mesh in zip(files, meshes, strict=False):
        read = trimesh.load_mesh(path, process=False, maintain_order=True)
        np.testing.assert_allclose(read.vertices, mesh.vertices.numpy(), atol=1e-6)
        assert read.faces.tolist() == mesh.faces.tolist()
        if kind != "glb":  # whose colours are linear; tests of GLB look at them
            np.testing.assert_array_equal(read.visual.vertex_colors[:, :3], grey_levels(mesh))


def test_plyfile_reads_places_colours_and_faces(tmp_path):
    mesh = changing_meshes()[1]
    file, _ = write_mesh_sequence(tmp_path, [mesh], [0.0], 8.0, kind="ply")
    ply = PlyData.read(str(file))
    vertex = ply["vertex"]
    np.testing.assert_array_equal(np.stack([vertex[k] for k in "xyz"], 1), mesh.vertices.numpy())
    colours = np.stack([vertex[k] for k in ("red", "green", "blue")], 1)
    np.testing.assert_array_equal(colours, grey_levels(mesh))
    assert np.stack(ply["face"]["vertex_indices"]).tolist() == mesh.faces.tolist()


def test_a_sequence_of_another_kind_is_replaced_only_when_told(tmp_path):
    write_mesh_sequence(tmp_path, changing_meshes(), TIMES, 8.0, kind="obj")
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="exists already"):
        write_mesh_sequence(tmp_path, changing_meshes()[:1], TIMES[:1], 8.0, kind="ply")
    assert contents(tmp_path) == before
    write_mesh_sequence(tmp_path, changing_meshes()[:1], TIMES[:1], 8.0, kind="ply", overwrite=True)
    assert sorted(contents(tmp_path)) == ["mesh_00000.ply", "notes.txt", "sequence.json"]


def test_files_of_other_origin_are_never_replaced(tmp_path):
    (tmp_path / "mesh_00001.glb").write_text("mine")
    with pytest.raises(FileExistsError, match=r"mesh_00001\.glb"):
        write_mesh_sequence(tmp_path, changing_meshes(), TIMES, 8.0, overwrite=True)
    assert contents(tmp_path) == {"mesh_00001.glb": b"mine"}


def test_a_folder_of_pictures_does_not_become_one_of_meshes(tmp_path):
    write_pngs(tmp_path, torch.rand(2, 8, 8, 3), torch.ones(2, 8, 8), 8.0)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"export of another kind \(00000\.png\)"):
        write_mesh_sequence(tmp_path, changing_meshes(), TIMES, 8.0, overwrite=True)
    assert contents(tmp_path) == before


def with_nan() -> list[Mesh]:
    first, second, last = changing_meshes()
    vertices = last.vertices.clone()
    vertices[3:5] = torch.nan
    return [first, second, dataclasses.replace(last, vertices=vertices)]


@pytest.mark.parametrize(
    ("meshes", "options", "text"),
    [
        (with_nan(), {}, "2 of 42 in the mesh of frame 2 are NaN"),
        (changing_meshes()[:2], {}, "Expected 3 meshes.* got 2"),
        ([*changing_meshes(), *changing_meshes()], {}, "Expected 3 meshes.* got more"),
        (changing_meshes(), {"times": (0.0, 0.5, 0.5)}, "rise"),
        (changing_meshes(), {"times": ()}, "got none"),
        (changing_meshes(), {"fps": 0.0}, "got 0"),
        (changing_meshes(), {"kind": "stl"}, "glb, obj, ply; got 'stl'"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, meshes, options, text):
    given = {"times": TIMES, "fps": 8.0, **options}
    with pytest.raises(ValueError, match=text):
        write_mesh_sequence(tmp_path / "out", meshes, given.pop("times"), given.pop("fps"), **given)
    assert list(tmp_path.iterdir()) == []
