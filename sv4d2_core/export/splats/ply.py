"""The PLY file of 3D Gaussian splatting, which nearly every viewer of splats reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...fourd.splatting import GaussiansAt
from ..formats.single_file import write_file
from .frames import checked, in_splat_frame

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
