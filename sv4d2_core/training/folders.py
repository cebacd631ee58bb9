"""Users' own renders as training data: folders of scenes, read and checked before training starts.

A scene is a folder as `write_views` leaves it, or a D-NeRF or nerfstudio data set whose pictures form a full
grid of cameras and times.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

from ..export.clips_reader import VIDEO_SUFFIXES
from ..export.dataset_reader import read_dataset
from ..export.folder import CAMERAS_FILE, RUN_FILE, read_views
from ..export.transforms_reader import TRANSFORMS_FILES, transforms_file
from ..video.foreground import masks_of
from ..video.pictures import IMAGE_SUFFIXES, natural_key
from ..views import ViewGrid
from .scene_faults import FEWEST_FRAMES, wrong_cameras, wrong_matrices, wrong_pictures, wrong_views

_log = logging.getLogger(__name__)
# Lines of a refusal.
_LISTED = 20


def find_training_scenes(root: Path) -> list[Path]:
    """Return the scenes at ``root`` in natural order: itself, or the folders in it that are scenes.

    Raises:
        FileNotFoundError: there is nothing at ``root``.
    """
    root = Path(root).expanduser().resolve()
    if not root.exists():
        raise FileNotFoundError(f"Expected a folder with training scenes; there is nothing at {root}.")
    return [root] if _is_scene(root) else [folder for folder in _folders(root) if _is_scene(folder)]


def read_training_scene(path: Path, size: int) -> ViewGrid:
    """Return the views of a scene as square pictures of ``size`` pixels, with masks and without latents.

    Raises:
        FileNotFoundError: pictures or camera files are missing.
        ValueError: damaged files, cameras on no orbit, a grid with gaps, pictures that do not fit together.
    """
    return _read(Path(path).expanduser()).resized(size)


def check_training_folder(root: Path, *, size: int, n_views: int, n_frames: int) -> list[Path]:
    """Return the scenes at ``root`` after reading every picture of all of them.

    Args:
        root: a scene, or a folder of scenes.
        size: pixels of the square pictures to train on; those of a scene must not be smaller.
        n_views: V of the model: a scene needs one view more, the input.
        n_frames: T of the model. Clips of fewer frames (at least 2) are played back and forth, which is said.

    Raises:
        FileNotFoundError: there is nothing at ``root``.
        ValueError: all that is wrong, scene by scene.
    """
    scenes = find_training_scenes(root)
    root = Path(root).expanduser().resolve()
    wrong: dict[str, list[str]] = {}
    short = []
    _log.info("Reading all pictures of %d scenes before training starts.", len(scenes))
    for place in scenes if scenes == [root] else _folders(root):
        if place not in scenes:
            wrong.update({place.name: why} if (why := _why_no_scene(place)) else {})
            continue
        grid, wrong[place.name] = _checked(place, size, n_views)
        if grid is not None and grid.n_frames < n_frames:
            short.append(f"{place.name} ({grid.n_frames})")
    if not scenes and not any(wrong.values()):
        raise ValueError(_nothing_in(root))
    if any(wrong.values()):
        raise ValueError(_refusal(root, wrong, size, n_views))
    if short:
        _log.warning(
            "%d of %d scenes have fewer than the model's %d frames and are played back and forth: %s%s.",
            len(short),
            len(scenes),
            n_frames,
            ", ".join(short[:3]),
            " ..." if len(short) > 3 else "",
        )
    return scenes


def _is_scene(place: Path) -> bool:
    if place.is_file():
        return place.suffix.lower() == ".json"
    return (place / CAMERAS_FILE).is_file() or transforms_file(place) is not None


def _folders(root: Path) -> list[Path]:
    entries = root.iterdir() if root.is_dir() else ()
    return sorted((e for e in entries if e.is_dir() and not e.name.startswith(".")), key=natural_key)


def _is_dataset(place: Path) -> bool:
    is_ours = all((place / name).is_file() for name in (RUN_FILE, CAMERAS_FILE))
    return place.is_file() or (transforms_file(place) is not None and not is_ours)


def _read(place: Path) -> ViewGrid:
    if _is_dataset(place):
        _check_kinds_of_pictures(place)
    grid = read_dataset(place) if _is_dataset(place) else read_views(place)
    height, width = grid.images.shape[2:4]
    if height != width:
        raise ValueError(f"Expected square pictures; got {width} x {height}. Crop or pad them.")
    masks = masks_of(grid)
    return replace(grid, masks=masks, latents=None)


def _check_kinds_of_pictures(place: Path) -> None:
    """Raise ValueError for frames in files such as OpenEXR.

    FFmpeg would decode them, but as if linear light were colours, and NaN as some colour without a word.
    """
    files = _frame_files(place)
    odd = [file for file in files if file.is_file() and file.suffix.lower() not in IMAGE_SUFFIXES]
    if odd:
        raise ValueError(
            f"Expected pictures ({' '.join(IMAGE_SUFFIXES)}); {len(odd)} of {len(files)} frames are of "
            f"another kind, the first is {odd[0]}. Save them as 8-bit PNG, free of NaN and infinite values."
        )


def _frame_files(place: Path) -> list[Path]:
    """Return the files of a scene's frames as its camera file states them; none when that is damaged."""
    if not _is_dataset(place):
        return sorted((place / "frames").rglob("*.png"), key=natural_key)
    file = place if place.is_file() else transforms_file(place)
    try:
        frames = json.loads(file.read_text(encoding="utf-8"))["frames"] if file else []
        return [_frame_file(place if place.is_dir() else place.parent, f["file_path"]) for f in frames]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def _frame_file(folder: Path, stated: str) -> Path:
    """Return a frame's file; a path without extension means PNG. ValueError: it leads out of the folder."""
    file = folder / os.path.normpath(stated.replace("\\", "/"))
    if ".." in file.relative_to(folder).parts:
        raise ValueError(f"Expected a file inside {folder}; got {stated!r}.")
    is_complete = file.is_file() or file.suffix.lower() in IMAGE_SUFFIXES
    return file if is_complete else file.with_name(f"{file.name}.png")


def _checked(scene: Path, size: int, n_views: int) -> tuple[ViewGrid | None, list[str]]:
    """Return the views of a scene, None where they cannot be read, and what is wrong with it."""
    try:
        grid = _read(scene)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        return None, [reason, *wrong_pictures(_frame_files(scene), reason)]
    matrices = () if _is_dataset(scene) else wrong_matrices(scene / CAMERAS_FILE, grid.cameras)
    return grid, [*matrices, *wrong_cameras(grid.cameras, n_views), *wrong_views(grid, size)]


def _why_no_scene(folder: Path) -> list[str]:
    """Return why a folder beside the scenes is none; nothing when it holds no pictures either."""
    if scenes := [scene.name for scene in _folders(folder) if _is_scene(scene)]:
        return [
            f"Expected a scene; it holds {len(scenes)} of them, the first is {scenes[0]}. Give that folder."
        ]
    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    found = sum(file.suffix.lower() in suffixes for file in folder.rglob("*"))
    files = f"{CAMERAS_FILE}, {' or '.join(TRANSFORMS_FILES)}"
    return [f"Expected a file with cameras ({files}); got {found} pictures without one."] if found else []


def _nothing_in(root: Path) -> str:
    entries = len(list(root.iterdir())) if root.is_dir() else 0
    what = f"{entries} entries, no scene among them" if entries else "nothing in it"
    return (
        f"Expected training scenes in {root}: folders with {TRANSFORMS_FILES[0]}, or folders of views as "
        f"`sv4d2 scenes` writes them; got {what}. Give the folder that holds your renders."
    )


def _refusal(root: Path, wrong: dict[str, list[str]], size: int, n_views: int) -> str:
    lines = [f"{name}: {problem}" for name, problems in wrong.items() for problem in problems]
    shown = [f"  {line}" for line in lines[:_LISTED]]
    if len(lines) > _LISTED:
        shown.append(f"  and {len(lines) - _LISTED} more")
    spoilt = sum(map(bool, wrong.values()))
    head = (
        f"Expected training scenes of {n_views + 1} or more cameras and {FEWEST_FRAMES} or more frames of "
        f"at least {size} x {size} pixels in {root}; {spoilt} of {len(wrong)} cannot be used:"
    )
    end = (
        "Repair these scenes or move them out of the folder; `sv4d2 curate` centres objects, and sorts out "
        "scenes that can be read but would spoil the training."
    )
    return "\n".join([head, *shown, end])
