"""Gaussian files: 3DGS PLY, .splat and glTF of one time or of all, and arrays of how they move."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ..files import write_whole
from ..scene.gaussians.gaussians import Gaussians
from ..scene.gaussians.splat_torch import GaussiansAt
from ..scene.tracking.mesh import check_finite
from ..video.pictures import to_bytes
from .glb import ARRAY_BUFFER, GLBContainer, linear_colours
from .sequences import write_sequence

SH_0 = 0.28209479177387814  # Y_00, the constant spherical harmonic
_SPLAT_FRAME = "x right, y down, z forward as the input camera sees it; world = (x, -y, -z), +y up"
_WORLD_FRAME = "x right, y up, z towards the input camera: our world, which is glTF's"


@torch.no_grad()
def gaussians_at(scene: Gaussians, time: float | None, moved: bool = True) -> GaussiansAt:
    """Return a scene's Gaussians in the world at a time in 0..1; for None before they move, about the origin.

    Between frames those of both, see `Gaussians.in_world`; not ``moved``, always as many.
    Float32 on the CPU. Raises ValueError for a time outside 0..1, and as `checked`.
    """
    if time is not None and not 0 <= time <= 1:
        raise ValueError(f"Expected a time in 0..1; got {time:g}.")
    return checked(scene.at_time(None) if time is None else scene.in_world(time, moved))


def checked(gaussians: GaussiansAt) -> GaussiansAt:
    """Return Gaussians as float32 on the CPU, their quaternions of unit length.

    Raises ValueError for none, numbers that are not finite, scales or opacities out of range.
    """
    if not len(gaussians.means):
        raise ValueError("Expected at least one Gaussian to write; the scene is empty. Fit it again.")
    check_finite("scene", **gaussians._asdict())
    own = GaussiansAt(*(tensor.detach().float().cpu() for tensor in gaussians))
    if (own.scales < 0).any() or (own.opacities < 0).any() or (own.opacities > 1).any():
        raise ValueError(
            f"Expected scales of at least 0 and opacities in 0..1; got scales from {own.scales.min():g} and "
            f"opacities from {own.opacities.min():g} to {own.opacities.max():g}."
        )
    return own._replace(quats=F.normalize(own.quats, dim=-1))


def in_splat_frame(gaussians: GaussiansAt) -> GaussiansAt:
    """Return Gaussians of our world in the frame of 3DGS files, or the other way round: half a turn about x.

    Our world is +y up with the input camera on +z; that frame is x right, y down, z forward as it sees it.
    """
    means = gaussians.means * torch.tensor([1.0, -1.0, -1.0])
    w, x, y, z = gaussians.quats.unbind(-1)
    # The product of (0, 1, 0, 0), half a turn about x, and (w, x, y, z).
    return gaussians._replace(means=means, quats=torch.stack([-x, w, -z, y], dim=-1))


# The files hold logits and logarithms: an opacity of 0 or 1, or a scale of 0, would be infinite.
_LEAST_OPACITY, _LEAST_SCALE = 1e-6, 1e-10
_BEFORE_REST = ("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2")
_AFTER_REST = ("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3")
SH_DEGREE = 3  # what readers expect that look at the number of columns, the reference trainer's first


def _ply_bytes(gaussians: GaussiansAt, sh_degree: int) -> bytes:
    """Return a 3DGS PLY file: binary little endian, 62 float32 per Gaussian, 17 of degree 0.

    The normal is 0; f_dc, the colour, is (c - 1/2) / Y_00; f_rest, which would change it with the direction,
    0; opacity a logit; scale a natural logarithm; rot a unit quaternion wxyz. The axes are those of 3DGS (+y
    down), which viewers turn upright. Source: Kerbl et al. 2023, the layout of its released code.
    """
    own = in_splat_frame(checked(gaussians))
    opacities = own.opacities.double().clamp(_LEAST_OPACITY, 1 - _LEAST_OPACITY)
    rest = 3 * ((sh_degree + 1) ** 2 - 1)
    names = (*_BEFORE_REST, *(f"f_rest_{i}" for i in range(rest)), *_AFTER_REST)
    columns = (
        own.means,
        np.zeros((len(own.means), 3)),
        (own.colours - 0.5) / SH_0,
        np.zeros((len(own.means), rest)),
        opacities.logit()[:, None],
        own.scales.clamp(min=_LEAST_SCALE).log(),
        own.quats,
    )
    table = np.concatenate([np.asarray(column, "<f4") for column in columns], axis=1)
    properties = "\n".join(f"property float {name}" for name in names)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n{properties}\nend_header\n"
    return header.encode("ascii") + np.ascontiguousarray(table).tobytes()


_EXTENSION = "KHR_gaussian_splatting"
_POINTS = 0


def _glb_bytes(gaussians: GaussiansAt, _sh_degree: int) -> bytes:
    """Return a GLB file of Gaussians as points in our world, which is glTF's (+y up).

    SCALE is linear, the colour (c - 1/2) / Y_00 of sRGB; COLOR_0 is for programs that know only points.
    Source: the Khronos text of KHR_gaussian_splatting, 2026.
    """
    own, container = checked(gaussians), GLBContainer()

    def added(values: np.ndarray, **options: bool) -> int:
        return container.add_array(np.ascontiguousarray(values), ARRAY_BUFFER, **options)

    colours = linear_colours(own.colours.numpy(), own.opacities.numpy())
    primitive = {
        "mode": _POINTS,
        "attributes": {
            "POSITION": added(own.means.numpy(), limits=True),
            "COLOR_0": added(colours, normalized=True),
            f"{_EXTENSION}:ROTATION": added(own.quats[:, [1, 2, 3, 0]].numpy()),
            f"{_EXTENSION}:SCALE": added(own.scales.numpy()),
            f"{_EXTENSION}:OPACITY": added(own.opacities.numpy()),
            f"{_EXTENSION}:SH_DEGREE_0_COEF_0": added(((own.colours - 0.5) / SH_0).numpy()),
        },
        "extensions": {_EXTENSION: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}},
    }
    node = {"mesh": 0, "name": "gaussians"}
    return container.to_bytes(_EXTENSION, {"nodes": [node], "meshes": [{"primitives": [primitive]}]})


_ROW = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])


def _splat_bytes(gaussians: GaussiansAt, _sh_degree: int) -> bytes:
    """Return a ``.splat`` file, in the axes of 3DGS: no header, 32 bytes per Gaussian.

    The largest volume times opacity comes first, as viewers show parts. Source: antimatter15/splat's format.
    """
    own = in_splat_frame(checked(gaussians))
    order = (-(own.scales.double().prod(-1) * own.opacities)).argsort(stable=True)
    own = GaussiansAt(*(tensor[order] for tensor in own))
    rows = np.empty(len(own.means), _ROW)
    rows["means"], rows["scales"] = own.means, own.scales
    rows["rgba"][:, :3], rows["rgba"][:, 3] = to_bytes(own.colours), to_bytes(own.opacities)
    rows["quats"] = (128 * own.quats + 128).round().clamp(0, 255)
    return rows.tobytes()


SPLAT_NAMES = re.compile(r"sequence\.json|splat_\d{5}\.(ply|splat|glb)")
_CONTENTS = {"ply": _ply_bytes, "splat": _splat_bytes, "glb": _glb_bytes}


def write_splats(
    path: str | Path,
    gaussians: GaussiansAt,
    *,
    kind: str,
    sh_degree: int = SH_DEGREE,  # of a ply, 0 to 3
    overwrite: bool = False,
) -> int:
    """Write Gaussians of our world as ply, splat or glb and return the size; see `checked`, `write_whole`."""
    return write_whole(Path(path), _CONTENTS[kind](gaussians, sh_degree), overwrite)


def write_splat_sequence(
    folder: str | Path,
    frames: Iterable[GaussiansAt],
    times: Sequence[float],
    fps: float,
    *,
    kind: str = "ply",
    sh_degree: int = SH_DEGREE,
    overwrite: bool = False,
) -> list[Path]:
    """Write Gaussians of our world as ply, splat or glb, a set per time; see `write_sequence`, `checked`."""
    contents = (_CONTENTS[kind](gaussians, sh_degree) for gaussians in frames)
    axes = _WORLD_FRAME if kind == "glb" else _SPLAT_FRAME
    names = {"stem": "splat", "kind": kind, "own_names": SPLAT_NAMES}
    return write_sequence(folder, contents, times, fps, **names, overwrite=overwrite, axes=axes)


def write_trajectories(
    path: str | Path, scene: Gaussians, times: Sequence[float], *, overwrite: bool = False
) -> int:
    """Write a scene's Gaussians before and while they move as ``.npz``, and return the size in bytes.

    Raises as `gaussians_at` and `write_whole`. Gaussian i is the same in all arrays; lengths are world units,
    +y is up, quaternions are unit wxyz:

    - ``means`` [T, N, 3], ``quats`` [T, N, 4], ``scales`` [T, N, 3] (standard deviations along the own axes)
      and ``opacities`` [T, N] in 0..1, float32: at each time, between frames by the deformation alone.
    - ``colours`` [N, 3] float32 in 0..1 (sRGB), at all times.
    - ``canonical_means``, ``canonical_quats``, ``canonical_scales``, ``canonical_opacities``, float32, the
      same without T: the Gaussians before they are moved, about the origin.
    - ``shifts`` [T, 3] float64: the object's own path, already in ``means``; 0 where it has none.
    - ``times`` [T] float64 in 0..1, rising, and ``fps``, float64: frames per second of the scene's clip.
    """
    canonical = gaussians_at(scene, None)
    frames = [gaussians_at(scene, time, moved=False) for time in times]
    changing = GaussiansAt._fields[:4]
    moving = {name: torch.stack([getattr(frame, name) for frame in frames]).numpy() for name in changing}
    shifts = [(0.0, 0.0, 0.0) if scene.path is None else scene.path.at(time).tolist() for time in times]
    content = io.BytesIO()
    np.savez_compressed(
        content,
        **moving,
        colours=canonical.colours.numpy(),
        **{f"canonical_{name}": getattr(canonical, name).numpy() for name in changing},
        shifts=np.array(shifts),
        times=np.array(times),
        fps=np.array(float(scene.fps)),
    )
    return write_whole(Path(path), content.getvalue(), overwrite)
