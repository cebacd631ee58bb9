"""Writes one numbered mesh file for each frame, for surfaces whose triangles change over time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..files import all_or_nothing, recover, replaceable
from .glb import glb_bytes
from .mesh import Mesh, check_mesh, check_rising

SEQUENCE_FILE = "sequence.json"
SEQUENCE_KINDS = ("glb", "obj", "ply")
NAMES = re.compile(r"sequence\.json|mesh_\d{5}\.(?:glb|obj|ply)")
_TYPICAL_BYTES = 3_000_000


def write_mesh_sequence(
    folder: str | Path,
    meshes: Iterable[Mesh],
    times: Sequence[float],
    fps: float,
    *,
    kind: str = "glb",
    overwrite: bool = False,
) -> list[Path]:
    """Write ``mesh_00000.glb`` and so on, with vertex colours, and ``sequence.json``; all of them or nothing.

    The meshes are taken and written one by one, so that one is in memory at a time.

    Args:
        folder: made if missing; files of other names in it are left alone.
        meshes: one per time.
        times: [T] in 0..1, rising.
        fps: frames per second at which to play them.
        kind: glb, obj or ply.
        overwrite: replace what an earlier call wrote here; files of other origin are never touched.

    Returns:
        The files, ``sequence.json`` last.

    Raises:
        FileExistsError: ``folder`` holds a sequence already and ``overwrite`` is off, or files of these names
            that this function did not make.
        ValueError: times that do not rise, another number of meshes than times, a rate that is not positive,
            an unknown kind, or a mesh that is no surface or holds NaN.
        OSError: the disk is full or read-only; the text says which folder and what to do.
    """
    folder = Path(folder)
    if kind not in SEQUENCE_KINDS:
        raise ValueError(f"Expected a kind of file among {', '.join(SEQUENCE_KINDS)}; got {kind!r}.")
    if not 0 < fps < float("inf"):
        raise ValueError(f"Expected frames per second above 0; got {fps:g}.")
    check_rising(times)
    recover(folder)
    existing = replaceable(folder, SEQUENCE_FILE, NAMES, overwrite)
    files = [f"mesh_{i:05d}.{kind}" for i in range(len(times))]
    names = [*files, SEQUENCE_FILE]
    about = {"format": kind, "fps": fps, "times": list(times), "entries": names}
    with all_or_nothing(folder, existing, SEQUENCE_FILE, len(times) * _TYPICAL_BYTES) as staging:
        for i, mesh in enumerate(meshes):
            if i == len(files):
                raise ValueError(f"Expected {len(files)} meshes, one per time; got more. Give their times.")
            check_mesh(mesh, f"mesh of frame {i}")
            (staging / files[i]).write_bytes(mesh_bytes(mesh, kind))
        written = len(list(staging.iterdir()))
        if written < len(files):
            raise ValueError(f"Expected {len(files)} meshes, one per time; got {written}.")
        (staging / SEQUENCE_FILE).write_text(json.dumps(about, indent=2, allow_nan=False) + "\n")
    return [folder / name for name in names]


def mesh_bytes(mesh: Mesh, kind: str) -> bytes:
    """Return the content of a file of one mesh with its vertex colours.

    GLB is written here, since its colours must be linear: trimesh would store the display values unchanged,
    and viewers would then show them too bright.
    """
    if kind == "glb":
        return glb_bytes(mesh)
    import trimesh
    from trimesh.exchange import obj, ply

    colours = np.rint(np.clip(mesh.colours.numpy(), 0, 1) * 255).astype(np.uint8)
    # Processing would merge vertices; normals would be those that every reader can compute.
    surface = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), vertex_colors=colours, process=False)
    if kind == "obj":
        return obj.export_obj(surface, include_normals=False).encode()
    return ply.export_ply(surface, vertex_normal=False)
