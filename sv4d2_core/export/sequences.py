"""Files of all times: numbered ones of meshes, splats or pictures, a USD file of meshes, animations."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.datasets import write_export
from ..files import write_whole, writing_by_name
from ..scene.tracking.mesh import Mesh, check_finite, check_surface, srgb_to_linear
from ..video.pictures import with_alpha, write_frames
from ..video.write import gif_bytes, webm_bytes, write_video
from .glb import glb_bytes

SEQUENCE_FILE = "sequence.json"
MESH_NAMES = re.compile(r"sequence\.json|mesh_\d{5}\.(?:glb|obj|ply)")
PICTURE_NAMES = re.compile(r"sequence\.json|\d{5}\.png")
_ENCODERS = {".webm": webm_bytes, ".gif": gif_bytes}
ANIMATION_SUFFIXES = (".mp4", *_ENCODERS)
_TYPICAL_BYTES = 3_000_000  # of a frame that is not known yet, for the text about a full disk


def write_sequence(
    folder: str | Path,
    contents: Iterable[bytes],  # of the files; taken one by one, so that one is in memory at a time
    times: Sequence[float],  # [T] in 0..1, rising
    fps: float,
    *,
    stem: str,
    kind: str,
    own_names: re.Pattern[str],  # of the entries that this sequence may replace
    overwrite: bool,
    **about: str,
) -> list[Path]:
    """Write ``stem_00000.kind`` and so on, and ``sequence.json``; all or nothing. Return their paths.

    ``about`` is what ``sequence.json`` says beside kind, rate and times. Raises FileExistsError for an
    earlier sequence without ``overwrite`` or foreign files, OSError for a full or read-only disk.
    """
    folder = Path(folder)

    def fill(staging: Path) -> None:
        for i, (_, content) in enumerate(zip(times, contents, strict=True)):
            (staging / f"{stem}_{i:05d}.{kind}").write_bytes(content)

    listed = {"format": kind, "fps": fps, "times": list(times), **about}
    needed = len(times) * _TYPICAL_BYTES
    return write_export(folder, SEQUENCE_FILE, own_names, overwrite, needed, listed, fill)


def write_mesh_sequence(
    folder: str | Path,
    meshes: Iterable[Mesh],
    times: Sequence[float],
    fps: float,
    *,
    kind: str = "glb",
    overwrite: bool = False,
) -> list[Path]:
    """Write meshes with vertex colours as glb, obj or ply; see `write_sequence`, and `check_surface`."""
    contents = (_mesh_bytes(mesh, kind, f"mesh of frame {i}") for i, mesh in enumerate(meshes))
    names = {"stem": "mesh", "kind": kind, "own_names": MESH_NAMES}
    return write_sequence(folder, contents, times, fps, **names, overwrite=overwrite)


def _mesh_bytes(mesh: Mesh, kind: str, what: str) -> bytes:
    if kind == "glb":
        # Its colours are linear: trimesh would store display values, which viewers then show too bright.
        return glb_bytes(mesh, what=what)
    import trimesh
    from trimesh.exchange import obj, ply

    check_surface(mesh, what)
    colours = np.rint(np.clip(mesh.colours.numpy(), 0, 1) * 255).astype(np.uint8)
    # Processing would merge vertices; normals would be those that every reader can compute.
    surface = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), vertex_colors=colours, process=False)
    if kind == "obj":
        return obj.export_obj(surface, include_normals=False).encode()
    return ply.export_ply(surface, vertex_normal=False)


def usd_package() -> tuple[Any, Any]:
    """Return the modules Usd and UsdGeom, which describe no types; ModuleNotFoundError without usd-core."""
    try:
        return import_module("pxr.Usd"), import_module("pxr.UsdGeom")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Expected the package usd-core, which writes USD files; it is not installed. Run "pip install '
            'usd-core", or export a GLB or a mesh sequence.',
            name="pxr",
        ) from error


def write_usd(
    path: str | Path,  # .usdc (binary) or .usda (text)
    meshes: Sequence[Mesh],  # at least one
    seconds: Sequence[float],  # at which each is shown, rising
    *,
    fps: float = 24.0,  # time codes per second, at which the program that opens the file steps
    overwrite: bool = False,
) -> int:
    """Write time samples of points, and of triangles and colours where these change; return bytes written.

    World +y up, a unit is a metre, colours become linear ``displayColor`` values. Raises ModuleNotFoundError
    without the optional package usd-core, ValueError as `check_surface`, and as `write_whole`.
    """
    path = Path(path)
    for i, mesh in enumerate(meshes):
        check_surface(mesh, f"mesh of frame {i}")
    usd, geometry = usd_package()
    codes = time_codes(seconds, fps)
    stage = usd.Stage.CreateInMemory()
    stage.SetTimeCodesPerSecond(fps)
    stage.SetFramesPerSecond(fps)
    stage.SetStartTimeCode(codes[0])
    stage.SetEndTimeCode(codes[-1])
    geometry.SetStageUpAxis(stage, geometry.Tokens.y)
    geometry.SetStageMetersPerUnit(stage, 1.0)
    stage.SetDefaultPrim(geometry.Xform.Define(stage, "/object").GetPrim())
    _add_samples(geometry.Mesh.Define(stage, "/object/mesh"), meshes, codes)
    with writing_by_name(path, overwrite) as named:
        stage.GetRootLayer().Export(str(named))
    return path.stat().st_size


def time_codes(seconds: Sequence[float], fps: float) -> list[float]:
    """Return the codes of times: where they are whole but for rounding, whole, as players ask for those."""
    return [round(time * fps, 6) for time in seconds]


def _held(meshes: Sequence[Mesh], codes: list[float]) -> Iterator[tuple[Mesh, float]]:
    """Yield each mesh at its code, and once more at the last whole one before the next.

    Between two samples USD mixes vertices, which of meshes with other faces have nothing in common.
    """
    for mesh, code, after in zip(meshes, codes, [*codes[1:], codes[-1]], strict=True):
        yield mesh, code
        if (last := math.ceil(after) - 1) > code:
            yield mesh, last


def _add_samples(prim: Any, meshes: Sequence[Mesh], codes: list[float]) -> None:
    """Fill a UsdGeom.Mesh; what is the same in all frames is written once."""
    geometry, arrays = import_module("pxr.UsdGeom"), import_module("pxr.Vt")
    first = meshes[0]
    same_faces = all(torch.equal(mesh.faces, first.faces) for mesh in meshes)
    same_colours = all(torch.equal(mesh.colours, first.colours) for mesh in meshes)
    prim.CreateSubdivisionSchemeAttr(geometry.Tokens.none)
    prim.CreateDoubleSidedAttr(True)
    display = prim.CreateDisplayColorPrimvar(geometry.Tokens.vertex)
    counts, indices = prim.CreateFaceVertexCountsAttr(), prim.CreateFaceVertexIndicesAttr()
    points, extent = prim.CreatePointsAttr(), prim.CreateExtentAttr()
    for mesh, code in zip(meshes, codes, strict=True) if same_faces else _held(meshes, codes):
        positions = arrays.Vec3fArray.FromNumpy(np.ascontiguousarray(mesh.vertices.numpy(), np.float32))
        points.Set(positions, code)
        extent.Set(geometry.PointBased.ComputeExtent(positions), code)
        if mesh is first or not same_faces:
            moment = () if same_faces else (code,)
            counts.Set(arrays.IntArray(len(mesh.faces), 3), *moment)
            indices.Set(arrays.IntArray.FromNumpy(mesh.faces.numpy().astype(np.int32).reshape(-1)), *moment)
        if mesh is first or not same_colours:
            linear = srgb_to_linear(mesh.colours.numpy()).astype(np.float32)
            display.Set(arrays.Vec3fArray.FromNumpy(linear), *(() if same_colours else (code,)))


def write_pngs(
    folder: str | Path, images: Tensor, opacity: Tensor | None, fps: float, *, overwrite: bool = False
) -> list[Path]:
    """Write ``00000.png`` and so on (RGBA with opacity) and ``sequence.json``; raise as `write_animation`."""
    check_finite("animation", pictures=images, opacity=opacity)
    pictures = images if opacity is None else with_alpha(images, opacity)
    about = {"format": "png", "fps": fps}
    fill = partial(write_frames, pictures=pictures)
    return write_export(Path(folder), SEQUENCE_FILE, PICTURE_NAMES, overwrite, pictures.numel(), about, fill)


def write_animation(
    path: str | Path,
    images: Tensor,  # [N, H, W, 3] in 0..1, on white where there is an opacity
    opacity: Tensor | None,  # [N, H, W] in 0..1; None: nothing is transparent
    fps: float,
    *,
    overwrite: bool = False,
) -> int:
    """Write pictures as .mp4 (H.264 on white), .webm (VP9) or .gif, as the name ends; return its size.

    Raises as `write_whole`, and ValueError for NaN, or a rate or size that this kind of file cannot have.
    """
    path = Path(path)
    check_finite("animation", pictures=images, opacity=opacity)
    if path.suffix.lower() == ".mp4":
        # The index can only be moved to the front of a file that has a name.
        with writing_by_name(path, overwrite) as named:
            write_video(named, images, fps)
        return path.stat().st_size
    return write_whole(path, _ENCODERS[path.suffix.lower()](images, opacity, fps), overwrite)
