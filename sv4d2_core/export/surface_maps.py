"""Writes what a scene's surface is like in its pictures: depth and normals as PNG files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..cameras import Cameras
from ..fourd.normals import packed_normals
from .pictures import write_frames

DEPTH, NORMALS = "depth", "normals"
# Levels of a 16-bit picture per world unit: up to 6.5 world units, with the cameras at 2.
DEPTH_SCALE = 10_000
_NOT_SEEN = 0.5


@dataclass(frozen=True)
class SurfaceMaps:
    """Depth and normals of a grid of pictures.

    Args:
        depth: [T, V + 1, H, W] distance from the camera centre along the ray, world units; 0: nothing.
        normals: [T, V + 1, H, W, 3] unit in the world; 0: nothing.
        alpha: [T, V + 1, H, W]; below a half there is no surface.
    """

    depth: Tensor
    normals: Tensor
    alpha: Tensor


def write_surface_maps(folder: Path, maps: SurfaceMaps, cameras: Cameras) -> None:
    """Write ``depth/view_XX/TTTTT.png`` (16 bits) and ``normals/view_XX/TTTTT.png``.

    A depth picture holds the distance times 10,000, 0 where there is no surface. A normal's colour is
    (normal + 1) / 2 in the camera's axes (x right, y up, z towards the camera), grey where there is none.
    """
    seen = maps.alpha >= _NOT_SEEN
    colours = packed_normals(maps.normals * seen[..., None], cameras)
    levels = (maps.depth * seen * DEPTH_SCALE).round().clamp(0, 65535).cpu().numpy().astype(np.uint16)
    for view in range(cameras.n_views + 1):
        name = f"view_{view:02d}"
        write_frames(folder / NORMALS / name, colours[:, view])
        place = folder / DEPTH / name
        place.mkdir(parents=True, exist_ok=True)
        for t, picture in enumerate(levels[:, view]):
            Image.fromarray(picture).save(place / f"{t:05d}.png")
