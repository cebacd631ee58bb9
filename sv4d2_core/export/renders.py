"""Writes pictures of a scene: frames with transparency and a video for each view, and the cameras."""

from __future__ import annotations

import json
import re
from pathlib import Path

from torch import Tensor

from ..views import ViewGrid
from .dataset import cameras_json, transforms_json
from .folder import CAMERAS_FILE
from .own_entries import replaceable
from .pictures import with_alpha, write_frames
from .staging import all_or_nothing, recover
from .surface_maps import SurfaceMaps, write_surface_maps
from .video import write_video

RENDER_FILE = "render.json"
TURNTABLE = "turntable"
_NAMES = re.compile(
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
        _NAMES,
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
