"""Reads views in any form that is understood: a folder of ours, a data set, or plain clips."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..cameras import Cameras
from ..video.pictures import natural_key
from ..views import ViewGrid
from .clips_reader import find_clips, read_clips
from .dataset_reader import read_dataset
from .folder import CAMERAS_FILE, RUN_FILE, read_views
from .transforms_reader import TRANSFORMS_FILES, transforms_file


def read_any_views(
    path: str | Path,
    cameras: Cameras | None = None,
    input_view: ViewGrid | Tensor | None = None,
    frames: int | None = None,
) -> ViewGrid:
    """Return the grid of views at a place, in the first of these forms that it has.

    1. A folder as `write_views` leaves it (``run.json`` and ``cameras.json``): `read_views`.
    2. A transforms file, or a folder with one: `read_dataset`.
    3. A folder with one clip per view, or a pattern that gives the clips: `read_clips`.

    Args:
        path: the folder, file or pattern.
        cameras: cameras of plain clips; the other forms bring their own.
        input_view: view 0 of plain clips without one; see `read_clips`.
        frames: of plain clips, take only the first so many frames; None: all.

    Raises:
        FileNotFoundError: nothing of these kinds is there, or files of it are missing.
        ValueError: plain clips without cameras; what `read_views`, `read_dataset` and `read_clips` refuse.
    """
    place = Path(path).expanduser()
    if _is_ours(place):
        return read_views(place)
    if _is_dataset(place) or place.suffix.lower() == ".json":
        return read_dataset(place)
    if not find_clips(place):
        raise FileNotFoundError(_nothing_at(place))
    if cameras is None:
        raise ValueError(
            f"Expected cameras for the plain clips in {path}; got none, and clips do not say where they were "
            f"taken from. Give --cameras FILE ({CAMERAS_FILE} or transforms.json), or --azimuths and "
            f"--elevations."
        )
    return read_clips(place, cameras, input_view, frames)


def find_scenes(path: str | Path) -> dict[str, Path]:
    """Return the places of views at ``path`` by the scene's name: itself, or each folder in it that is one.

    Raises:
        FileNotFoundError: nothing of the kinds that `read_any_views` understands is there.
    """
    place = Path(path).expanduser()
    folders = sorted(place.iterdir(), key=natural_key) if place.is_dir() else []
    # Folders of views hold a contact sheet: to look for clips first would take each for a clip of one image.
    for holds_views in (lambda place: _is_ours(place) or _is_dataset(place), find_clips):
        if holds_views(place):
            return {place.stem: place}
        if scenes := {entry.name: entry for entry in folders if entry.is_dir() and holds_views(entry)}:
            return scenes
    raise FileNotFoundError(_nothing_at(place))


def _is_ours(place: Path) -> bool:
    return all((place / name).is_file() for name in (RUN_FILE, CAMERAS_FILE))


def _is_dataset(place: Path) -> bool:
    is_file = place.suffix.lower() == ".json" and place.is_file()
    return is_file or (place.is_dir() and transforms_file(place) is not None)


def _nothing_at(place: Path) -> str:
    return (
        f"Expected views at {place}; {'none are' if place.exists() else 'nothing is'} there. Three kinds are "
        f"understood: a folder of views with {RUN_FILE} and {CAMERAS_FILE}; a data set with "
        f"{' or '.join(TRANSFORMS_FILES)}; a folder with one clip per view, videos or sub-folders of images."
    )
