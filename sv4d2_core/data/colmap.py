"""COLMAP models in text, one for each frame.

COLMAP knows no time: a model is one set of cameras and points that all its pictures agree on. So each frame
is a data set of its own, as multi-view video is kept for programs that start from COLMAP. Programs that want
all times in one file are served by ``transforms_train.json``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from ..cameras import Cameras
from ..files import recover, replaceable
from ..video.pictures import to_bytes
from ..views import ViewGrid
from .datasets import square_size, write_export

COLMAP_FILE = "colmap.json"
NAMES = re.compile(r"colmap\.json|frame_\d{5}")
_BYTES_PER_POINT = 120


class ColouredPoints(NamedTuple):
    """Points on the object at one time."""

    positions: Tensor  # [P, 3] world units
    colours: Tensor  # [P, 3] in 0..1


def write_colmap(
    folder: str | Path,
    grid: ViewGrid,
    points: Sequence[ColouredPoints] | None = None,  # one cloud per frame
    *,
    overwrite: bool = False,
) -> list[Path]:
    """Write the views of every frame as a COLMAP data set; all or nothing.

    ``frame_TTTTT/images/view_XX.png`` are RGB on white, ``frame_TTTTT/masks/view_XX.png.png`` the masks where
    there are some, under the names that COLMAP gives them, and ``frame_TTTTT/sparse/0`` the model:
    ``cameras.txt`` (one PINHOLE camera), ``images.txt`` (world to camera, OpenCV axes) and ``points3D.txt``.
    The world is ours, +y up. ``colmap.json`` tells the times.

    ``points`` of each frame are what programs start from; None: no points. The entries made in ``folder``
    are returned, ``colmap.json`` last.

    Raises:
        FileExistsError, OSError: as `write_dataset`.
        ValueError: pictures that are not square, or hold NaN.
    """
    folder = Path(folder)
    size = square_size(grid, even=False)
    K = grid.cameras.intrinsics(size)
    pinhole = " ".join(repr(float(number)) for number in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    camera = f"# CAMERA_ID MODEL WIDTH HEIGHT fx fy cx cy\n1 PINHOLE {size} {size} {pinhole}\n"
    clouds = [None] * grid.n_frames if points is None else points
    recover(folder)
    existing = replaceable(folder, COLMAP_FILE, NAMES, overwrite)
    n_points = sum(len(cloud.positions) for cloud in clouds if cloud is not None)
    needed = 4 * grid.images.numel() // 3 + _BYTES_PER_POINT * n_points

    def fill(staging: Path) -> None:
        for t, points in enumerate(clouds):
            frame = staging / f"frame_{t:05d}"
            _write_pictures(frame, grid, t)
            model = frame / "sparse/0"
            model.mkdir(parents=True)
            (model / "cameras.txt").write_text(camera)
            (model / "images.txt").write_text(_images_text(grid.cameras))
            (model / "points3D.txt").write_text(_points_text(points))

    about = {"fps": grid.fps, "times": list(grid.frame_times())}
    return write_export(folder, COLMAP_FILE, existing, needed, about, fill)


def _images_text(cameras: Cameras) -> str:
    # From camera to world the rotation is the OpenGL camera's after half a turn about x; back, its conjugate.
    lines = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then the 2D points (none)"]
    shifts = cameras.w2c_opencv()[:, :3, 3].tolist()
    for v, ((x, y, z, w), shift) in enumerate(zip(cameras.quaternions_xyzw().tolist(), shifts, strict=True)):
        # Adding 0 makes a negative zero positive.
        numbers = " ".join(repr(number + 0.0) for number in (x, w, z, -y, *shift))
        lines += [f"{v + 1} {numbers} 1 view_{v:02d}.png", ""]
    return "\n".join(lines) + "\n"


def _points_text(points: ColouredPoints | None) -> str:
    lines = ["# POINT3D_ID X Y Z R G B ERROR TRACK[] (empty: the points were not matched)"]
    if points is not None:
        colours = to_bytes(points.colours).tolist()
        for i, (position, colour) in enumerate(zip(points.positions.tolist(), colours, strict=True)):
            lines.append(f"{i + 1} {' '.join(map(repr, position))} {' '.join(map(str, colour))} 0.0")
    return "\n".join(lines) + "\n"


def _write_pictures(folder: Path, grid: ViewGrid, t: int) -> None:
    for kind, suffix, pictures in (("images", "", grid.images), ("masks", ".png", grid.masks)):
        if pictures is not None:
            (folder / kind).mkdir(parents=True)
            for v, picture in enumerate(to_bytes(pictures[t])):
                Image.fromarray(picture).save(folder / kind / f"view_{v:02d}.png{suffix}")
