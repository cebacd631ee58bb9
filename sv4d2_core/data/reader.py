"""Reads views in any form that is understood: a folder of ours, a data set, or plain clips."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras
from ..scene.targets import unpacked_normals
from ..video.foreground import opacity_source
from ..video.pictures import read_frames
from ..video.read import (
    DEFAULT_FPS,
    IMAGE_SUFFIXES,
    Clip,
    equal_channels,
    mask_opacity,
    natural_key,
    read_pictures,
)
from ..views import ViewGrid
from .clips import ViewClip, find_clips, grid_of_clips, read_clips
from .transforms import TRANSFORMS_FILES, Frame, Transforms, read_transforms, transforms_file
from .views_folder import CAMERAS_FILE, RUN_FILE, read_views

# Times closer than this are one time.
_SAME_TIME = 1e-6
# Largest distance of a time from even spacing, as a share of the whole span.
_LARGEST_TIME_ERROR = 1e-3
# Folders of views that are listed where the one that was asked for is not there, and how deep they may lie.
_LISTED, _DEPTH = 5, 4


def read_dataset(path: str | Path) -> ViewGrid:
    """Return the grid of views of a D-NeRF or nerfstudio data set.

    Its cameras become an orbit with the first camera as input view (see `fit_orbit`). Only the order of the
    times is kept: frame t of T stands for the time t / (T - 1). A file without times is a single time.
    Transparent pictures are put on white and their alpha is the mask; in a view without transparency the
    files of ``mask_path`` are, else all that is not near white.

    ``path`` is a transforms file, or a folder with ``transforms_train.json`` or ``transforms.json``.

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
    clips = (_clip(frames, file.parent, fps) for frames in _frames_by_view(transforms))
    return grid_of_clips(clips, transforms.cameras)


def _frames_by_view(transforms: Transforms) -> list[list[Frame]]:
    """Return the frames of each view in order of time."""
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
            f"{times[t]:g}. Leave out incomplete cameras or times; a single moving camera gives no grid."
        )
    even = np.linspace(times[0], times[-1], len(times))
    worst = int(np.abs(times - even).argmax())
    if abs(times[worst] - even[worst]) > _LARGEST_TIME_ERROR * (times[-1] - times[0]):
        raise ValueError(
            f"Expected evenly spaced times in {path}; got {len(times)} from {times[0]:g} to {times[-1]:g}, "
            f"number {worst + 1} at {times[worst]:.5g} instead of {even[worst]:.5g}. Leave out frames until "
            f"the times are even."
        )
    return [[grid[v, t] for t in range(len(times))] for v in range(n_cameras)]


def _distinct_times(transforms: Transforms) -> np.ndarray:
    """Return the times in ascending order, float64 [T]; 0 for a file without times."""
    timeless = [frame for frame in transforms.frames if frame.time is None]
    if timeless and len(timeless) < len(transforms.frames):
        raise ValueError(
            f"Expected a time in every frame, or in none; {len(timeless)} of {len(transforms.frames)} have "
            f"none, the first is {timeless[0].name}. Add the times."
        )
    times = np.unique([frame.time or 0.0 for frame in transforms.frames])
    return times[np.diff(times, prepend=-np.inf) > _SAME_TIME]


def _clip(frames: list[Frame], folder: Path, fps: float) -> ViewClip:
    """Return all frames of a view, in order of time."""
    pictures = [_picture(folder, frame) for frame in frames]
    first = pictures[0].shape[:2]
    for frame, picture in zip(frames, pictures, strict=True):
        if picture.shape[:2] != first:
            raise ValueError(
                f"Expected pictures of one size; {frames[0].name} has {first[1]} x {first[0]}, {frame.name} "
                f"has {picture.shape[1]} x {picture.shape[0]}. Resize them to one size."
            )
    clip = Clip(np.stack(equal_channels(pictures)), fps, None, frames[0].name)
    if opacity_source(clip) != "alpha" and any(frame.mask_path is not None for frame in frames):
        masks = np.stack([_mask(folder, frame, first) for frame in frames])
        clip = replace(clip, masks=masks)
    return ViewClip.of_clip(clip)


def _picture(folder: Path, frame: Frame) -> np.ndarray:
    if not frame.file_path:
        raise ValueError(f"Expected a file_path in every frame; {frame.name} has none.")
    file = _inside(folder, frame.file_path, frame.name)
    is_complete = file.is_file() or file.suffix.lower() in IMAGE_SUFFIXES
    # D-NeRF leaves out the extension, which is PNG's.
    return _one_picture(file if is_complete else file.with_name(f"{file.name}.png"), frame.name)


def _mask(folder: Path, frame: Frame, size: tuple[int, ...]) -> np.ndarray:
    if frame.mask_path is None:
        raise ValueError(
            f"Expected a mask_path in every frame of a view or in none; {frame.name} has none. Add it."
        )
    mask = mask_opacity(_one_picture(_inside(folder, frame.mask_path, frame.name), frame.name))
    if mask.shape != size:
        raise ValueError(
            f"Expected masks of the pictures' size {size[1]} x {size[0]}; {frame.mask_path} of "
            f"{frame.name} has {mask.shape[1]} x {mask.shape[0]}. Resize it."
        )
    return mask


def _inside(folder: Path, stated: str, name: str) -> Path:
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


def read_any_views(
    path: str | Path,
    cameras: Cameras | None = None,
    input_view: ViewGrid | None = None,
    frames: int | None = None,
) -> ViewGrid:
    """Return the grid of views at a place, in the first of these forms that it has.

    1. A folder as `write_views` leaves it (``run.json`` and ``cameras.json``): `read_views`.
    2. A transforms file, or a folder with one: `read_dataset`.
    3. A folder with one clip per view, or a pattern that gives the clips: `read_clips`.

    ``cameras``, ``input_view`` and ``frames`` are for plain clips alone: see `read_clips`.

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
    """Return the places of views by name: ``path`` itself, or each folder in it; see `read_any_views`."""
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
    return transforms_file(place) is not None or (place.suffix.lower() == ".json" and place.is_file())


def _nothing_at(place: Path) -> str:
    return (
        f"Expected views at {place}; {'none are' if place.exists() else 'nothing is'} there. Three kinds are "
        f"understood: a folder of views with {RUN_FILE} and {CAMERAS_FILE}; a data set with "
        f"{' or '.join(TRANSFORMS_FILES)}; a folder with one clip per view, videos or sub-folders of images."
    )


def read_normals(folder: Path, views: ViewGrid) -> Tensor:
    """Return the normals of all views, [T, V + 1, H, W, 3] unit, 0 where the picture shows none.

    ``folder`` holds ``view_XX/TTTTT.png`` like the frames of a folder of ``views``, colour = (normal + 1) / 2
    with x to the right, y up and z towards the camera; black, grey or white where there is no object.

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
