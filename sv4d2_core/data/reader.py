"""Views in any form that is understood: a folder of ours, a data set, or plain clips."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path, PureWindowsPath

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras
from ..messages import cut
from ..scene.targets import unpacked_normals
from ..video.crop import CropPath
from ..video.foreground import opacity_source
from ..video.pictures import read_frames
from ..video.places import IMAGE_SUFFIXES, natural_key
from ..video.read import DEFAULT_FPS, Clip, Pick, mask_opacity, read_pictures, stack_pictures
from ..views import ViewGrid
from .clips import ViewClip, find_clips, grid_of_clips, read_clips
from .transforms import TRANSFORMS_FILES, Frame, Transforms, read_transforms, transforms_file
from .views_folder import CAMERAS_FILE, RUN_FILE, read_crop, read_views

_LONGEST_PATH = 255
_LARGEST_TIME_ERROR = 1e-3  # distance from even spacing, as a share of the whole span
_COARSE = 10  # steps of whole numbers (milliseconds) from which on they are taken as rounded

log = logging.getLogger(__name__)


def read_dataset(path: str | Path, input_view: int | None = None) -> ViewGrid:
    """Return the grid of views of a D-NeRF or nerfstudio data set, a transforms file or a folder with one.

    The log says which camera became the input view: see `read_transforms`. Only the order of the times is
    kept: frame t of T is time t / (T - 1); a file without times is a single time. Transparent pictures are
    put on white, their alpha is the mask; else the files of ``mask_path`` are, else all but near white.

    Raises FileNotFoundError: no such file, or a picture is missing; ValueError: damaged files, no orbit, gaps
    in the grid, uneven times, paths out of the folder, pictures of different sizes, a background not white.
    """
    place = Path(path).expanduser()
    file = transforms_file(place) if place.is_dir() else place
    if file is None:
        raise FileNotFoundError(f"Expected {' or '.join(TRANSFORMS_FILES)} in {path}; there is none.")
    transforms = read_transforms(file, input_view)
    log.info(transforms.report)
    fps = DEFAULT_FPS if transforms.fps is None else transforms.fps
    clips = (_clip(frames, file.parent, fps) for frames in _frames_by_view(transforms))
    grid = grid_of_clips(clips, transforms.cameras)
    return replace(grid, settings={"input_view": transforms.report})


def _frames_by_view(transforms: Transforms) -> list[list[Frame]]:
    path, n_cameras = transforms.path, transforms.cameras.n_views + 1
    times = _distinct_times(transforms.frames)
    grid: dict[tuple[int, int], Frame] = {}
    for frame in transforms.frames:
        t = int(times.searchsorted(frame.time or 0.0))
        other = grid.setdefault((frame.view, t), frame)
        if other is not frame:
            both = f"both (view {frame.view}, {transforms.time_key} {times[t]:g}). Remove one of them."
            if transforms.time_key is None:
                both = f"the camera, and no key of {', '.join(frame.keys)} is a time. Call one time."
            raise ValueError(
                f"Expected one picture for each camera and time; {other.name} and {frame.name} share {both}"
            )
    by = "" if transforms.time_key in (None, "time") else f" ({transforms.time_key})"
    missing = [(v, t) for v in range(n_cameras) for t in range(len(times)) if (v, t) not in grid]
    if missing:
        view, t = missing[0]
        raise ValueError(
            f"Expected a full grid of {n_cameras} cameras x {len(times)} times in {path}; got {len(grid)} of "
            f"{n_cameras * len(times)} pictures. The first that is missing is view {view} at time "
            f"{times[t]:g}{by}. Leave out incomplete cameras or times; a single moving camera gives no grid."
        )
    even = np.linspace(times[0], times[-1], len(times))
    worst = int(np.abs(times - even).argmax())
    whole = (times == times.round()).all() and times[-1] - times[0] >= _COARSE * (len(times) - 1)
    allowed = max(_LARGEST_TIME_ERROR * (times[-1] - times[0]), 1.0 if whole else 0.0)
    if abs(times[worst] - even[worst]) > allowed:
        raise ValueError(
            f"Expected evenly spaced times{by} in {path}; got {len(times)} from {times[0]:g} to "
            f"{times[-1]:g}, number {worst + 1} at {times[worst]:.5g} instead of {even[worst]:.5g}. Leave "
            f"out frames until the times are even."
        )
    return [[grid[v, t] for t in range(len(times))] for v in range(n_cameras)]


def _distinct_times(frames: list[Frame]) -> np.ndarray:
    """Return the times in ascending order, float64 [T]; 0 for a file without times."""
    timeless = [frame for frame in frames if frame.time is None]
    if timeless and len(timeless) < len(frames):
        raise ValueError(
            f"Expected a time in every frame, or in none; {len(timeless)} of {len(frames)} have none, the "
            f"first is {timeless[0].name}. Add the times."
        )
    return np.unique([frame.time or 0.0 for frame in frames])


def _clip(frames: list[Frame], folder: Path, fps: float) -> ViewClip:
    files = [frame_file(folder, frame.file_path, frame.name) for frame in frames]
    names = [frame.name for frame in frames]
    clip = Clip(stack_pictures(list(map(_read_picture, files, names)), names), fps, None, names[0])
    if opacity_source(clip) != "alpha" and any(frame.mask_path for frame in frames):
        names = [f"{frame.mask_path} of {frame.name}" for frame in frames]
        clip = replace(clip, masks=stack_pictures([_mask(folder, frame) for frame in frames], names))
    return ViewClip.of_clip(clip)


def _mask(folder: Path, frame: Frame) -> np.ndarray:
    if not frame.mask_path:
        raise ValueError(
            f"Expected a mask_path in every frame of a view or in none; {frame.name} has none. Add it."
        )
    return mask_opacity(_read_picture(frame_file(folder, frame.mask_path, frame.name), frame.name))


def frame_file(folder: Path, stated: str, name: str) -> Path:
    """Return the file that a frame states, where it has no suffix with that of the picture that is there.

    Raises ValueError for none, or one outside the folder.
    """
    if not stated:
        raise ValueError(f"Expected a file_path in every frame; {name} has none.")
    file = _inside(folder, stated, name)
    if file.is_file() or file.suffix.lower() in IMAGE_SUFFIXES:
        return file
    # D-NeRF leaves the suffix of its PNGs out, and so do others.
    whole = [file.with_name(file.name + end) for suffix in IMAGE_SUFFIXES for end in (suffix, suffix.upper())]
    return next(filter(Path.is_file, whole), whole[0])


def _inside(folder: Path, stated: str, name: str) -> Path:
    roots = os.path.abspath(folder), os.path.realpath(folder)
    length = len(stated.removeprefix(roots[0]).removeprefix(roots[1]))
    if length > _LONGEST_PATH or "\0" in stated:
        raise ValueError(
            f"Expected a path of at most {_LONGEST_PATH} characters without NUL; {name} has {length}: "
            f"{cut(repr(stated))}. Correct it."
        )
    foreign = PureWindowsPath(stated).drive and os.name != "nt"
    for root in () if foreign else roots:
        file = Path(os.path.normpath(os.path.join(root, stated.replace("\\", "/"))))
        if file.is_relative_to(root):
            return folder / file.relative_to(root)
    raise ValueError(
        f"Expected files inside the data set's folder {folder}; {name} leads out of it: {cut(repr(stated))}. "
        f"Move the pictures into the folder and correct the path."
    )


def _read_picture(file: Path, name: str) -> np.ndarray:
    if not file.is_file():
        raise FileNotFoundError(
            f"Expected the picture {file} of {name}; there is no such file. Bring it back, or remove the "
            f"frame."
        )
    return read_pictures(file, Pick(count=1)).pictures[0]


def read_any_views(
    path: str | Path,
    cameras: Cameras | None = None,
    input_view: ViewGrid | None = None,
    frames: int | None = None,
    number: int | None = None,  # of a data set's input view; None: see `read_transforms`
) -> ViewGrid:
    """Return the grid of views at a place, in the first of these forms that it has.

    1. A folder as `write_views` leaves it (``run.json`` and ``cameras.json``): `read_views`.
    2. A transforms file, or a folder with one: `read_dataset`.
    3. A folder or pattern of one clip per view: `read_clips`, for which alone the other arguments are, but
       the last.

    Raises FileNotFoundError for none of these, ValueError for plain clips without cameras, and what these do.
    """
    place = Path(path).expanduser()
    is_ours = is_folder_of_views(place)
    if not is_ours and (is_dataset(place) or place.suffix.lower() == ".json"):
        return read_dataset(place, number)
    if number is not None:
        log.warning("--input-view is for data sets; the input view of %s stays its first.", place)
    if is_ours:
        return read_views(place)
    if not find_clips(place):
        raise FileNotFoundError(_nothing_at(place))
    if cameras is None:
        raise ValueError(
            f"Expected cameras for the plain clips in {path}; got none. Give a folder of `sv4d2 views` or a "
            f"data set; `sv4d2 metrics` takes plain clips too, with --cameras FILE ({CAMERAS_FILE} or "
            f"transforms.json), or --azimuths and --elevations."
        )
    return read_clips(place, cameras, input_view, frames)


def crop_of(path: str | Path, number: int | None = None) -> CropPath | None:
    """Return how the input view of `read_any_views` was cut out of its clip.

    None where that is not known, or ``number`` makes another view of a data set the input view.
    """
    crop, place = read_crop(path), Path(path).expanduser()
    if crop is None or not number or is_folder_of_views(place):
        return crop
    log.warning(
        "%s tells how its own input view was cut out of the clip, not view %d: the object stays in the "
        "middle.",
        place,
        number,
    )
    return None


def find_scenes(path: str | Path) -> dict[str, Path]:
    """Return the places of views (see `read_any_views`) by name: ``path`` itself, or each folder in it."""
    place = Path(path).expanduser()
    folders = sorted(place.iterdir(), key=natural_key) if place.is_dir() else []
    # Folders of views hold a contact sheet: to look for clips first would take each for a clip of one image.
    for holds_views in (lambda place: is_folder_of_views(place) or is_dataset(place), find_clips):
        if holds_views(place):
            return {place.resolve().stem: place}
        if scenes := {entry.name: entry for entry in folders if entry.is_dir() and holds_views(entry)}:
            return scenes
    raise FileNotFoundError(_nothing_at(place))


def is_folder_of_views(place: Path) -> bool:
    """Return whether a place looks like a folder as `write_views` leaves it."""
    return all((place / name).is_file() for name in (RUN_FILE, CAMERAS_FILE))


def is_dataset(place: Path) -> bool:
    """Return whether a place is a transforms file, or a folder with one (which may also be one of ours)."""
    return transforms_file(place) is not None or (place.suffix.lower() == ".json" and place.is_file())


def _nothing_at(place: Path) -> str:
    return (
        f"Expected views at {place}; {'none are' if place.exists() else 'nothing is'} there. Three kinds are "
        f"understood: a folder of views with {RUN_FILE} and {CAMERAS_FILE}; a data set with "
        f"{' or '.join(TRANSFORMS_FILES)}; a folder with one clip per view, videos or sub-folders of images."
    )


def read_normals(folder: Path, views: ViewGrid) -> Tensor:
    """Return the normals of all views, [T, V + 1, H, W, 3] unit, 0 where the picture shows none.

    ``folder`` holds ``view_XX/TTTTT.png``, colour = (normal + 1) / 2 with x to the right, y up and z towards
    the camera; black, grey or white where there is no object. Raises FileNotFoundError for missing pictures,
    ValueError for another size or another number of channels than three.
    """
    places = [folder / f"view_{view:02d}" for view in range(views.n_views + 1)]
    if missing := [place.name for place in places if not place.is_dir()]:
        raise FileNotFoundError(
            f"Expected normals of {len(places)} views (view_00 is the input); {folder} has no {missing[0]}. "
            f"Estimate them from frames/{missing[0]}."
        )
    pictures = [torch.from_numpy(read_frames(place, views.n_frames)) for place in places]
    expected = (views.n_frames, *views.images.shape[2:4], 3)
    if wrong := [tuple(picture.shape) for picture in pictures if picture.shape != expected]:
        raise ValueError(
            f"Expected pictures of normals {expected}; got {wrong[0]}. Save them as RGB like the views."
        )
    return unpacked_normals(torch.stack(pictures, dim=1).float() / 255)
