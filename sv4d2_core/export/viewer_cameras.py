"""Cameras of three.js viewers, which ComfyUI's 3D nodes speak: +y up, looking along their own -z."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import Cameras
from ..orbits import fit_orbit
from ..scene.gaussians.splat_torch import rotations

# Viewers and renderers state their cameras to single precision: what is further off is meant.
_LARGEST_ANGLE_DEG = 0.1
_LARGEST_SHARE = 1e-3
_CENTRE = "their common target"


@dataclass(frozen=True)
class ViewerCamera:
    """One perspective camera.

    Args:
        position: where it stands, world units.
        target: the point that it looks at, world units.
        fov_deg: vertical field of view at zoom 1, degrees.
        zoom: factor on the focal length.
        quaternion_xyzw: rotation from the camera's axes to the world's; None: upright, looking at the target.

    Raises:
        ValueError: numbers that are not finite or out of range, a target where the camera stands.
    """

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    fov_deg: float
    zoom: float = 1.0
    quaternion_xyzw: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        turn = self.quaternion_xyzw or (0.0, 0.0, 0.0, 1.0)
        if not all(map(math.isfinite, (*self.position, *self.target, *turn, self.fov_deg, self.zoom))):
            raise ValueError(
                f"Expected finite numbers in a camera; got {self}. Check the node it comes from."
            )
        if not 0 < self.fov_deg < 180 or self.zoom <= 0:
            raise ValueError(
                f"Expected a field of view between 0 and 180 degrees and a zoom above 0; got "
                f"{self.fov_deg:g} and {self.zoom:g}. Set both in the node that the camera comes from."
            )
        if self.position == self.target or not any(turn):
            raise ValueError(
                f"Expected a camera that looks at a point away from itself; got position {self.position}, "
                f"target {self.target} and rotation {turn}. Move one of them."
            )

    @property
    def zoomed_fov_deg(self) -> float:
        """The field of view that is seen, degrees."""
        return math.degrees(2 * math.atan(math.tan(math.radians(self.fov_deg) / 2) / self.zoom))


@dataclass(frozen=True)
class Placement:
    """Where a viewer has put a model: world = rotation (scale x model) + position.

    Args:
        position: world units.
        quaternion_xyzw: rotation from the model's axes to the world's.
        scale: along the model's axes; only one factor for all can be taken back.

    Raises:
        ValueError: numbers that are not finite, scales that differ or are not above 0.
    """

    position: tuple[float, float, float]
    quaternion_xyzw: tuple[float, float, float, float]
    scale: tuple[float, float, float]

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

    Args:
        viewer: the cameras, in the order of the views.
        front_elevation_deg: None: the first camera is the input view. Else all are novel views, and the input
            view stands before the front (+z) of the world at this elevation, degrees.
        model: where the model stands in the viewer's world; the cameras come back in the model's own axes and
            units. None: it stands as it is.

    Raises:
        ValueError: too few cameras, targets, distances or fields of view that differ, a camera that is rolled
            or looks past its target, a pole; the message says by how much.
    """
    if not viewer:
        raise ValueError("Expected at least one camera; got none. Connect a node that makes one.")
    if len(viewer) == 1 and front_elevation_deg is None:
        raise ValueError(
            "Expected at least two cameras, the input view's first; got 1. Give more, or let the input view "
            "be the front of the world, so that the one is a novel view."
        )
    names = [f"camera {i + 1} of {len(viewer)}" for i in range(len(viewer))]
    c2w = torch.stack([_pose(camera) for camera in viewer])
    targets = _double([camera.target for camera in viewer])
    if model is not None:
        c2w, targets = _in_model(c2w, targets, model)
    distance = (c2w[:, :3, 3] - targets).norm(dim=-1).median()
    _check_targets(targets, distance, names)
    c2w[:, :3, 3] -= targets[0]
    fov_deg = _common_fov_deg(viewer, names)
    if front_elevation_deg is not None:
        front = Cameras((0, 0), (0, 0), float(distance), fov_deg, front_elevation_deg)
        c2w, names = torch.cat([front.c2w_opengl()[:1], c2w]), ["the front", *names]
    return fit_orbit(
        c2w,
        fov_deg,
        names,
        _CENTRE,
        largest_angle_deg=_LARGEST_ANGLE_DEG,
        largest_radius_error=_LARGEST_SHARE,
    )


def _double(numbers: object) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _pose(camera: ViewerCamera) -> Tensor:
    """Return the camera-to-world matrix, [4, 4] float64."""
    position, target = _double([camera.position, camera.target])
    c2w = torch.eye(4, dtype=torch.float64)
    c2w[:3, 3] = position
    if camera.quaternion_xyzw is not None:
        c2w[:3, :3] = _rotation(camera.quaternion_xyzw)
        return c2w
    back = torch.nn.functional.normalize(position - target, dim=-1)
    right = torch.linalg.cross(_double([0.0, 1.0, 0.0]), back)
    # Straight from above or below any turn is upright.
    right = right if right.norm() > 1e-9 else _double([1.0, 0.0, 0.0])
    right = torch.nn.functional.normalize(right, dim=-1)
    c2w[:3, :3] = torch.stack([right, torch.linalg.cross(back, right), back], dim=-1)
    return c2w


def _rotation(quaternion_xyzw: tuple[float, float, float, float]) -> Tensor:
    x, y, z, w = quaternion_xyzw
    return rotations(_double([[w, x, y, z]]))[0]


def _in_model(c2w: Tensor, targets: Tensor, model: Placement) -> tuple[Tensor, Tensor]:
    """Return the poses [N, 4, 4] and targets [N, 3] in the model's own axes and units."""
    rotation, position = _rotation(model.quaternion_xyzw), _double(model.position)
    scale = sum(model.scale) / 3
    inside = c2w.clone()
    inside[:, :3, :3] = rotation.T @ c2w[:, :3, :3]
    inside[:, :3, 3] = (c2w[:, :3, 3] - position) @ rotation / scale
    return inside, (targets - position) @ rotation / scale


def _check_targets(targets: Tensor, distance: Tensor, names: Sequence[str]) -> None:
    gap = (targets - targets[0]).norm(dim=-1)
    worst = int(gap.argmax())
    if gap[worst] > _LARGEST_SHARE * distance:
        first, other = (", ".join(f"{x:.4g}" for x in targets[i].tolist()) for i in (0, worst))
        raise ValueError(
            f"Expected cameras that look at one point (to {100 * _LARGEST_SHARE:g} % of their distance "
            f"{distance:.4g}); {names[0]} looks at ({first}), {names[worst]} at ({other}), {gap[worst]:.4g} "
            f"away. Give all cameras one target."
        )


def _common_fov_deg(viewer: Sequence[ViewerCamera], names: Sequence[str]) -> float:
    fovs = [camera.zoomed_fov_deg for camera in viewer]
    worst = max(range(len(fovs)), key=lambda i: abs(fovs[i] - fovs[0]))
    if abs(fovs[worst] - fovs[0]) > _LARGEST_SHARE * fovs[0]:
        raise ValueError(
            f"Expected one field of view for all cameras, zoom included (to {100 * _LARGEST_SHARE:g} %); got "
            f"{fovs[0]:.4g} degrees for {names[0]} and {fovs[worst]:.4g} for {names[worst]}. Give all "
            f"cameras one fov and one zoom."
        )
    return fovs[0]
