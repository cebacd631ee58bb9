"""Camera files: ``transforms.json`` of D-NeRF and nerfstudio, and our ``cameras.json``."""

from __future__ import annotations

import math
import re
from bisect import bisect
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath, splitext

import torch
from torch import Tensor

from ..cameras import Cameras
from ..messages import cut
from ..orbits import fit_orbit
from ..stored import Fields, read_json_object
from ..video.places import natural_key
from .views_folder import CAMERAS_FILE, Y_UP_TO_Z_UP

TRANSFORMS_FILES = ("transforms_train.json", "transforms.json")

_SAME_CAMERA = 1e-3  # difference of all numbers of two matrices, at a distance of 1 from the origin
_SAME_TIME = 1e-6  # times closer than this are one
_TIMES = ("time", "timestamp", "timestep", "frame", "warp", "t")  # what keys of times begin with, best first
_TIME_KEY = re.compile(rf"({'|'.join(_TIMES)})(id|idx|index|number|num|no|nr|s|sec|seconds|ms|us|ns)?")
_TOLERANCE = 0.01  # share by which a camera may be off a square pinhole, and the cameras off one lens
_CENTRE_TOLERANCE_PX = 0.5  # some programs count pixels from their centres
_PINHOLES = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
_DISTORTIONS = ("k1", "k2", "k3", "k4", "p1", "p2")
_LARGEST_DISTORTION = 1e-3


@dataclass(frozen=True)
class Frame:
    """One picture of a data set."""

    name: str  # what to call it in messages
    view: int  # index of its camera in `Transforms.cameras`
    time: float | None  # in the file's own units
    file_path: str  # relative to the file's folder, as the file states it; "": not stated
    mask_path: str
    keys: tuple[str, ...]  # all that the file states of it


@dataclass(frozen=True)
class Transforms:
    path: Path
    cameras: Cameras  # one camera per distinct matrix, the input view first, the others by time and name
    frames: list[Frame]  # by time and name
    fps: float | None
    time_key: str | None  # what the times were read from; None: from nothing
    report: str  # which camera is the input view, and why


def read_cameras(path: str | Path) -> Cameras:
    """Return the cameras of a file, or of the camera file in a folder.

    From a ``transforms.json`` come the cameras of `read_transforms`, in the data set's world.
    Raises FileNotFoundError for no such file, ValueError for a damaged one or cameras on no orbit.
    """
    file = place = Path(path).expanduser()
    if place.is_dir():
        ours = place / CAMERAS_FILE
        file = ours if ours.is_file() else transforms_file(place)
    if file is None:
        raise FileNotFoundError(
            f"Expected {CAMERAS_FILE} or {' or '.join(TRANSFORMS_FILES)} in {place}; there is none."
        )
    content = read_json_object(file, "a JSON file with cameras")
    return _transforms(file, content).cameras if "frames" in content else Cameras.from_json(content)


def read_transforms(path: Path, input_view: int | None = None) -> Transforms:
    """Return what a ``transforms.json`` says (+z up, OpenGL camera axes), with +y up.

    The input view is number ``input_view`` of the cameras by time and name; None: the one that says so, by
    ``"input_view": true`` in a frame, ``"input_view"`` with its file_path or number in the file, or the word
    input in its names alone; else the first. Times may be called otherwise than time: see `_TIMES`.
    """
    return _transforms(path, read_json_object(path, "a JSON file with cameras"), input_view)


def transforms_file(folder: Path) -> Path | None:
    """Return the transforms file of a folder, that of the training views first, or None."""
    return next((folder / name for name in TRANSFORMS_FILES if (folder / name).is_file()), None)


def _transforms(path: Path, content: Fields, input_view: int | None = None) -> Transforms:
    listed = content.objects("frames")
    names = [f"frame {i} ({str(frame.get('file_path'))[-60:]}) of {path}" for i, frame in enumerate(listed)]
    listed = [Fields(frame, name) for frame, name in zip(listed, names, strict=True)]
    matrices = torch.stack([*map(_matrix, listed)])
    camera_of = _cameras_of(matrices)
    fovs = [_field_of_view_deg(Fields({**content, **frame}, frame.place)) for frame in listed]
    worst = max(range(len(fovs)), key=lambda i: abs(fovs[i] - fovs[0]))
    if abs(fovs[worst] - fovs[0]) > _TOLERANCE * fovs[0]:
        raise ValueError(
            f"Expected one field of view for all frames (to {100 * _TOLERANCE:g} %); got {fovs[0]:.4g} "
            f"degrees for {names[0]} and {fovs[worst]:.4g} for {names[worst]}. Use pictures of one lens."
        )
    time_key, times = _times(listed, camera_of)
    order = sorted(range(len(listed)), key=lambda i: (times[i] or 0.0, natural_key(Path(_path(listed[i])))))
    firsts = {camera_of[i]: i for i in reversed(order)}  # where each camera is seen first
    views = sorted(firsts, key=lambda camera: order.index(firsts[camera]))
    number, why = _input_view(content, listed, [views.index(camera) for camera in camera_of], input_view)
    if not 0 <= number < len(views):
        raise ValueError(f"Expected an input view from 0 to {len(views) - 1} in {path}; got {number}.")
    views.insert(0, views.pop(number))
    shown = [firsts[view] for view in views]
    try:
        cameras = fit_orbit(Y_UP_TO_Z_UP.T @ matrices[shown], fovs[0], [names[i] for i in shown])
    except ValueError as error:
        raise ValueError(f"{error} Read from {path}, whose world has +z up.") from error
    frames = []
    for i in order:
        paths = _path(listed[i]), _path(listed[i], "mask_path")
        frames.append(Frame(names[i], views.index(camera_of[i]), times[i], *paths, tuple(listed[i])))
    report = (
        f"Input view: camera {number} of {len(views)}, {names[shown[0]]}, {why}; azimuth "
        f"{cameras.input_azimuth_deg:.4g}, elevation {cameras.input_elevation_deg:.4g} degrees. Times: "
        f"{time_key or 'none'}."
    )
    return Transforms(path, cameras, frames, _number(content, "fps"), time_key, report)


def _path(frame: Fields, key: str = "file_path") -> str:
    return frame.text(key) if frame.has(key) else ""


def _plain(path: str) -> str:
    """Return a path as programs write it that leave suffixes and a leading ./ out."""
    return splitext(normpath(path))[0]


def _input_view(
    content: Fields, frames: list[Fields], view_of: list[int], wanted: int | None
) -> tuple[int, str]:
    """Return which view, counted by time and name, is the input view, and why."""
    if wanted is not None:
        return wanted, "as chosen"
    stated = content.get("input_view")
    if type(stated) is int:
        return stated, "as the file says"
    for says in (
        lambda frame: any("input" in key.lower() and value is True for key, value in frame.items()),
        lambda frame: stated and stated == _path(frame),
        lambda frame: isinstance(stated, str) and _plain(stated) == _plain(_path(frame)),
        lambda frame: "input" in re.split("[^a-z]+", _path(frame).lower()),
    ):
        telling = {view for frame, view in zip(frames, view_of, strict=True) if says(frame)}
        if len(telling) == 1:
            return telling.pop(), "as the file says"
    if stated is not None:
        raise content.wrong("input_view", "the number of a camera or the file_path of a frame")
    return 0, "the first by time and name"


def _times(frames: list[Fields], camera_of: list[int]) -> tuple[str | None, list[float | None]]:
    """Return which key tells the times, and these: the first by which each camera has a picture at each.

    Where each camera has a single picture, it is ``time`` or none: others tell when a still object was seen.
    """
    found, known, unread, n_cameras = {}, {}, None, len(set(camera_of))
    for key in {key: 0 for frame in frames for key in frame if n_cameras < len(frames) or key == "time"}:
        if match := _TIME_KEY.fullmatch(re.sub("[^a-z]", "", key.lower())):
            known[key] = _TIMES.index(match[1])
    for key in sorted(known, key=known.__getitem__):
        try:
            stated = [_number(frame, key, 1e20) for frame in frames]
        except ValueError as error:
            unread = unread or error
            continue
        times = sorted({time for time in stated if time is not None})
        apart = [b for a, b in zip([-math.inf, *times], times, strict=False) if b - a > _SAME_TIME]
        found[key] = [None if time is None else apart[bisect(apart, time) - 1] for time in stated]
        seen = set(zip(camera_of, found[key], strict=True))
        if len(seen) == len(frames) == n_cameras * len(set(found[key])):
            return key, found[key]
    if unread is not None and not found:
        raise unread
    return next(iter(found.items()), (None, [None] * len(frames)))


def _matrix(frame: Fields) -> Tensor:
    """Return a frame's camera-to-world matrix, [4, 4] float64 in the file's world."""
    rows = frame.get("transform_matrix")
    n_rows = 3 if isinstance(rows, list) and len(rows) == 3 else 4
    matrix = torch.from_numpy(frame.numbers("transform_matrix", n_rows, 4))
    matrix = torch.cat([matrix, torch.eye(4, dtype=torch.float64)[n_rows:]])
    if (matrix[3] - torch.eye(4, dtype=torch.float64)[3]).abs().max() > _SAME_CAMERA:
        raise ValueError(
            f"Expected 0, 0, 0, 1 as last row of the transform_matrix of {frame.place}; got "
            f"{matrix[3].tolist()}. Give camera-to-world matrices, rows first."
        )
    return matrix


def _cameras_of(matrices: Tensor) -> list[int]:
    """Return at which matrix [N, 4, 4] the camera of each matrix is seen first."""
    scaled, found = matrices.clone(), []
    scaled[:, :3, 3] /= matrices[:, :3, 3].norm(dim=-1).median().clamp(min=1e-9)
    for i, matrix in enumerate(scaled):
        same = ((scaled[sorted(set(found))] - matrix).abs().amax(dim=(1, 2)) <= _SAME_CAMERA).tolist()
        found.append(sorted(set(found))[same.index(True)] if True in same else i)
    return found


def _field_of_view_deg(camera: Fields) -> float:
    """Return the field of view of a square pinhole camera, from the fields of either program."""
    name = camera.place
    model = camera.get("camera_model")
    if model is not None and str(model).upper() not in _PINHOLES:
        raise ValueError(f"Expected a pinhole camera; {name} is {cut(model)}. Rectify the pictures.")
    for key in _DISTORTIONS:
        if abs(value := _number(camera, key) or 0.0) > _LARGEST_DISTORTION:
            raise ValueError(
                f"Expected pictures without lens distortion; {name} has {key} = {value:g}. Undistort them."
            )
    width, height = (_number(camera, key) for key in ("w", "h"))
    if width and height and width != height:
        raise ValueError(
            f"Expected square images; {name} has w = {width:g} and h = {height:g}. Crop or pad them."
        )
    angles, focals = {}, {}
    for axis, size in (("x", width), ("y", height)):
        angle, focal, centre = (_number(camera, f"{key}{axis}") for key in ("camera_angle_", "fl_", "c"))
        if angle is not None:
            angles[f"camera_angle_{axis} = {angle:.5g}"] = math.degrees(angle)
        if size is None:
            continue
        if focal is not None:
            focals[f"fl_{axis} = {focal:.6g}"] = math.degrees(2 * math.atan2(size / 2, focal))
        if centre is not None and abs(centre - size / 2) > max(_CENTRE_TOLERANCE_PX, _TOLERANCE * size):
            raise ValueError(
                f"Expected the principal point in the middle of the image; {name} has c{axis} = {centre:g} "
                f"of {size:g} pixels instead of {size / 2:g}. Crop or pad the pictures around it."
            )
    stated = {**angles, **focals}
    if not stated:
        raise ValueError(
            f"Expected camera_angle_x, or fl_x with w; {name} has neither. State the field of view."
        )
    smallest, largest = min(stated.values()), max(stated.values())
    listed = ", ".join(f"{text} ({angle:.4g} degrees)" for text, angle in stated.items())
    if not 0 < smallest <= largest < 180:
        raise ValueError(f"Expected a field of view from 0 to 180 degrees; {name} has {listed}.")
    if largest > (1 + _TOLERANCE) * smallest:
        raise ValueError(
            f"Expected one field of view across and down (to {100 * _TOLERANCE:g} %); {name} has {listed}. "
            f"Resample the pictures to square pixels, or correct the file."
        )
    return next(iter(stated.values()))


def _number(fields: Fields, key: str, limit: float = 1e12) -> float | None:
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < limit:
        return float(value)
    raise fields.wrong(key, "a finite number")
