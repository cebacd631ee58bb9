"""Camera files of others and of ours: ``transforms.json`` of D-NeRF and nerfstudio, and ``cameras.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..cameras import Cameras
from ..orbit_fit import fit_orbit
from .dataset import Y_UP_TO_Z_UP
from .field_of_view import field_of_view_deg, number
from .folder import CAMERAS_FILE

TRANSFORMS_FILES = ("transforms_train.json", "transforms.json")

# Matrices closer than this in all their numbers are one camera.
_SAME_CAMERA = 1e-5
# Share by which the fields of view of frames may differ.
_LARGEST_FOV_ERROR = 0.01


@dataclass(frozen=True)
class Frame:
    """One picture of a data set.

    Args:
        name: what to call it in messages.
        view: index of its camera in `Transforms.cameras`.
        time: its time in the file's own units, or None.
        file_path, mask_path: relative to the file's folder, as the file states them, or None.
    """

    name: str
    view: int
    time: float | None
    file_path: str | None
    mask_path: str | None


@dataclass(frozen=True)
class Transforms:
    """What a transforms file says: its cameras, in order of first appearance, and its frames.

    Args:
        path: the file.
        cameras: one camera per distinct matrix.
        frames: as listed.
        fps: frames per second, or None.
    """

    path: Path
    cameras: Cameras
    frames: list[Frame]
    fps: float | None


def read_cameras(path: str | Path) -> Cameras:
    """Return the cameras of a file, or of the camera file in a folder.

    From a ``cameras.json`` of ours they come back as they were. From a ``transforms.json`` (D-NeRF,
    nerfstudio) comes one camera per distinct matrix, in order of first appearance, the first as input view:
    see `fit_orbit` for what that does to azimuths and what is refused.

    Raises:
        FileNotFoundError: there is no such file, or no camera file in the folder.
        ValueError: a file that is damaged or lacks something, cameras that stand on no orbit.
    """
    file = _camera_file(Path(path).expanduser())
    content = _read_object(file)
    if "frames" in content:
        return _transforms(file, content).cameras
    try:
        return Cameras.from_json(content)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"Expected the cameras of a cameras.json or transforms.json in {file}; {error}"
        ) from error


def read_transforms(path: Path) -> Transforms:
    """Return what a ``transforms.json`` says (+z up, OpenGL camera axes), turned into our world of +y up.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged JSON, no frames, a frame without a matrix of 4 x 4 finite numbers, intrinsics that
            are not those of one square pinhole, cameras that stand on no orbit.
    """
    content = _read_object(path)
    if "frames" not in content:
        raise ValueError(
            f"Expected a list of frames, as in D-NeRF's transforms.json; {path} has none, only "
            f"{', '.join(sorted(content)[:5]) or 'nothing'}. Give the transforms file, or a folder with one."
        )
    return _transforms(path, content)


def transforms_file(folder: Path) -> Path | None:
    """Return the transforms file of a folder, that of the training views first, or None."""
    return next((folder / name for name in TRANSFORMS_FILES if (folder / name).is_file()), None)


def _camera_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    ours = path / CAMERAS_FILE
    file = ours if ours.is_file() else transforms_file(path)
    if file is None:
        raise FileNotFoundError(
            f"Expected {CAMERAS_FILE} or {' or '.join(TRANSFORMS_FILES)} in {path}; there is none. Give the "
            f"file with the cameras."
        )
    return file


def _read_object(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"Expected a JSON file with cameras; there is no file {path}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"Expected a readable JSON file; {path} is damaged: {error}. Save it again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"Expected a JSON object with cameras; {path} holds a {type(content).__name__}. Give the camera "
            f"file."
        )
    return content


def _transforms(path: Path, content: dict) -> Transforms:
    listed = content["frames"]
    if not isinstance(listed, list) or not listed or not all(isinstance(frame, dict) for frame in listed):
        raise ValueError(f"Expected a list of at least one frame in {path}; got {str(listed)[:40]}.")
    names = [f"frame {i} ({str(frame.get('file_path'))[-60:]}) of {path}" for i, frame in enumerate(listed)]
    matrices = torch.stack([_matrix(frame, name) for frame, name in zip(listed, names, strict=True)])
    view_of, firsts = _distinct(matrices)
    fov_deg = _common_fov_deg([{**content, **frame} for frame in listed], names)
    cameras = _orbit(matrices[firsts], fov_deg, [names[i] for i in firsts], path)
    frames = [
        Frame(name, view, number(frame, "time", name), _text(frame, "file_path"), _text(frame, "mask_path"))
        for frame, name, view in zip(listed, names, view_of, strict=True)
    ]
    return Transforms(path, cameras, frames, number(content, "fps", str(path)))


def _text(frame: dict, key: str) -> str | None:
    return None if frame.get(key) is None else str(frame[key])


def _matrix(frame: dict, name: str) -> Tensor:
    """Return a frame's camera-to-world matrix, [4, 4] float64 in the file's world."""
    if "transform_matrix" not in frame:
        raise ValueError(f"Expected a transform_matrix in every frame; {name} has none.")
    try:
        matrix = torch.tensor(frame["transform_matrix"], dtype=torch.float64)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"Expected 4 x 4 numbers as transform_matrix of {name}; {error}.") from error
    if matrix.shape != (4, 4):
        raise ValueError(f"Expected 4 x 4 numbers as transform_matrix of {name}; got {list(matrix.shape)}.")
    if not matrix.isfinite().all():
        bad = int((~matrix.isfinite()).sum())
        raise ValueError(
            f"Expected finite numbers; the transform_matrix of {name} has {bad} NaN or infinite."
        )
    if (matrix[3] - torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)).abs().max() > _SAME_CAMERA:
        raise ValueError(
            f"Expected 0, 0, 0, 1 as last row of the transform_matrix of {name}; got {matrix[3].tolist()}. "
            f"Give camera-to-world matrices, rows first."
        )
    return matrix


def _distinct(matrices: Tensor) -> tuple[list[int], list[int]]:
    """Return the view of each matrix, and at which matrix each view appears first."""
    view_of, firsts = [], []
    for i, matrix in enumerate(matrices):
        same = ((matrices[firsts] - matrix).abs().amax(dim=(1, 2)) <= _SAME_CAMERA).tolist()
        if True not in same:
            firsts.append(i)
        view_of.append(same.index(True) if True in same else len(firsts) - 1)
    return view_of, firsts


def _common_fov_deg(cameras: list[dict], names: list[str]) -> float:
    fovs = [field_of_view_deg(camera, name) for camera, name in zip(cameras, names, strict=True)]
    worst = max(range(len(fovs)), key=lambda i: abs(fovs[i] - fovs[0]))
    if abs(fovs[worst] - fovs[0]) > _LARGEST_FOV_ERROR * fovs[0]:
        raise ValueError(
            f"Expected one field of view for all frames (to {100 * _LARGEST_FOV_ERROR:g} %); got "
            f"{fovs[0]:.4g} degrees for {names[0]} and {fovs[worst]:.4g} for {names[worst]}. Use pictures of "
            f"one lens."
        )
    return fovs[0]


def _orbit(matrices: Tensor, fov_deg: float, names: list[str], path: Path) -> Cameras:
    try:
        return fit_orbit(Y_UP_TO_Z_UP.T @ matrices, fov_deg, names)
    except ValueError as error:
        raise ValueError(f"{error} Read from {path}, whose world has +z up.") from error
