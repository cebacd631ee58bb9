"""The way of an object that the crop of its clip has followed: it is given back to the scene.

The views of a clip that was cropped around the object frame by frame show it in their middle all the time,
and so does a scene that is fitted to them. The path says where its middle is in truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras
from ..video.crop import CropPath

# Shifts below this, world units, are not worth a path.
_STILL = 1e-4


@dataclass(frozen=True)
class ObjectPath:
    """Where the middle of the object is at the times of the frames.

    Args:
        times: [T] rising, in 0..1.
        shifts: [T] x, y, z from the world's origin, world units.
    """

    times: tuple[float, ...]
    shifts: tuple[tuple[float, float, float], ...]

    def at(self, time: float) -> Tensor:
        """Return the shift at a time, [3] float64, linear between the frames and constant beyond them."""
        shifts = np.asarray(self.shifts)
        return torch.tensor([np.interp(time, self.times, shifts[:, axis]) for axis in range(3)])

    def seen_by(self, cameras: Cameras) -> Cameras:
        """Return the cameras with a field of view that holds the whole path of what theirs held at rest."""
        farthest = max(math.dist(shift, (0, 0, 0)) for shift in self.shifts)
        half = math.tan(math.radians(cameras.fov_deg) / 2) + farthest / cameras.radius
        return replace(cameras, fov_deg=2 * math.degrees(math.atan(half)))

    def to_json(self) -> dict:
        """Return the fields as plain JSON values; `from_json` reads them back."""
        return {"times": list(self.times), "shifts": [list(shift) for shift in self.shifts]}

    @classmethod
    def from_json(cls, data: dict) -> ObjectPath:
        """Return the path that `to_json` wrote. Raises KeyError, TypeError, ValueError for anything else."""
        shifts = tuple((float(x), float(y), float(z)) for x, y, z in data["shifts"])
        return cls(tuple(float(t) for t in data["times"]), shifts)


def object_path(crop: CropPath, cameras: Cameras, times: Sequence[float]) -> ObjectPath | None:
    """Return the path that a crop followed, or None where it stood still.

    The object is taken to move across the input camera's view, at the distance of the origin; what it moves
    towards the camera cannot be told from a crop of one size. The middle of the path is the origin.

    Args:
        crop: of the input clip, one centre per frame.
        cameras: of the views.
        times: [T] of the frames.

    Raises:
        ValueError: another number of centres than times.
    """
    if len(crop.centers) != len(times):
        raise ValueError(
            f"Expected a crop of {len(times)} frames, as the views have; got one of {len(crop.centers)}. "
            f"Give the crop that belongs to these views, or leave it out (the object then stays centred)."
        )
    centers = np.asarray(crop.centers)
    middle = (centers.min(0) + centers.max(0)) / 2
    # One crop is as large as the picture, at the distance of the origin.
    width = 2 * cameras.radius * math.tan(math.radians(cameras.fov_deg) / 2)
    across = torch.from_numpy((centers - middle) / crop.side * width)
    right, up = cameras.c2w_opengl()[0, :3, :2].T
    shifts = across[:, :1] * right - across[:, 1:] * up
    if float(shifts.abs().max()) < _STILL:
        return None
    return ObjectPath(tuple(times), tuple((x, y, z) for x, y, z in shifts.tolist()))
