"""COLMAP models in text, one for each frame.

COLMAP knows no time: a model is one set of cameras and points that all its pictures agree on. A moving object
therefore needs one model per frame, and that is also how multi-view video is kept for programs that start
from COLMAP (a folder per frame with ``images`` and ``sparse/0``): each folder is a data set of its own, which
COLMAP, nerfstudio, gsplat and the 3DGS programs open as they are, and none mixes pictures of different times.
Programs that want all times in one file are served by ``transforms_train.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from ..cameras import Cameras
from ..files import all_or_nothing, recover, replaceable
from ..video.pictures import to_bytes
from ..views import ViewGrid
from .grids import square_size

COLMAP_FILE = "colmap.json"
NAMES = re.compile(r"colmap\.json|frame_\d{5}")
_BYTES_PER_POINT = 120


class ColouredPoints(NamedTuple):
    """Points on the object at one time.

    Args:
        positions: [P, 3] world units.
        colours: [P, 3] in 0..1.
    """

    positions: Tensor
    colours: Tensor


def write_colmap(
    folder: str | Path,
    grid: ViewGrid,
    points: Sequence[ColouredPoints] | None = None,
    *,
    overwrite: bool = False,
) -> list[Path]:
    """Write the views of every frame as a COLMAP data set; all or nothing.

    ``frame_TTTTT/images/view_XX.png`` are RGB on white, ``frame_TTTTT/masks/view_XX.png.png`` the masks where
    there are some, under the names that COLMAP gives them, and ``frame_TTTTT/sparse/0`` the model:
    ``cameras.txt`` (one PINHOLE camera), ``images.txt`` (world to camera, OpenCV axes) and ``points3D.txt``.
    The world is ours, +y up. ``colmap.json`` tells the times.

    Args:
        folder: made if missing; files of other names in it are left alone.
        grid: the views.
        points: of each frame, what programs start from; None: no points.
        overwrite: replace what an earlier call wrote here; entries of other origin are never touched.

    Returns:
        The entries made in ``folder``, ``colmap.json`` last.

    Raises:
        FileExistsError: ``folder`` holds such models already and ``overwrite`` is off, or entries of these
            names that this function did not make.
        ValueError: pictures that are not square, points for another number of frames, numbers that are not
            finite.
        OSError: the disk is full or read-only; the text says which folder and what to do.
    """
    folder = Path(folder)
    size = square_size(grid, even=False)
    clouds = _checked_points(points, grid.n_frames)
    recover(folder)
    existing = replaceable(folder, COLMAP_FILE, NAMES, overwrite)
    n_points = sum(len(cloud.positions) for cloud in clouds if cloud is not None)
    needed = 4 * grid.images.numel() // 3 + _BYTES_PER_POINT * n_points
    frames = [f"frame_{t:05d}" for t in range(grid.n_frames)]
    about = {"fps": grid.fps, "times": list(grid.frame_times()), "entries": [*frames, COLMAP_FILE]}
    with all_or_nothing(folder, existing, COLMAP_FILE, needed) as staging:
        for t, name in enumerate(frames):
            _write_pictures(staging / name, grid, t)
            _write_model(staging / name / "sparse/0", grid.cameras, size, clouds[t])
        (staging / COLMAP_FILE).write_text(json.dumps(about, indent=2) + "\n")
    return [folder / name for name in about["entries"]]


def cameras_text(cameras: Cameras, size: int) -> str:
    """Return ``cameras.txt``: the one pinhole camera that took all pictures."""
    K = cameras.intrinsics(size)
    numbers = (float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]))
    parameters = " ".join(map(repr, numbers))
    return f"# CAMERA_ID MODEL WIDTH HEIGHT fx fy cx cy\n1 PINHOLE {size} {size} {parameters}\n"


def images_text(cameras: Cameras) -> str:
    """Return ``images.txt``: where every camera stands, and an empty line for its 2D points."""
    lines = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then the 2D points (none)"]
    shifts = cameras.w2c_opencv()[:, :3, 3].tolist()
    for v, (quat, shift) in enumerate(zip(_world_to_camera_quats(cameras), shifts, strict=True)):
        numbers = " ".join(repr(number + 0.0) for number in (*quat, *shift))
        lines += [f"{v + 1} {numbers} 1 {_picture_name(v)}", ""]
    return "\n".join(lines) + "\n"


def points_text(points: ColouredPoints | None) -> str:
    """Return ``points3D.txt``: positions, colours, no error and no tracks."""
    lines = ["# POINT3D_ID X Y Z R G B ERROR TRACK[] (empty: the points were not matched)"]
    if points is not None:
        colours = to_bytes(points.colours).tolist()
        for i, (position, colour) in enumerate(zip(points.positions.tolist(), colours, strict=True)):
            lines.append(f"{i + 1} {' '.join(map(repr, position))} {' '.join(map(str, colour))} 0.0")
    return "\n".join(lines) + "\n"


def _picture_name(view: int) -> str:
    return f"view_{view:02d}.png"


def _world_to_camera_quats(cameras: Cameras) -> Iterator[tuple[float, float, float, float]]:
    """Yield the rotation from the world to each camera's OpenCV axes, wxyz.

    From camera to world it is the OpenGL camera's rotation after half a turn about x; back, its conjugate.
    """
    for x, y, z, w in cameras.quaternions_xyzw().tolist():
        yield x, w, z, -y


def _write_pictures(folder: Path, grid: ViewGrid, t: int) -> None:
    kinds = [("images", "", grid.images)]
    if grid.masks is not None:
        kinds.append(("masks", ".png", grid.masks))
    for kind, suffix, pictures in kinds:
        (folder / kind).mkdir(parents=True)
        for v, picture in enumerate(to_bytes(pictures[t])):
            Image.fromarray(picture).save(folder / kind / f"{_picture_name(v)}{suffix}")


def _write_model(folder: Path, cameras: Cameras, size: int, points: ColouredPoints | None) -> None:
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text(cameras_text(cameras, size))
    (folder / "images.txt").write_text(images_text(cameras))
    (folder / "points3D.txt").write_text(points_text(points))


def _checked_points(
    points: Sequence[ColouredPoints] | None, n_frames: int
) -> Sequence[ColouredPoints | None]:
    if points is None:
        return [None] * n_frames
    if len(points) != n_frames:
        raise ValueError(f"Expected points of {n_frames} frames, as the views have; got {len(points)}.")
    for t, cloud in enumerate(points):
        if cloud.positions.shape != cloud.colours.shape or cloud.positions.shape[1:] != (3,):
            raise ValueError(
                f"Expected positions and colours [P, 3]; frame {t} has {list(cloud.positions.shape)} and "
                f"{list(cloud.colours.shape)}."
            )
        if not (cloud.positions.isfinite().all() and cloud.colours.isfinite().all()):
            raise ValueError(f"Expected finite points; frame {t} has NaN or infinite numbers.")
    return points
