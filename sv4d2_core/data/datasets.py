"""A data set that reconstruction programs train and test on: RGBA pictures, masks, cameras and times."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
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
from .grids import square_size
from .views_folder import CAMERAS_FILE, cameras_json, transforms_json

DATASET_FILE = "dataset.json"
SPLITS = ("train", "val", "test")
_NAMES = re.compile(
    r"dataset\.json|cameras\.json|transforms(_train|_val|_test)?\.json|view_\d+\.mp4|frames|masks"
)


def write_dataset(
    folder: str | Path,
    grid: ViewGrid,
    *,
    held_out: Sequence[int] = (),
    crop: dict | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write views as a data set for D-NeRF, 4D Gaussian splatting, nerfstudio and their like; all or nothing.

    - ``frames/view_XX/TTTTT.png``: RGBA, colours not multiplied by the alpha, which is the mask.
      ``masks/view_XX/TTTTT.png``: the same masks alone. ``view_XX.mp4``: on white.
    - ``transforms_train.json``, ``transforms_val.json``, ``transforms_test.json``, which readers of D-NeRF's
      data all want: names without ".png", times from 0 in each of them, ``mask_path``.
    - ``transforms.json`` for nerfstudio: all views, names with ".png", the same split as lists of names. It
      names no masks: nerfstudio would not look at what is outside of them, and the alpha says it already.
    - ``cameras.json``: K, matrices, angles and the crop, in our world (+y up; that of the others is +z up).

    Args:
        folder: made if missing; files of other names in it are left alone.
        grid: square views of even size; where it has no masks, all that is not near white is the object.
        held_out: views (1 to V) for validation and test, kept out of training. None of them: all views are
            for training, and the other two files list the same views again.
        crop: how the input was cut out of the source clip, JSON values, or None.
        overwrite: replace what an earlier call wrote here; entries of other origin are never touched.

    Returns:
        The entries made in ``folder``, ``dataset.json`` last.

    Raises:
        FileExistsError: ``folder`` holds a data set already and ``overwrite`` is off, or entries of these
            names that this function did not make.
        ValueError: pictures that are not square and even or hold NaN, views to hold out that are not there or
            leave fewer than two for training.
        OSError: the disk is full or read-only; the text says which folder and what to do.
    """
    folder = Path(folder)
    size = square_size(grid, even=True)
    views = _split(grid, held_out)
    recover(folder)
    existing = replaceable(folder, DATASET_FILE, _NAMES, overwrite)
    texts = {
        name: json.dumps(content, indent=2) + "\n"
        for name, content in _files(grid, size, views, crop).items()
    }
    with all_or_nothing(folder, existing, DATASET_FILE, 6 * grid.images.numel() // 3) as staging:
        _write_pictures(staging, grid, masks_of(grid))
        for name, text in texts.items():
            (staging / name).write_text(text)
        names = [*sorted(path.name for path in staging.iterdir()), DATASET_FILE]
        about = {"views": views, "held_out": sorted(set(held_out)), "entries": names}
        (staging / DATASET_FILE).write_text(json.dumps(about, indent=2) + "\n")
    return [folder / name for name in names]


def _files(grid: ViewGrid, size: int, views: dict[str, list[int]], crop: dict | None) -> dict[str, dict]:
    """Return the contents of the JSON files by name."""
    shared = grid.cameras, size, grid.fps, grid.frame_times()
    files = {
        f"transforms_{split}.json": transforms_json(*shared, True, views=views[split]) for split in SPLITS
    }
    everything = transforms_json(*shared, False, suffix=".png")
    for split in SPLITS:
        listed = transforms_json(*shared, False, views=views[split], suffix=".png")["frames"]
        everything[f"{split}_filenames"] = [frame["file_path"] for frame in listed]
    return {**files, "transforms.json": everything, CAMERAS_FILE: cameras_json(*shared, crop)}


def _split(grid: ViewGrid, held_out: Sequence[int]) -> dict[str, list[int]]:
    """Return the views for training, validation and test."""
    n_views = grid.n_views
    if wrong := [view for view in held_out if not 1 <= view <= n_views]:
        raise ValueError(
            f"Expected views from 1 to {n_views} to hold out (0, the input, is always for training); got "
            f"{wrong[0]}."
        )
    training = [view for view in range(n_views + 1) if view not in held_out]
    if len(training) < 2:
        raise ValueError(
            f"Expected at least 2 views for training; holding out {len(set(held_out))} of {n_views + 1} "
            f"leaves {len(training)}. Hold out fewer."
        )
    testing = sorted(set(held_out)) or training
    return {"train": training, "val": testing, "test": testing}


def _write_pictures(folder: Path, grid: ViewGrid, masks: Tensor) -> None:
    for v in range(grid.n_views + 1):
        name = f"view_{v:02d}"
        write_frames(folder / "frames" / name, with_alpha(grid.images[:, v], masks[:, v]))
        write_frames(folder / "masks" / name, masks[:, v])
        write_video(folder / f"{name}.mp4", grid.images[:, v], grid.fps)


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


RENDER_FILE = "render.json"
TURNTABLE = "turntable"
_NAMES_OF_RENDERS = re.compile(
    r"render\.json|cameras\.json|transforms\.json|view_\d+\.mp4|turntable\.mp4|frames|turntable|depth|normals"
)


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
    """Write rendered views and, or, a turntable.

    ``frames/view_XX/TTTTT.png`` and ``turntable/NNNNN.png`` are RGBA, the videos are on white.
    ``transforms.json`` makes the folder a D-NeRF style data set. All or nothing; ``render.json`` comes last.
    For depth and normals see `write_surface_maps`.

    Args:
        folder: made if missing; files of other names in it are left alone.
        grid: views with masks at their times, or None.
        turntable: pictures [N, H, W, 3] on white and opacity [N, H, W], one camera and time each, or None.
        maps: of the grid, or None.
        fps: of the turntable; the grid has its own.
        run: how they were made, JSON values.
        overwrite: replace what an earlier call wrote here; entries of other origin are never touched.

    Returns:
        The entries made in ``folder``, ``render.json`` last.

    Raises:
        FileExistsError: ``folder`` holds renders already and ``overwrite`` is off, or entries of these names
            that this function did not make.
        ValueError: neither views nor a turntable, or views without masks.
        OSError: the disk is full or read-only; the text says which folder and what to do.
    """
    folder = Path(folder)
    recover(folder)
    existing = refuse_renders(folder, overwrite)
    if grid is None and turntable is None:
        raise ValueError("Expected views or a turntable to write; got neither.")
    with all_or_nothing(folder, existing, RENDER_FILE, _upper_estimate(grid, maps, turntable)) as staging:
        if grid is not None:
            _write_grid(staging, grid)
            if maps is not None:
                write_surface_maps(staging, maps, grid.cameras)
        if turntable is not None:
            images, opacity = turntable
            write_frames(staging / TURNTABLE, with_alpha(images, opacity))
            write_video(staging / f"{TURNTABLE}.mp4", images, fps)
        names = [*sorted(path.name for path in staging.iterdir()), RENDER_FILE]
        (staging / RENDER_FILE).write_text(json.dumps({**(run or {}), "entries": names}, indent=2) + "\n")
    return [folder / name for name in names]


def refuse_renders(folder: Path, overwrite: bool) -> list[str]:
    """Return which entries of ``folder`` new renders would replace.

    Raises:
        FileExistsError: they may not, as `write_renders` says.
    """
    return replaceable(
        folder,
        RENDER_FILE,
        _NAMES_OF_RENDERS,
        overwrite,
        earlier="renders",
        foreign="which this program did not render and never replaces",
    )


def _write_grid(folder: Path, grid: ViewGrid) -> None:
    if grid.masks is None:
        raise ValueError("Expected views with masks, which become the transparency; got none.")
    for v in range(grid.n_views + 1):
        write_frames(folder / "frames" / f"view_{v:02d}", with_alpha(grid.images[:, v], grid.masks[:, v]))
        write_video(folder / f"view_{v:02d}.mp4", grid.images[:, v], grid.fps)
    size, times = grid.images.shape[2], grid.frame_times()
    cameras, transforms = (
        cameras_json(grid.cameras, size, grid.fps, times, None),
        transforms_json(grid.cameras, size, grid.fps, times, has_masks=False),
    )
    (folder / CAMERAS_FILE).write_text(json.dumps(cameras, indent=2) + "\n")
    (folder / "transforms.json").write_text(json.dumps(transforms, indent=2) + "\n")


def _upper_estimate(
    grid: ViewGrid | None, maps: SurfaceMaps | None, turntable: tuple[Tensor, Tensor] | None
) -> int:
    """Return the bytes of the uncompressed pictures."""
    pixels = 0 if grid is None else grid.images.numel() // 3 * (1 if maps is None else 2)
    return 5 * (pixels + (0 if turntable is None else turntable[1].numel()))
