"""Reads views in any form that is understood: a folder of ours, a data set, or plain clips."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras
from ..scene.targets import unpacked_normals
from ..video.foreground import opacity_source
from ..video.pictures import read_frames
from ..video.read import DEFAULT_FPS, IMAGE_SUFFIXES, Clip, mask_opacity, natural_key, read_pictures
from ..views import ViewGrid
from .clips import ViewClip, find_clips, grid_of_clips, read_clips
from .transforms import TRANSFORMS_FILES, Frame, Transforms, read_transforms, transforms_file
from .views_folder import CAMERAS_FILE, RUN_FILE, read_views

# Times closer than this are one time.
_SAME_TIME = 1e-6
# Largest distance of a time from even spacing, as a share of the whole span.
_LARGEST_TIME_ERROR = 1e-3


def read_dataset(path: str | Path) -> ViewGrid:
    """Return the grid of views of a D-NeRF or nerfstudio data set.

    Its cameras become an orbit with the first camera as input view (see `fit_orbit`). Only the order of the
    times is kept: frame t of T stands for the time t / (T - 1). A file without times is a single time.
    Transparent pictures are put on white and their alpha is the mask; in a view without transparency the
    files of ``mask_path`` are, else all that is not near white.

    Args:
        path: a transforms file, or a folder with ``transforms_train.json`` or ``transforms.json`` (the first
            that is there).

    Raises:
        FileNotFoundError: no such file, or a picture is missing.
        ValueError: damaged files, cameras on no orbit, a grid with gaps, times that are not evenly spaced,
            paths that lead out of the folder, pictures of different sizes, a background that is not white.
    """
    place = Path(path).expanduser()
    file = transforms_file(place) if place.is_dir() else place
    if file is None:
        raise FileNotFoundError(f"Expected {' or '.join(TRANSFORMS_FILES)} in {path}; there is none.")
    transforms = read_transforms(file)
    fps = DEFAULT_FPS if transforms.fps is None else transforms.fps
    return grid_of_clips(_clips(_frames_by_view(transforms), file.parent, fps), transforms.cameras)


def _frames_by_view(transforms: Transforms) -> list[list[Frame]]:
    """Return the frames of each view in order of time. Raises ValueError when any are missing."""
    path, n_cameras = transforms.path, transforms.cameras.n_views + 1
    times = _distinct_times(transforms)
    grid: dict[tuple[int, int], Frame] = {}
    for frame in transforms.frames:
        nearest = int(np.abs(times - (frame.time or 0.0)).argmin())
        other = grid.setdefault((frame.view, nearest), frame)
        if other is not frame:
            raise ValueError(
                f"Expected one picture for each camera and time; {other.name} and {frame.name} share both "
                f"(view {frame.view}, time {times[nearest]:g}). Remove one of them."
            )
    missing = [(v, t) for v in range(n_cameras) for t in range(len(times)) if (v, t) not in grid]
    if missing:
        view, t = missing[0]
        raise ValueError(
            f"Expected a full grid of {n_cameras} cameras x {len(times)} times in {path}; got {len(grid)} of "
            f"{n_cameras * len(times)} pictures. The first that is missing is view {view} at time "
            f"{times[t]:g}. Leave out cameras or times that are not complete; the path of a single moving "
            f"camera is no such grid."
        )
    _check_spacing(times, path)
    return [[grid[v, t] for t in range(len(times))] for v in range(n_cameras)]


def _distinct_times(transforms: Transforms) -> np.ndarray:
    """Return the times of all frames in ascending order, float64 [T]; 0 for a file without times."""
    timeless = [frame for frame in transforms.frames if frame.time is None]
    if timeless and len(timeless) < len(transforms.frames):
        raise ValueError(
            f"Expected a time in every frame, or in none; {len(timeless)} of {len(transforms.frames)} have "
            f"none, the first is {timeless[0].name}. Add the times."
        )
    times = np.unique([frame.time or 0.0 for frame in transforms.frames])
    return times[np.diff(times, prepend=-np.inf) > _SAME_TIME]


def _check_spacing(times: np.ndarray, path: Path) -> None:
    if len(times) < 3:
        return
    even = np.linspace(times[0], times[-1], len(times))
    worst = int(np.abs(times - even).argmax())
    if abs(times[worst] - even[worst]) > _LARGEST_TIME_ERROR * (times[-1] - times[0]):
        raise ValueError(
            f"Expected evenly spaced times in {path}; got {len(times)} from {times[0]:g} to {times[-1]:g}, "
            f"number {worst + 1} at {times[worst]:.5g} instead of {even[worst]:.5g}. Leave out frames until "
            f"the times are even."
        )


def _clips(frames_by_view: list[list[Frame]], folder: Path, fps: float) -> Iterator[ViewClip]:
    for frames in frames_by_view:
        pictures = [_picture(folder, frame) for frame in frames]
        clip = Clip(_stack(pictures, frames), fps, None, frames[0].name)
        masked = [frame for frame in frames if frame.mask_path is not None]
        if opacity_source(clip) != "alpha" and masked:
            clip = replace(clip, masks=_masks(folder, frames, clip.frames.shape[1:3]))
        yield ViewClip.of_clip(clip)


def _picture(folder: Path, frame: Frame) -> np.ndarray:
    """Return a frame's picture, uint8 [H, W, 3 or 4]; a file_path without extension means PNG."""
    if not frame.file_path:
        raise ValueError(f"Expected a file_path in every frame; {frame.name} has none.")
    file = _inside(folder, frame.file_path, frame.name)
    is_complete = file.is_file() or file.suffix.lower() in IMAGE_SUFFIXES
    return _one_picture(file if is_complete else file.with_name(f"{file.name}.png"), frame.name)


def _masks(folder: Path, frames: list[Frame], size: tuple[int, ...]) -> np.ndarray:
    """Return the masks of a view, uint8 [T, H, W]."""
    masks = []
    for frame in frames:
        if frame.mask_path is None:
            raise ValueError(
                f"Expected a mask_path in every frame of a view or in none; {frame.name} has none. Add it."
            )
        masks.append(mask_opacity(_one_picture(_inside(folder, frame.mask_path, frame.name), frame.name)))
        if masks[-1].shape != size:
            raise ValueError(
                f"Expected masks of the pictures' size {size[1]} x {size[0]}; {frame.mask_path} of "
                f"{frame.name} has {masks[-1].shape[1]} x {masks[-1].shape[0]}. Resize it."
            )
    return np.stack(masks)


def _inside(folder: Path, stated: str, name: str) -> Path:
    """Return the place of a file of the data set. Raises ValueError when it lies outside of the folder."""
    relative = os.path.normpath(stated.replace("\\", "/"))
    outside = PurePosixPath(relative).is_absolute() or PureWindowsPath(relative).drive
    if outside or ".." in PurePosixPath(relative).parts:
        raise ValueError(
            f"Expected files inside the data set's folder {folder}; {name} leads out of it: {stated!r}. Move "
            f"the pictures into the folder and correct the path."
        )
    return folder / relative


def _one_picture(file: Path, name: str) -> np.ndarray:
    if not file.is_file():
        raise FileNotFoundError(
            f"Expected the picture {file} of {name}; there is no such file. Bring it back, or remove the "
            f"frame."
        )
    return read_pictures(file, slice(0, 1, 1))[0][0]


def _stack(pictures: Sequence[np.ndarray], frames: Sequence[Frame]) -> np.ndarray:
    """Return uint8 [T, H, W, 3 or 4]; pictures without alpha among others are opaque."""
    height, width = pictures[0].shape[:2]
    channels = max(picture.shape[-1] for picture in pictures)
    padded = []
    for picture, frame in zip(pictures, frames, strict=True):
        if picture.shape[:2] != (height, width):
            raise ValueError(
                f"Expected pictures of one size; {frames[0].name} has {width} x {height}, {frame.name} has "
                f"{picture.shape[1]} x {picture.shape[0]}. Resize them to one size."
            )
        extra = channels - picture.shape[-1]
        padded.append(np.pad(picture, ((0, 0), (0, 0), (0, extra)), constant_values=255))
    return np.stack(padded)


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


def read_normals(folder: Path, views: ViewGrid) -> Tensor:
    """Return the normals of all views, [T, V + 1, H, W, 3] unit, 0 where the picture shows none.

    Args:
        folder: ``view_XX/TTTTT.png`` like the frames of a folder of views, colour = (normal + 1) / 2 with x
            to the right, y up and z towards the camera; black, grey or white where there is no object.
        views: whose normals these are.

    Raises:
        FileNotFoundError: pictures are missing.
        ValueError: pictures of another size or without three channels.
    """
    pictures = []
    for view in range(views.n_views + 1):
        place = folder / f"view_{view:02d}"
        if not place.is_dir():
            raise FileNotFoundError(
                f"Expected normals of {views.n_views + 1} views (view_00 is the input); {folder} has no "
                f"{place.name}. Estimate them from frames/{place.name}."
            )
        pictures.append(torch.from_numpy(read_frames(place, views.n_frames)))
    expected = (views.n_frames, *views.images.shape[2:4], 3)
    wrong = next((tuple(p.shape) for p in pictures if tuple(p.shape) != expected), None)
    if wrong is not None:
        raise ValueError(
            f"Expected pictures of normals {expected}; got {wrong}. Save them as RGB like the views."
        )
    return unpacked_normals(torch.stack(pictures, dim=1).float() / 255)


_LISTED = 5
_DEPTH = 4


@contextmanager
def numbered_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new empty folder ``parent``/``name``_NNNNN with the next free number; gone if the block fails.

    Making the folder is what claims the number, so that of several processes none gets another's folder.

    Raises:
        OSError: the disk is full or read-only.
    """
    folder = _claimed(parent, name, "", Path.mkdir)
    try:
        yield folder
    except BaseException:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise


def numbered_file(parent: Path, name: str, suffix: str) -> Path:
    """Return a new empty file ``parent``/``name``_NNNNN``suffix`` with the next free number.

    Raises:
        OSError: the disk is full or read-only.
    """
    return _claimed(parent, name, suffix, lambda place: place.touch(exist_ok=False))


def find_views(name: str, roots: Sequence[Path]) -> Path:
    """Return the folder of views called ``name`` inside the first of ``roots`` that has it, links resolved.

    Args:
        name: path relative to a root.
        roots: where to look, in this order.

    Raises:
        ValueError: the path leads out of the roots.
        FileNotFoundError: no root has such a folder with a ``run.json``; the text lists some that are there.
    """
    if "\0" in name:
        raise ValueError(f"Expected the name of a folder; got {name!r}, which holds a NUL byte.")
    inside, outside = [], []
    for root in map(Path.resolve, roots):
        folder = (root / name.strip()).resolve()
        (inside if folder == root or root in folder.parents else outside).append(folder)
    for folder in inside:
        if (folder / RUN_FILE).is_file():
            return folder
    if not inside or any(folder.exists() for folder in outside):
        raise ValueError(
            f"Expected a folder inside {' or '.join(map(str, roots))}; {name!r} is or leads (by a link or "
            f"..) outside. Give its path relative to one of them."
        )
    found = _newest_views(roots)
    listing = f"Folders of views that exist: {', '.join(found)}." if found else "There are none yet."
    raise FileNotFoundError(
        f"Expected a folder of views; {name!r} is none in {' or '.join(map(str, roots))} (it has no "
        f"{RUN_FILE}). {listing}"
    )


def _claimed(parent: Path, name: str, suffix: str, make: Callable[[Path], None]) -> Path:
    """Return the place with the next free number, which making it claims: that fails where it exists."""
    taken = re.compile(re.escape(name) + r"_(\d+)" + re.escape(suffix), re.IGNORECASE)
    parent.mkdir(parents=True, exist_ok=True)
    number = max((int(m[1]) for path in parent.iterdir() if (m := taken.fullmatch(path.name))), default=0)
    while True:
        number += 1
        place = parent / f"{name}_{number:05d}{suffix}"
        with suppress(FileExistsError):
            make(place)
            return place


def _newest_views(roots: Sequence[Path]) -> list[str]:
    """Return a few folders of views relative to their root, the latest first."""
    found = []
    for root in roots:
        for place, folders, files in os.walk(root):
            relative = Path(place).relative_to(root)
            if RUN_FILE in files:
                found.append(((Path(place) / RUN_FILE).stat().st_mtime, relative.as_posix()))
            if RUN_FILE in files or len(relative.parts) >= _DEPTH:
                folders.clear()
    return [name for _, name in sorted(found, reverse=True)[:_LISTED]]
