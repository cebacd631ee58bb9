"""Folders for other programs, all or nothing: data sets to train and test on, and rendered pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ..cameras import Cameras
from ..files import all_or_nothing, replaceable
from ..scene.scene import SceneRendering
from ..scene.targets import packed_normals
from ..video.foreground import masks_of
from ..video.pictures import to_bytes, with_alpha, write_frames
from ..video.write import write_video
from ..views import ViewGrid
from .views_folder import CAMERAS_FILE, cameras_json, check_square, transforms_json

DATASET_FILE, RENDER_FILE, COLMAP_FILE = "dataset.json", "render.json", "colmap.json"

_BYTES_PER_POINT = 120
_DEPTH_LEVELS = 20_000  # of 16 bits per distance of the cameras from the origin

DATASET_NAMES = re.compile(
    r"dataset\.json|cameras\.json|transforms(_train|_val|_test)?\.json|view_\d+\.mp4|frames|masks"
)
COLMAP_NAMES = re.compile(r"colmap\.json|frame_\d{5}")
_NAMES_OF_RENDERS = re.compile(
    r"render\.json|cameras\.json|transforms\.json|view_\d+\.mp4|turntable\.mp4|frames|turntable|depth|normals"
)
_NOT_SEEN = 0.5


def _square_size(grid: ViewGrid, even: bool) -> int:
    """Return the side of a grid's pictures. Raises ValueError: not square, finite or (for videos) even."""
    height, width = grid.images.shape[2:4]
    check_square(height, width, even)
    for name, tensor in (("images", grid.images), ("masks", grid.masks)):
        if tensor is not None and (bad := int((~tensor.isfinite()).sum())):
            raise ValueError(f"Expected finite numbers in the {name}; {bad} are NaN or infinite.")
    return height


def write_export(
    folder: Path,
    marker: str,  # a JSON file of ``about`` and, under "entries", the names of what was written
    names: re.Pattern[str],
    overwrite: bool,
    needed_bytes: int,
    about: dict,
    fill: Callable[[Path], None],
) -> list[Path]:
    """Let ``fill`` write into a staging folder, move it into place and return the entries, marker last."""
    replaced = partial(replaceable, folder, marker, names, overwrite)
    with all_or_nothing(folder, replaced, marker, needed_bytes) as staging:
        fill(staging)
        made = [*sorted(path.name for path in staging.iterdir()), marker]
        _write_json(staging / marker, {**about, "entries": made})
    return [folder / name for name in made]


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def write_dataset(
    folder: str | Path,
    grid: ViewGrid,
    *,
    crop: dict | None = None,  # how the input was cut out of the source clip, JSON values
    overwrite: bool = False,  # replace what an earlier call wrote; entries of other origin are never touched
) -> list[Path]:
    """Write views as a data set for D-NeRF, 4D Gaussian splatting, nerfstudio and their like; all or nothing.

    - ``frames/view_XX/TTTTT.png``: RGBA, colours not multiplied by the alpha, which is the mask.
      ``masks/view_XX/TTTTT.png``: the same masks alone. ``view_XX.mp4``: on white.
    - ``transforms_train.json``, ``transforms_val.json``, ``transforms_test.json``, which readers of D-NeRF's
      data all want, each with all views: names without ".png", ``mask_path``.
    - ``transforms.json`` for nerfstudio: names with ".png", also listed for each split. It names no masks:
      nerfstudio would not look at what is outside of them, and the alpha says it already.
    - ``cameras.json``: K, matrices, angles and the crop, in our world (+y up; that of the others is +z up).

    Without masks all that is not near white is the object. Returns the entries, ``dataset.json`` last.

    Raises:
        FileExistsError: a data set is there and ``overwrite`` is off, or such entries of other origin.
        ValueError: pictures that are not square and even, or hold NaN.
        OSError: the disk is full or read-only; the text says which folder and what to do.
    """
    size, masks = _square_size(grid, even=True), masks_of(grid)

    def fill(staging: Path) -> None:
        _write_pictures(staging, grid, masks)
        for v in range(grid.n_views + 1):
            write_frames(staging / f"masks/view_{v:02d}", masks[:, v])
        shared = grid.cameras, size, grid.fps, grid.frame_times()
        for_d_nerf = transforms_json(*shared, True)
        for_nerfstudio = transforms_json(*shared, False, suffix=".png")
        names = [frame["file_path"] for frame in for_nerfstudio["frames"]]
        for split in ("train", "val", "test"):
            _write_json(staging / f"transforms_{split}.json", for_d_nerf)
            for_nerfstudio[f"{split}_filenames"] = names
        _write_json(staging / "transforms.json", for_nerfstudio)
        _write_json(staging / CAMERAS_FILE, cameras_json(*shared, crop))

    needed = 2 * grid.images.numel()
    return write_export(Path(folder), DATASET_FILE, DATASET_NAMES, overwrite, needed, {}, fill)


def _write_pictures(folder: Path, grid: ViewGrid, masks: Tensor) -> None:
    for v in range(grid.n_views + 1):
        write_frames(folder / f"frames/view_{v:02d}", with_alpha(grid.images[:, v], masks[:, v]))
        write_video(folder / f"view_{v:02d}.mp4", grid.images[:, v], grid.fps)


def _write_surface_maps(folder: Path, rendering: SceneRendering, cameras: Cameras) -> None:
    seen = rendering.alpha >= _NOT_SEEN
    normals = packed_normals(rendering.normal * seen[..., None], cameras)
    depth = rendering.depth * seen * _depth_scale(cameras)
    depth = depth.round().clamp(0, 65535).cpu().numpy().astype(np.uint16)
    for v in range(cameras.n_views + 1):
        write_frames(folder / f"normals/view_{v:02d}", normals[:, v])
        write_frames(folder / f"depth/view_{v:02d}", depth[:, v])


def _depth_scale(cameras: Cameras) -> float:
    """Return the levels of depth pictures per world unit."""
    return _DEPTH_LEVELS / cameras.radius


def write_renders(
    folder: Path,
    grid: ViewGrid | None,
    turntable: tuple[Tensor, Tensor] | None = None,  # pictures [N, H, W, 3] on white, opacity [N, H, W]
    *,
    maps: SceneRendering | None = None,  # of the grid: its depth and normals are written, too
    fps: float = 8.0,  # of the turntable; the grid has its own
    run: dict | None = None,  # how they were made, JSON values
    overwrite: bool = False,
) -> list[Path]:
    """Write rendered views and, or, a turntable; all or nothing. Returns the entries, ``render.json`` last.

    ``frames/view_XX/TTTTT.png`` and ``turntable/NNNNN.png`` are RGBA, the videos on white;
    ``transforms.json`` makes it a data set for nerfstudio. ``depth/view_XX/TTTTT.png`` has 16 bits: distance
    times ``depth_scale`` of ``render.json`` (10,000 with cameras at 2), 0 for no surface.
    ``normals/view_XX/TTTTT.png``: colour (normal + 1) / 2 in the camera's axes (x right, y up, z towards the
    camera), grey for none. Raises as `write_dataset`, and ValueError for nothing to write or no masks.
    """
    if grid is None and turntable is None:
        raise ValueError("Expected views or a turntable to write; got neither.")
    if grid is not None and grid.masks is None:
        raise ValueError("Expected views with masks, which become the transparency; got none.")

    def fill(staging: Path) -> None:
        if grid is not None:
            _write_pictures(staging, grid, masks_of(grid))
            shared = grid.cameras, grid.images.shape[2], grid.fps, grid.frame_times()
            _write_json(staging / CAMERAS_FILE, cameras_json(*shared, None))
            _write_json(staging / "transforms.json", transforms_json(*shared, False, ".png"))
            if maps is not None:
                _write_surface_maps(staging, maps, grid.cameras)
        if turntable is not None:
            images, opacity = turntable
            write_frames(staging / "turntable", with_alpha(images, opacity))
            write_video(staging / "turntable.mp4", images, fps)

    pixels = 0 if grid is None else grid.images.numel() // 3 * (1 if maps is None else 2)
    pixels += 0 if turntable is None else turntable[1].numel()
    scale = {} if grid is None or maps is None else {"depth_scale": _depth_scale(grid.cameras)}
    facts = {**(run or {}), **scale}
    return write_export(folder, RENDER_FILE, _NAMES_OF_RENDERS, overwrite, 5 * pixels, facts, fill)


def refuse_renders(folder: Path, overwrite: bool) -> None:
    """Raise FileExistsError where `write_renders` would."""
    replaceable(folder, RENDER_FILE, _NAMES_OF_RENDERS, overwrite)


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
    """Write the views of every frame as a COLMAP data set, as COLMAP knows no time; all or nothing.

    ``frame_TTTTT/images/view_XX.png`` are RGB on white, ``frame_TTTTT/masks/view_XX.png.png`` the masks
    (COLMAP's names), ``frame_TTTTT/sparse/0`` the model: one PINHOLE camera, poses (world to camera, OpenCV
    axes) and the ``points`` to start from, +y up. ``colmap.json`` tells the times. Returns the entries,
    ``colmap.json`` last. Raises as `write_dataset`.
    """
    size = _square_size(grid, even=False)
    K = grid.cameras.intrinsics(size)
    pinhole = " ".join(repr(float(number)) for number in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    camera = f"# CAMERA_ID MODEL WIDTH HEIGHT fx fy cx cy\n1 PINHOLE {size} {size} {pinhole}\n"
    clouds = [None] * grid.n_frames if points is None else points
    n_points = sum(len(cloud.positions) for cloud in clouds if cloud is not None)
    needed = 4 * grid.images.numel() // 3 + _BYTES_PER_POINT * n_points

    def fill(staging: Path) -> None:
        for t, points in enumerate(clouds):
            frame = staging / f"frame_{t:05d}"
            _write_frame(frame, grid, t)
            model = frame / "sparse/0"
            model.mkdir(parents=True)
            (model / "cameras.txt").write_text(camera)
            (model / "images.txt").write_text(_images_text(grid.cameras))
            (model / "points3D.txt").write_text(_points_text(points))

    about = {"fps": grid.fps, "times": list(grid.frame_times())}
    return write_export(Path(folder), COLMAP_FILE, COLMAP_NAMES, overwrite, needed, about, fill)


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


def _write_frame(folder: Path, grid: ViewGrid, t: int) -> None:
    for kind, suffix, pictures in (("images", "", grid.images), ("masks", ".png", grid.masks)):
        if pictures is not None:
            (folder / kind).mkdir(parents=True)
            for v, picture in enumerate(to_bytes(pictures[t])):
                Image.fromarray(picture).save(folder / kind / f"view_{v:02d}.png{suffix}")
