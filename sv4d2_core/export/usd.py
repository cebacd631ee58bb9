"""One USD file of meshes over time; unlike glTF it holds triangles and colours that change."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import refuse_existing, scratch_folder, write_file
from .mesh import Mesh, check_mesh, check_rising, srgb_to_linear


def write_usd(
    path: str | Path,
    meshes: Sequence[Mesh],
    seconds: Sequence[float],
    *,
    fps: float = 24.0,
    overwrite: bool = False,
) -> int:
    """Write time samples of points, and of triangles and colours where these change; return bytes written.

    The world is +y up and one unit is a metre. Colours become linear ``displayColor`` values.

    Args:
        path: ends with .usdc (binary) or .usda (text).
        meshes: one for each frame.
        seconds: when each frame is shown, rising.
        fps: time codes per second; the program that opens the file steps at this rate.
        overwrite: replace an existing file.

    Raises:
        ModuleNotFoundError: the optional package usd-core is missing.
        FileExistsError: ``path`` exists and ``overwrite`` is off.
        ValueError: another suffix, no frames, a frame that is no surface or holds NaN, times that do not rise
            or do not fit.
        OSError: the disk is full or read-only; the text says what to do.
    """
    path = Path(path)
    if path.suffix not in (".usdc", ".usda"):
        raise ValueError(f"Expected a name that ends with .usdc or .usda; got {path.name!r}.")
    if not 0 < fps < float("inf"):
        raise ValueError(f"Expected frames per second above 0; got {fps:g}.")
    if len(meshes) != len(seconds) or not meshes:
        raise ValueError(f"Expected one time per mesh; got {len(meshes)} meshes and {len(seconds)} times.")
    check_rising(seconds)
    for i, mesh in enumerate(meshes):
        check_mesh(mesh, f"mesh of frame {i}")
    refuse_existing(path, overwrite)
    stage = _stage(meshes, [time * fps for time in seconds], fps)
    with scratch_folder() as folder:
        exported = folder / f"scene{path.suffix}"
        stage.GetRootLayer().Export(str(exported))
        content = exported.read_bytes()
    return write_file(path, content, overwrite)


def _stage(meshes: Sequence[Mesh], codes: list[float], fps: float) -> Any:
    """Return the USD stage of meshes at time codes."""
    try:
        # The package is compiled and describes no types.
        usd, geometry = import_module("pxr.Usd"), import_module("pxr.UsdGeom")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Expected the package usd-core, which writes USD files; it is not installed. Run "pip install '
            'usd-core", or export a GLB or a mesh sequence.',
            name="pxr",
        ) from error
    stage = usd.Stage.CreateInMemory()
    stage.SetTimeCodesPerSecond(fps)
    stage.SetFramesPerSecond(fps)
    stage.SetStartTimeCode(codes[0])
    stage.SetEndTimeCode(codes[-1])
    geometry.SetStageUpAxis(stage, geometry.Tokens.y)
    geometry.SetStageMetersPerUnit(stage, 1.0)
    root = geometry.Xform.Define(stage, "/object")
    stage.SetDefaultPrim(root.GetPrim())
    _add_samples(geometry.Mesh.Define(stage, "/object/mesh"), meshes, codes)
    return stage


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
    for mesh, code in zip(meshes, codes, strict=True):
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
