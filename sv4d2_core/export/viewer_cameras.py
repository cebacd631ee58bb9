"""Cameras of three.js viewers, as of ComfyUI's 3D nodes: +y up, looking along their own -z."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..cameras import Cameras
from ..orbits import fit_orbit

# Viewers and renderers state their cameras to single precision: what is further off is meant.
_LARGEST_ANGLE_DEG = 0.1
_LARGEST_SHARE = 1e-3


@dataclass(frozen=True)
class ViewerCamera:
    """One perspective camera; ValueError for numbers that none can have."""

    position: tuple[float, float, float]  # world units
    target: tuple[float, float, float]  # the point that it looks at, world units
    fov_deg: float  # vertical field of view at zoom 1, degrees
    zoom: float = 1.0  # factor on the focal length
    # Rotation from the camera's axes to the world's; None: upright, looking at the target.
    quaternion_xyzw: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        turn = self.quaternion_xyzw or (0.0, 0.0, 0.0, 1.0)
        finite = all(map(math.isfinite, (*self.position, *self.target, *turn, self.zoom)))
        if not finite or not 0 < self.fov_deg < 180 or self.zoom <= 0:
            raise ValueError(
                f"Expected finite numbers in a camera, a field of view between 0 and 180 degrees and a zoom "
                f"above 0; got {self}. Set them in the node that it comes from."
            )
        if self.position == self.target or not any(turn):
            raise ValueError(
                f"Expected a camera that looks at a point away from itself; got position {self.position}, "
                f"target {self.target} and rotation {turn}. Move one of them."
            )

    @property
    def zoomed_fov_deg(self) -> float:
        return math.degrees(2 * math.atan(math.tan(math.radians(self.fov_deg) / 2) / self.zoom))

    def rotation(self) -> np.ndarray:
        """Return the rotation from the camera's axes to the world's, [3, 3]."""
        if self.quaternion_xyzw is not None:
            return _rotation(self.quaternion_xyzw)
        back = np.subtract(self.position, self.target)
        right = np.cross([0.0, 1.0, 0.0], back)
        # Straight from above or below any turn is upright.
        right = right if np.linalg.norm(right) > 1e-9 * np.linalg.norm(back) else np.array([1.0, 0.0, 0.0])
        axes = np.stack([right, np.cross(back, right), back], axis=-1)
        return axes / np.linalg.norm(axes, axis=0)


@dataclass(frozen=True)
class Placement:
    """Where a viewer has put a model: world = rotation (scale x model) + position."""

    position: tuple[float, float, float]  # world units
    quaternion_xyzw: tuple[float, float, float, float]  # rotation from the model's axes to the world's
    scale: tuple[float, float, float]  # along the model's axes; only one factor for all can be taken back

    def __post_init__(self) -> None:
        numbers = (*self.position, *self.quaternion_xyzw, *self.scale)
        if not all(map(math.isfinite, numbers)) or not any(self.quaternion_xyzw):
            raise ValueError(f"Expected finite numbers and a rotation of a model; got {self}. Place it anew.")
        smallest, largest = min(self.scale), max(self.scale)
        if smallest <= 0 or largest - smallest > _LARGEST_SHARE * largest:
            raise ValueError(
                f"Expected one scale above 0 for all axes of the model (to {100 * _LARGEST_SHARE:g} %); got "
                f"{', '.join(f'{factor:g}' for factor in self.scale)}. Scale it evenly in the viewer."
            )


def to_viewer(cameras: Cameras) -> list[ViewerCamera]:
    """Return all V + 1 cameras as a viewer has them, the input's first."""
    poses = zip(cameras.eyes().tolist(), cameras.quaternions_xyzw().tolist(), strict=True)
    return [
        ViewerCamera((x, y, z), (0.0, 0.0, 0.0), cameras.fov_deg, quaternion_xyzw=(qx, qy, qz, qw))
        for (x, y, z), (qx, qy, qz, qw) in poses
    ]


def from_viewer(
    viewer: Sequence[ViewerCamera],
    *,
    front_elevation_deg: float | None = None,
    model: Placement | None = None,
) -> Cameras:
    """Return the orbit on which a viewer's cameras stand around the point they all look at.

    The first camera is the input view; or, with a ``front_elevation_deg``, all are novel views, and the input
    view stands before the front (+z) of the world at that elevation. Cameras come back in the axes and units
    of the ``model``, where one was placed. Raises ValueError: too few cameras, targets, distances or fields
    of view that differ, a camera that is rolled or looks past its target, a pole.
    """
    if not viewer:
        raise ValueError("Expected at least one camera; got none. Connect a node that makes one.")
    if len(viewer) == 1 and front_elevation_deg is None:
        raise ValueError(
            "Expected at least two cameras, the input view's first; got 1. Give more, or let the input view "
            "be the front of the world, so that the one is a novel view."
        )
    names = [f"camera {i + 1} of {len(viewer)}" for i in range(len(viewer))]
    c2w = np.tile(np.eye(4), (len(viewer), 1, 1))
    c2w[:, :3, :3] = [camera.rotation() for camera in viewer]
    eyes, targets = (np.array([getattr(c, name) for c in viewer], float) for name in ("position", "target"))
    if model is not None:
        turn, scale = _rotation(model.quaternion_xyzw), sum(model.scale) / 3
        c2w[:, :3, :3] = turn.T @ c2w[:, :3, :3]
        eyes, targets = ((points - model.position) @ turn / scale for points in (eyes, targets))
    distance = float(np.median(np.linalg.norm(eyes - targets, axis=-1)))
    fovs = np.array([[camera.zoomed_fov_deg] for camera in viewer])
    fov_deg = float(fovs[0, 0])
    _check_alike("target, a point", targets, distance, names)
    _check_alike("field of view, zoom included", fovs, fov_deg, names)
    c2w[:, :3, 3] = eyes - targets[0]
    poses = torch.from_numpy(c2w)
    if front_elevation_deg is not None:
        front = Cameras((0, 0), (0, 0), distance, fov_deg, front_elevation_deg)
        poses, names = torch.cat([front.c2w_opengl()[:1], poses]), ["the front", *names]
    orbit = fit_orbit(
        poses,
        fov_deg,
        names,
        "their common target",
        largest_angle_deg=_LARGEST_ANGLE_DEG,
        largest_radius_error=_LARGEST_SHARE,
    )
    return orbit if front_elevation_deg is not None else replace(orbit, input_azimuth_deg=None)


def _rotation(quaternion_xyzw: tuple[float, float, float, float]) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_quat(quaternion_xyzw).as_matrix()


def _check_alike(what: str, values: np.ndarray, size: float, names: Sequence[str]) -> None:
    """Raise ValueError where a row of values [N, C] is off the first by too large a share of ``size``."""
    gap = np.linalg.norm(values - values[0], axis=-1)
    worst = int(gap.argmax())
    if gap[worst] > _LARGEST_SHARE * size:
        first, other = (", ".join(f"{x:.4g}" for x in values[i]) for i in (0, worst))
        raise ValueError(
            f"Expected cameras with one {what} (to {100 * _LARGEST_SHARE:g} % of {size:.4g}); {names[0]} has "
            f"({first}), {names[worst]} ({other}). Give all cameras the same."
        )
