"""A data set that reconstruction programs train and test on: RGBA pictures, masks, cameras and times."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..video.foreground import masks_of
from ..views import ViewGrid
from .dataset import cameras_json, transforms_json
from .folder import CAMERAS_FILE
from .grid_checks import square_size
from .own_entries import replaceable
from .pictures import with_alpha, write_frames
from .staging import all_or_nothing, recover
from .video import write_video

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
