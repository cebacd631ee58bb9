"""Gaussians as binary glTF, by the extension KHR_gaussian_splatting."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...fourd.splatting import GaussiansAt
from ..formats.glb_container import ARRAY_BUFFER, GLBContainer
from ..formats.linear_colour import srgb_to_linear
from ..formats.single_file import write_file
from .frames import checked
from .ply import SH_0

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
