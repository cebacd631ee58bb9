"""The motion of a whole object as one rigid motion per frame, so that a field need not learn it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...cameras import Cameras
from ...video.crop import CropPath
from ..losses import second_difference


def frame_shares(times: Tensor, count: int) -> Tensor:
    """Return how much each of ``count`` evenly spaced frames contributes at times [N] in 0..1, [N, count].

    At a frame's own time it contributes alone; in between, four frames make a smooth curve.
    Source: Catmull and Rom 1974, cubic convolution with a = -1/2.
    """
    frames = torch.arange(count, device=times.device, dtype=times.dtype)
    d = (times[:, None] * (count - 1) - frames).abs()
    near, far = (1.5 * d - 2.5) * d**2 + 1, ((2.5 - 0.5 * d) * d - 4) * d + 2
    shares = torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))
    return shares / shares.sum(-1, keepdim=True)


def rotations(vectors: Tensor) -> Tensor:
    """Return the rotations [N, 3, 3] about vectors [N, 3], each as long as its angle, radians."""
    x, y, z = vectors.unbind(-1)
    none = torch.zeros_like(x)
    skew = torch.stack([none, -z, y, z, none, -x, -y, x, none], dim=-1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(skew)


class FramePath(nn.Module):
    """Takes points of any time to where they are at the anchor frame; it starts as no motion.

    Args:
        n_frames: T, evenly spaced over 0..1.
    """

    extent: Tensor  # [3] of the box, relative to its longest side: rotations need equal axes
    home: Tensor  # [3] centre of the object at the anchor frame

    def __init__(self, n_frames: int) -> None:
        super().__init__()
        self.n_frames = n_frames
        self.centres = nn.Parameter(torch.zeros(n_frames, 3))
        self.turns = nn.Parameter(torch.zeros(n_frames, 3))
        self.register_buffer("extent", torch.ones(3))
        self.register_buffer("home", torch.zeros(3))

    @torch.no_grad()
    def start(self, centres: Tensor, turns: Tensor, box: Tensor, home: Tensor) -> None:
        """Start from a known motion.

        Args:
            centres: [T, 3] in -1..1 of the box.
            turns: [T, 3] rotation vectors from a frame to the anchor, in world axes.
            box: [2, 3] corners, world units.
            home: [3] centre at the anchor frame, where all points are taken.
        """
        self.centres.copy_(centres)
        self.turns.copy_(turns)
        self.home.copy_(home)
        sides = box[1] - box[0]
        self.extent.copy_(sides / sides.max())

    def forward(self, points: Tensor, times: Tensor) -> Tensor:
        """Return where points [N, 3], seen at times [N], are at the anchor frame, [N, 3]."""
        moments, which = times.unique(return_inverse=True)
        shares = frame_shares(moments, self.n_frames)
        centres = shares @ self.centres
        matrices = rotations(shares @ self.turns) * self.extent / self.extent[:, None]
        bias = self.home - (matrices @ centres[..., None])[..., 0]
        return (matrices[which] * points[:, None]).sum(-1) + bias[which]


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


class OffsetGrids(nn.Module):
    """Offsets at points in -1..1 at times in 0..1, smooth in both; they start at 0.

    It takes the place of the papers' network D(x, t): at a few hundred steps it learns more, see
    `tests/bench/README.md`. The finer grids fade in as the network's higher bands do.

    Args:
        sizes: nodes along an axis of space, per scale, from coarse to fine.
        n_frames: T, evenly spaced over 0..1.
    """

    share: Tensor  # 0..1, how far the finer grids have faded in

    def __init__(self, sizes: Sequence[int], n_frames: int) -> None:
        super().__init__()
        self.n_frames = n_frames
        self.grids = nn.ParameterList(torch.zeros(3 * n_frames, size, size, size) for size in sizes)
        self.register_buffer("share", torch.ones(()))

    def anneal(self, share: float) -> None:
        """Fade the finer grids in one after the other, by a cosine; all are on at ``share`` 1."""
        self.share.fill_(share)

    def forward(self, points: Tensor, times: Tensor) -> Tensor:
        """Return the offsets [N, 3] of points [N, 3] at times [N]."""
        place = points[None, None, None]
        values = torch.zeros(3 * self.n_frames, len(points), device=points.device, dtype=points.dtype)
        for grid, weight in zip(self.grids, self._weights(), strict=True):
            sampled = F.grid_sample(grid[None], place, align_corners=True, padding_mode="border")
            values = values + weight * sampled[0, :, 0, 0]
        shares = frame_shares(times, self.n_frames).T[:, None]
        return (values.unflatten(0, (self.n_frames, 3)) * shares).sum(0).T

    @torch.no_grad()
    def hold(self, first: float, last: float) -> None:
        """Give the frames outside first..last the offsets of the nearer of these two."""
        nodes = torch.linspace(0, 1, self.n_frames)
        nearest = (nodes.clamp(first, last) * max(self.n_frames - 1, 1)).round().long()
        for grid in self.grids:
            frames = grid.unflatten(0, (self.n_frames, 3))
            grid.copy_(frames[nearest.to(grid.device)].flatten(0, 1))

    def slope(self) -> Tensor:
        """Return the mean squared difference of neighbouring nodes, times the nodes along an axis."""
        terms = [
            grid.diff(dim=d).square().mean() * (grid.shape[d] - 1) for grid in self.grids for d in (1, 2, 3)
        ]
        return torch.stack(terms).sum()

    def acceleration(self) -> Tensor:
        """Return the mean squared second difference over the frames."""
        return torch.stack([second_difference(grid.view(self.n_frames, -1)) for grid in self.grids]).sum()

    def size(self) -> Tensor:
        """Return the mean squared offset."""
        return torch.stack([grid.square().mean() for grid in self.grids]).sum()

    def _weights(self) -> Tensor:
        """Return the weight of every scale, [scales]; the coarsest is always on."""
        order = torch.arange(len(self.grids), device=self.share.device)
        faded = (self.share * max(len(self.grids) - 1, 1) - (order - 1)).clamp(0, 1)
        return (1 - torch.cos(math.pi * faded)) / 2
