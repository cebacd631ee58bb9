"""Camera files: ``transforms.json`` of D-NeRF and nerfstudio, and our ``cameras.json``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..cameras import Cameras
from ..files import cut
from ..orbits import fit_orbit
from ..stored import Fields, read_json_object
from .views_folder import CAMERAS_FILE, Y_UP_TO_Z_UP

TRANSFORMS_FILES = ("transforms_train.json", "transforms.json")

_SAME_CAMERA = 1e-5  # difference of all numbers of two matrices
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
    file_path: str | None  # relative to the file's folder, as the file states it
    mask_path: str | None


@dataclass(frozen=True)
class Transforms:
    path: Path
    cameras: Cameras  # one camera per distinct matrix, in order of first appearance
    frames: list[Frame]  # as listed
    fps: float | None


def read_cameras(path: str | Path) -> Cameras:
    """Return the cameras of a file, or of the camera file in a folder.

    From a ``transforms.json`` comes one camera per distinct matrix, the first as input view: see `fit_orbit`.
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


def read_transforms(path: Path) -> Transforms:
    """Return what a ``transforms.json`` says (+z up, OpenGL camera axes), turned into our world of +y up."""
    return _transforms(path, read_json_object(path, "a JSON file with cameras"))


def transforms_file(folder: Path) -> Path | None:
    """Return the transforms file of a folder, that of the training views first, or None."""
    return next((folder / name for name in TRANSFORMS_FILES if (folder / name).is_file()), None)


def _transforms(path: Path, content: Fields) -> Transforms:
    listed = content.objects("frames")
    names = [f"frame {i} ({str(frame.get('file_path'))[-60:]}) of {path}" for i, frame in enumerate(listed)]
    listed = [Fields(frame, name) for frame, name in zip(listed, names, strict=True)]
    matrices = torch.stack([*map(_matrix, listed)])
    view_of, firsts = _distinct(matrices)
    fovs = [_field_of_view_deg(Fields({**content, **frame}, frame.place)) for frame in listed]
    worst = max(range(len(fovs)), key=lambda i: abs(fovs[i] - fovs[0]))
    if abs(fovs[worst] - fovs[0]) > _TOLERANCE * fovs[0]:
        raise ValueError(
            f"Expected one field of view for all frames (to {100 * _TOLERANCE:g} %); got {fovs[0]:.4g} "
            f"degrees for {names[0]} and {fovs[worst]:.4g} for {names[worst]}. Use pictures of one lens."
        )
    try:
        cameras = fit_orbit(Y_UP_TO_Z_UP.T @ matrices[firsts], fovs[0], [names[i] for i in firsts])
    except ValueError as error:
        raise ValueError(f"{error} Read from {path}, whose world has +z up.") from error
    frames = []
    for frame, name, view in zip(listed, names, view_of, strict=True):
        paths = [frame.text(key) if frame.has(key) else None for key in ("file_path", "mask_path")]
        frames.append(Frame(name, view, _number(frame, "time"), *paths))
    return Transforms(path, cameras, frames, _number(content, "fps"))


def _matrix(frame: Fields) -> Tensor:
    """Return a frame's camera-to-world matrix, [4, 4] float64 in the file's world."""
    matrix = torch.from_numpy(frame.numbers("transform_matrix", 4, 4))
    if (matrix[3] - torch.eye(4, dtype=torch.float64)[3]).abs().max() > _SAME_CAMERA:
        raise ValueError(
            f"Expected 0, 0, 0, 1 as last row of the transform_matrix of {frame.place}; got "
            f"{matrix[3].tolist()}. Give camera-to-world matrices, rows first."
        )
    return matrix


def _distinct(matrices: Tensor) -> tuple[list[int], list[int]]:
    """Return the view of each matrix, and at which matrix each view appears first."""
    view_of, firsts = [], []
    for i, matrix in enumerate(matrices):
        same = ((matrices[firsts] - matrix).abs().amax(dim=(1, 2)) <= _SAME_CAMERA).tolist()
        if True not in same:
            firsts.append(i)
            same.append(True)
        view_of.append(same.index(True))
    return view_of, firsts


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


def _number(fields: Fields, key: str) -> float | None:
    return fields.number(key) if fields.has(key) else None
