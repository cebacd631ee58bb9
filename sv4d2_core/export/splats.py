"""One file of Gaussians for each frame, numbered, as players of splat sequences read them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..files import all_or_nothing, recover, replaceable, write_file
from ..scene.gaussians.gaussians import Gaussians
from ..scene.gaussians.splatting import GaussiansAt
from ..video.pictures import to_bytes
from .glb import ARRAY_BUFFER, GLBContainer
from .mesh import srgb_to_linear

# Half a turn about x takes our world (+y up, the input camera on +z) to the frame that 3DGS files are in
# (x right, y down, z forward as the input camera sees it), and back.
_HALF_TURN = (1.0, -1.0, -1.0)
SPLAT_FRAME = "x right, y down, z forward as the input camera sees it; world = (x, -y, -z), +y up"


@torch.no_grad()
def gaussians_at(scene: Gaussians, time: float | None) -> GaussiansAt:
    """Return a scene's Gaussians in the world, where its path puts them, float32 on the CPU.

    Args:
        scene: the Gaussians.
        time: in 0..1; None: where they are before they move, about the origin.

    Raises:
        ValueError: a time outside 0..1, no Gaussians, numbers that are not finite.
    """
    if time is not None and not 0 <= time <= 1:
        raise ValueError(f"Expected a time in 0..1; got {time:g}.")
    return checked(scene.at_time(None) if time is None else scene.in_world(time))


def checked(gaussians: GaussiansAt) -> GaussiansAt:
    """Return Gaussians as float32 on the CPU, their quaternions of unit length.

    Raises:
        ValueError: none at all, shapes that do not fit together, numbers that are not finite, scales or
            opacities out of range.
    """
    n = len(gaussians.means)
    if n == 0:
        raise ValueError("Expected at least one Gaussian to write; the scene is empty.")
    shapes = ((n, 3), (n, 4), (n, 3), (n,), (n, 3))
    for name, tensor, shape in zip(GaussiansAt._fields, gaussians, shapes, strict=True):
        if tensor.shape != shape:
            raise ValueError(f"Expected {name} {list(shape)}; got {list(tensor.shape)}.")
        if bad := int((~tensor.isfinite()).sum()):
            raise ValueError(
                f"Expected finite numbers; {bad} of the {tensor.numel()} {name} are NaN or infinite. The fit "
                f"has failed; fit the scene again."
            )
    own = GaussiansAt(*(tensor.detach().float().cpu() for tensor in gaussians))
    if (own.scales < 0).any() or (own.opacities < 0).any() or (own.opacities > 1).any():
        raise ValueError(
            f"Expected scales of at least 0 and opacities in 0..1; got scales from {own.scales.min():g} and "
            f"opacities from {own.opacities.min():g} to {own.opacities.max():g}."
        )
    return own._replace(quats=F.normalize(own.quats, dim=-1))


def in_splat_frame(gaussians: GaussiansAt) -> GaussiansAt:
    """Return Gaussians of our world in the frame of 3DGS files (`SPLAT_FRAME`), or the other way round."""
    means = gaussians.means * torch.tensor(_HALF_TURN)
    return gaussians._replace(means=means, quats=_half_turned(gaussians.quats))


def _half_turned(quats: Tensor) -> Tensor:
    """Return quaternions [N, 4] wxyz that turn by half a turn about x, (0, 1, 0, 0), after their own turn."""
    w, x, y, z = quats.unbind(-1)
    return torch.stack([-x, w, -z, y], dim=-1)


# Y_00, the constant spherical harmonic.
SH_0 = 0.28209479177387814
# The files hold logits and logarithms: an opacity of 0 or 1, or a scale of 0, would be infinite.
_LEAST_OPACITY, _LEAST_SCALE = 1e-6, 1e-10

_COLUMNS = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)


def write_splat_ply(path: str | Path, gaussians: GaussiansAt, *, overwrite: bool = False) -> int:
    """Write Gaussians of our world as a 3DGS PLY file and return its size in bytes; see `splat_ply`.

    Raises:
        FileExistsError, OSError: what `write_file` says.
        ValueError: what `checked` says.
    """
    return write_file(Path(path), splat_ply(gaussians), overwrite)


def splat_ply(gaussians: GaussiansAt) -> bytes:
    """Return a 3DGS PLY file: binary little endian, 17 float32 per Gaussian, 68 bytes.

    In the file's columns: x y z; nx ny nz, always 0; f_dc, the colour as (c - 1/2) / Y_00; opacity as logit;
    scale as natural logarithm; rot as unit quaternion wxyz. There is no f_rest, as the colours are the same
    from everywhere. The axes are those of 3DGS (`frames.SPLAT_FRAME`: +y down), which viewers turn upright.

    Source: Kerbl et al. 2023, the layout of its released code.
    """
    own = in_splat_frame(checked(gaussians))
    opacities = own.opacities.double().clamp(_LEAST_OPACITY, 1 - _LEAST_OPACITY)
    columns = (
        own.means,
        np.zeros((len(own.means), 3)),
        (own.colours - 0.5) / SH_0,
        opacities.logit()[:, None],
        own.scales.clamp(min=_LEAST_SCALE).log(),
        own.quats,
    )
    table = np.concatenate([np.asarray(column, "<f4") for column in columns], axis=1)
    properties = "\n".join(f"property float {name}" for name in _COLUMNS)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n{properties}\nend_header\n"
    return header.encode("ascii") + np.ascontiguousarray(table).tobytes()


_EXTENSION = "KHR_gaussian_splatting"
_POINTS = 0


def write_splat_glb(path: str | Path, gaussians: GaussiansAt, *, overwrite: bool = False) -> int:
    """Write Gaussians of our world as a GLB file and return its size in bytes; see `splat_glb`.

    Raises:
        FileExistsError, OSError: what `write_file` says.
        ValueError: what `checked` says.
    """
    return write_file(Path(path), splat_glb(gaussians), overwrite)


def splat_glb(gaussians: GaussiansAt) -> bytes:
    """Return a GLB file with the Gaussians of one time as points in our world, which is glTF's (+y up).

    Attributes: POSITION; ROTATION as xyzw; SCALE, linear; OPACITY in 0..1; SH_DEGREE_0_COEF_0, the colour as
    (c - 1/2) / Y_00 in sRGB; and COLOR_0, linear RGB and opacity, for programs that know only points.

    Source: the Khronos text of KHR_gaussian_splatting, 2026.
    """
    own, container = checked(gaussians), GLBContainer()

    def added(values: np.ndarray, **options: bool) -> int:
        return container.add_array(np.ascontiguousarray(values), ARRAY_BUFFER, **options)

    primitive = {
        "mode": _POINTS,
        "attributes": {
            "POSITION": added(own.means.numpy(), limits=True),
            "COLOR_0": added(_fallback_colours(own), normalized=True),
            f"{_EXTENSION}:ROTATION": added(own.quats[:, [1, 2, 3, 0]].numpy()),
            f"{_EXTENSION}:SCALE": added(own.scales.numpy()),
            f"{_EXTENSION}:OPACITY": added(own.opacities.numpy()),
            f"{_EXTENSION}:SH_DEGREE_0_COEF_0": added(((own.colours - 0.5) / SH_0).numpy()),
        },
        "extensions": {_EXTENSION: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}},
    }
    return container.to_bytes(
        {
            "asset": {"version": "2.0", "generator": "sv4d2"},
            "extensionsUsed": [_EXTENSION],
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0, "name": "gaussians"}],
            "meshes": [{"primitives": [primitive]}],
        }
    )


def _fallback_colours(gaussians: GaussiansAt) -> np.ndarray:
    """Return linear RGB and opacity, uint16 [N, 4]; 8 bits would be too coarse in the dark."""
    linear = srgb_to_linear(gaussians.colours.numpy())
    rgba = np.concatenate([linear, gaussians.opacities.numpy()[:, None]], axis=1)
    return np.round(65535 * rgba).astype(np.uint16)


_ROW = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])


def write_splat(path: str | Path, gaussians: GaussiansAt, *, overwrite: bool = False) -> int:
    """Write Gaussians of our world as a ``.splat`` file and return its size in bytes; see `splat_rows`.

    Raises:
        FileExistsError, OSError: what `write_file` says.
        ValueError: what `checked` says.
    """
    return write_file(Path(path), splat_rows(gaussians), overwrite)


def splat_rows(gaussians: GaussiansAt) -> bytes:
    """Return a ``.splat`` file: no header, 32 bytes per Gaussian, those that matter most first.

    A row: position and scales, 3 float32 each, little endian; colour and opacity, 4 bytes; the unit
    quaternion wxyz, 4 bytes, each round(128 q + 128). The order is by volume times opacity, so that a viewer
    that has read a part of the file shows the best of it. The axes are those of 3DGS, as in the PLY file.

    Source: the format of antimatter15/splat.
    """
    own = in_splat_frame(checked(gaussians))
    order = (-(own.scales.double().prod(-1) * own.opacities)).argsort(stable=True)
    own = GaussiansAt(*(tensor[order] for tensor in own))
    rows = np.empty(len(own.means), _ROW)
    rows["means"], rows["scales"] = own.means, own.scales
    rows["rgba"][:, :3], rows["rgba"][:, 3] = to_bytes(own.colours), to_bytes(own.opacities)
    rows["quats"] = (128 * own.quats + 128).round().clamp(0, 255)
    return rows.tobytes()


SEQUENCE_FILE = "sequence.json"
_NAMES = re.compile(r"sequence\.json|splat_\d{5}\.(ply|splat|glb)")
_CONTENTS = {"ply": splat_ply, "splat": splat_rows, "glb": splat_glb}
SEQUENCE_KINDS = tuple(_CONTENTS)
_WORLD_FRAME = "x right, y up, z towards the input camera: our world, which is glTF's"
# Of a frame that is not known yet, for the text about a full disk.
_TYPICAL_BYTES = 2_000_000


def write_splat_sequence(
    folder: str | Path,
    frames: Iterable[GaussiansAt],
    times: Sequence[float],
    fps: float,
    *,
    kind: str = "ply",
    overwrite: bool = False,
) -> list[Path]:
    """Write ``splat_00000.ply`` and so on, and ``sequence.json`` with their rate and times.

    All or nothing. The frames are taken and written one by one, so that one is in memory at a time.

    Args:
        folder: made if missing; files of other names in it are left alone.
        frames: the Gaussians in our world, one per time: ``(gaussians_at(scene, t) for t in times)``.
        times: [T] in 0..1, rising.
        fps: frames per second at which to play them.
        kind: ply, splat or glb.
        overwrite: replace what an earlier call wrote here; entries of other origin are never touched.

    Returns:
        The files, ``sequence.json`` last.

    Raises:
        FileExistsError: ``folder`` holds a sequence already and ``overwrite`` is off, or files of these names
            that this function did not make.
        ValueError: no times, another number of frames than times, a rate that is not positive, an unknown
            kind, or what `checked` says.
        OSError: the disk is full or read-only; the text says which folder and what to do.
    """
    folder = Path(folder)
    if kind not in _CONTENTS:
        raise ValueError(f"Expected a kind of file among {', '.join(SEQUENCE_KINDS)}; got {kind!r}.")
    if not times or not 0 < fps < float("inf"):
        raise ValueError(f"Expected at least one time and a positive rate; got {len(times)} and {fps:g}.")
    recover(folder)
    existing = replaceable(folder, SEQUENCE_FILE, _NAMES, overwrite)
    names = [f"splat_{t:05d}.{kind}" for t in range(len(times))]
    names.append(SEQUENCE_FILE)
    about = {
        "format": kind,
        "fps": fps,
        "times": list(times),
        "axes": _WORLD_FRAME if kind == "glb" else SPLAT_FRAME,
        "entries": names,
    }
    with all_or_nothing(folder, existing, SEQUENCE_FILE, len(times) * _TYPICAL_BYTES) as staging:
        for name, gaussians in zip(names[:-1], _exactly(frames, len(times)), strict=True):
            (staging / name).write_bytes(_CONTENTS[kind](gaussians))
        (staging / SEQUENCE_FILE).write_text(json.dumps(about, indent=2, allow_nan=False) + "\n")
    return [folder / name for name in names]


def _exactly(frames: Iterable[GaussiansAt], count: int) -> Iterable[GaussiansAt]:
    """Yield the frames. Raises ValueError unless there are ``count``."""
    given = 0
    for given, gaussians in enumerate(frames, start=1):
        if given <= count:
            yield gaussians
    if given != count:
        raise ValueError(f"Expected one set of Gaussians per time, {count}; got {given}.")


def write_trajectories(
    path: str | Path, scene: Gaussians, times: Sequence[float] | None = None, *, overwrite: bool = False
) -> int:
    """Write a scene's Gaussians before and while they move, and return the size in bytes.

    The file is a compressed ``.npz`` without pickled objects. Gaussian i is the same in all arrays. All
    lengths are world units, the world is ours (+y up), quaternions are wxyz and of unit length:

    - ``means`` [T, N, 3], ``quats`` [T, N, 4], ``scales`` [T, N, 3] (standard deviations along the own axes)
      and ``opacities`` [T, N] in 0..1, float32: what is seen at each time.
    - ``colours`` [N, 3] float32 in 0..1 (sRGB), at all times.
    - ``canonical_means``, ``canonical_quats``, ``canonical_scales``, ``canonical_opacities``, float32, the
      same without T: the Gaussians before they are moved, about the origin.
    - ``shifts`` [T, 3] float64: the object's own path, already in ``means``; 0 where it has none.
    - ``times`` [T] float64 in 0..1, rising, and ``fps``, float64: frames per second of the scene's clip.

    Args:
        path: of the file.
        scene: the Gaussians.
        times: in 0..1; None: those of the frames that the scene was fitted to.
        overwrite: replace a file that is there.

    Raises:
        FileExistsError, OSError: what `write_file` says.
        ValueError: no times, or what `gaussians_at` says.
    """
    times = tuple(scene.times if times is None else times)
    if not times:
        raise ValueError("Expected at least one time; got none.")
    canonical = gaussians_at(scene, None)
    frames = [gaussians_at(scene, time) for time in times]
    moving = GaussiansAt(*(torch.stack(tensors) for tensors in zip(*frames, strict=True)))
    shifts = [(0.0, 0.0, 0.0) if scene.path is None else scene.path.at(time).tolist() for time in times]
    content = io.BytesIO()
    np.savez_compressed(
        content,
        means=moving.means.numpy(),
        quats=moving.quats.numpy(),
        scales=moving.scales.numpy(),
        opacities=moving.opacities.numpy(),
        colours=canonical.colours.numpy(),
        canonical_means=canonical.means.numpy(),
        canonical_quats=canonical.quats.numpy(),
        canonical_scales=canonical.scales.numpy(),
        canonical_opacities=canonical.opacities.numpy(),
        shifts=np.array(shifts),
        times=np.array(times),
        fps=np.array(float(scene.fps)),
    )
    return write_file(Path(path), content.getvalue(), overwrite)
