"""Folders for other programs, all or nothing: data sets to train and test on, and rendered pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..cameras import Cameras
from ..files import all_or_nothing, recover, replaceable
from ..scene.targets import packed_normals
from ..video.foreground import masks_of
from ..video.pictures import with_alpha, write_frames
from ..video.write import write_video
from ..views import ViewGrid
from .views_folder import CAMERAS_FILE, cameras_json, transforms_json

DATASET_FILE, RENDER_FILE = "dataset.json", "render.json"

# Levels of a 16-bit picture per world unit: up to 6.5 world units, with the cameras at 2.
_DEPTH_SCALE = 10_000

NAMES = re.compile(
    r"dataset\.json|cameras\.json|transforms(_train|_val|_test)?\.json|view_\d+\.mp4|frames|masks"
)
_NAMES_OF_RENDERS = re.compile(
    r"render\.json|cameras\.json|transforms\.json|view_\d+\.mp4|turntable\.mp4|frames|turntable|depth|normals"
)
_NOT_SEEN = 0.5


def square_size(grid: ViewGrid, even: bool) -> int:
    """Return the side of a grid's pictures: square, finite, even where videos need it; else ValueError."""
    height, width = grid.images.shape[2:4]
    if height != width or (even and height % 2):
        expected = "square images of even size" if even else "square images"
        raise ValueError(
            f"Expected {expected} (the cameras are square); got {height} x {width}. Resize or pad the views "
            f"first."
        )
    for name, tensor in (("images", grid.images), ("masks", grid.masks)):
        if tensor is not None and (bad := int((~tensor.isfinite()).sum())):
            raise ValueError(f"Expected finite numbers in the {name}; {bad} are NaN or infinite.")
    return height


def write_export(
    folder: Path,
    marker: str,
    existing: Sequence[str],
    needed_bytes: int,
    about: dict,
    fill: Callable[[Path], None],
) -> list[Path]:
    """Let ``fill`` write into a staging folder, and move what it wrote into place: see `all_or_nothing`.

    ``marker`` holds ``about`` and, under "entries", the names of what was written; their paths are returned,
    its own last.
    """
    with all_or_nothing(folder, existing, marker, needed_bytes) as staging:
        fill(staging)
        names = [*sorted(path.name for path in staging.iterdir()), marker]
        _write_json(staging / marker, {**about, "entries": names})
    return [folder / name for name in names]


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def write_dataset(
    folder: str | Path,
    grid: ViewGrid,
    *,
    crop: dict | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write views as a data set for D-NeRF, 4D Gaussian splatting, nerfstudio and their like; all or nothing.

    - ``frames/view_XX/TTTTT.png``: RGBA, colours not multiplied by the alpha, which is the mask.
      ``masks/view_XX/TTTTT.png``: the same masks alone. ``view_XX.mp4``: on white.
    - ``transforms_train.json``, ``transforms_val.json``, ``transforms_test.json``, which readers of D-NeRF's
      data all want, each with all views: names without ".png", ``mask_path``.
    - ``transforms.json`` for nerfstudio: names with ".png", also listed for each split. It names no masks:
      nerfstudio would not look at what is outside of them, and the alpha says it already.
    - ``cameras.json``: K, matrices, angles and the crop, in our world (+y up; that of the others is +z up).

    Where the grid has no masks, all that is not near white is the object. The entries made in ``folder`` are
    returned, ``dataset.json`` last.

    Args:
        crop: how the input was cut out of the source clip, JSON values, or None.
        overwrite: replace what an earlier call wrote here; entries of other origin are never touched.

    Raises:
        FileExistsError: ``folder`` holds a data set already and ``overwrite`` is off, or entries of these
            names that this function did not make.
        ValueError: pictures that are not square and even, or hold NaN.
        OSError: the disk is full or read-only; the text says which folder and what to do.
    """
    folder = Path(folder)
    size = square_size(grid, even=True)
    recover(folder)
    existing = replaceable(folder, DATASET_FILE, NAMES, overwrite)
    masks = masks_of(grid)

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

    return write_export(folder, DATASET_FILE, existing, 2 * grid.images.numel(), {}, fill)


def _write_pictures(folder: Path, grid: ViewGrid, masks: Tensor) -> None:
    """Write ``frames/view_XX/TTTTT.png``, RGBA, and ``view_XX.mp4``, on white."""
    for v in range(grid.n_views + 1):
        write_frames(folder / f"frames/view_{v:02d}", with_alpha(grid.images[:, v], masks[:, v]))
        write_video(folder / f"view_{v:02d}.mp4", grid.images[:, v], grid.fps)


@dataclass(frozen=True)
class SurfaceMaps:
    """Depth and normals of a grid of pictures."""

    depth: Tensor  # [T, V + 1, H, W] distance from the camera centre along the ray, world units; 0: nothing
    normals: Tensor  # [T, V + 1, H, W, 3] unit in the world; 0: nothing
    alpha: Tensor  # [T, V + 1, H, W]; below a half there is no surface


def _write_surface_maps(folder: Path, maps: SurfaceMaps, cameras: Cameras) -> None:
    seen = maps.alpha >= _NOT_SEEN
    colours = packed_normals(maps.normals * seen[..., None], cameras)
    levels = (maps.depth * seen * _DEPTH_SCALE).round().clamp(0, 65535).cpu().numpy().astype(np.uint16)
    for view in range(cameras.n_views + 1):
        name = f"view_{view:02d}"
        write_frames(folder / "normals" / name, colours[:, view])
        place = folder / "depth" / name
        place.mkdir(parents=True, exist_ok=True)
        for t, picture in enumerate(levels[:, view]):
            Image.fromarray(picture).save(place / f"{t:05d}.png")


def write_renders(
    folder: Path,
    grid: ViewGrid | None,
    turntable: tuple[Tensor, Tensor] | None = None,
    *,
    maps: SurfaceMaps | None = None,
    fps: float = 8.0,
    run: dict | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write rendered views and, or, a turntable; all or nothing. Returns the entries, ``render.json`` last.

    ``frames/view_XX/TTTTT.png`` and ``turntable/NNNNN.png`` are RGBA, the videos are on white.
    ``transforms.json`` makes the folder a D-NeRF style data set. ``depth/view_XX/TTTTT.png`` has 16 bits: the
    distance times 10,000, 0 where there is no surface. In ``normals/view_XX/TTTTT.png`` a colour is
    (normal + 1) / 2 in the camera's axes (x right, y up, z towards the camera), grey where there is none.

    Args:
        grid: views with masks at their times, or None.
        turntable: pictures [N, H, W, 3] on white and opacity [N, H, W], one camera and time each, or None.
        maps: of the grid, or None.
        fps: of the turntable; the grid has its own.
        run: how they were made, JSON values.

    Raises:
        FileExistsError, OSError: as `write_dataset`.
        ValueError: neither views nor a turntable, or views without masks.
    """
    folder = Path(folder)
    recover(folder)
    existing = refuse_renders(folder, overwrite)
    if grid is None and turntable is None:
        raise ValueError("Expected views or a turntable to write; got neither.")
    if grid is not None and grid.masks is None:
        raise ValueError("Expected views with masks, which become the transparency; got none.")

    def fill(staging: Path) -> None:
        if grid is not None:
            _write_pictures(staging, grid, masks_of(grid))
            shared = grid.cameras, grid.images.shape[2], grid.fps, grid.frame_times()
            _write_json(staging / CAMERAS_FILE, cameras_json(*shared, None))
            _write_json(staging / "transforms.json", transforms_json(*shared, has_masks=False))
            if maps is not None:
                _write_surface_maps(staging, maps, grid.cameras)
        if turntable is not None:
            images, opacity = turntable
            write_frames(staging / "turntable", with_alpha(images, opacity))
            write_video(staging / "turntable.mp4", images, fps)

    pixels = 0 if grid is None else grid.images.numel() // 3 * (1 if maps is None else 2)
    pixels += 0 if turntable is None else turntable[1].numel()
    return write_export(folder, RENDER_FILE, existing, 5 * pixels, run or {}, fill)


def refuse_renders(folder: Path, overwrite: bool) -> list[str]:
    """Return which entries of ``folder`` new renders would replace; raise as `write_renders` does."""
    return replaceable(folder, RENDER_FILE, _NAMES_OF_RENDERS, overwrite)
