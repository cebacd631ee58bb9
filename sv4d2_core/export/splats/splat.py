"""The ``.splat`` file: 32 bytes per Gaussian, for viewers in a browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...fourd.splatting import GaussiansAt
from ..formats.single_file import write_file
from ..pictures import to_bytes
from .frames import checked, in_splat_frame

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
