"""Motion that takes the points of a field from any time to the anchor frame: rigid, and a grid of offsets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..losses import second_difference


def frame_shares(times: Tensor, count: int) -> Tensor:
    """Return how much each of ``count`` evenly spaced frames contributes at times [N] in 0..1, [N, count].

    Source: Catmull and Rom 1974, cubic convolution with a = -1/2; at its own time a frame contributes alone.
    """
    frames = torch.arange(count, device=times.device, dtype=times.dtype)
    d = (times[:, None] * (count - 1) - frames).abs()
    near, far = (1.5 * d - 2.5) * d**2 + 1, ((2.5 - 0.5 * d) * d - 4) * d + 2
    shares = torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))
    return shares / shares.sum(-1, keepdim=True)


def rotations_about(vectors: Tensor) -> Tensor:
    """Return the rotations [N, 3, 3] about vectors [N, 3], each as long as its angle, radians."""
    x, y, z = vectors.unbind(-1)
    none = torch.zeros_like(x)
    skew = torch.stack([none, -z, y, z, none, -x, -y, x, none], dim=-1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(skew)


class FramePath(nn.Module):
    """A rigid motion per frame, T of them evenly spaced over 0..1; it starts as no motion."""

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
    def start(
        self,
        centres: Tensor,  # [T, 3] in -1..1 of the box
        turns: Tensor,  # [T, 3] rotation vectors from a frame to the anchor, in world axes
        box: Tensor,  # [2, 3] corners, world units
        home: Tensor,  # [3] centre at the anchor frame, where all points are taken
    ) -> None:
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
        matrices = rotations_about(shares @ self.turns) * self.extent / self.extent[:, None]
        bias = self.home - (matrices @ centres[..., None])[..., 0]
        return (matrices[which] * points[:, None]).sum(-1) + bias[which]


class OffsetGrids(nn.Module):
    """Offsets at points in -1..1 at times in 0..1, smooth in both; 0 at first; finer grids fade in.

    In place of the papers' network D(x, t): at a few hundred steps they learn more, see
    `tests/bench/README.md`.
    """

    share: Tensor  # 0..1, how far the finer grids have faded in

    def __init__(self, sizes: Sequence[int], n_frames: int) -> None:
        super().__init__()
        self.n_frames = n_frames
        self.grids = nn.ParameterList(torch.zeros(3 * n_frames, size, size, size) for size in sizes)
        self.register_buffer("share", torch.ones(()))

    def forward(self, points: Tensor, times: Tensor) -> Tensor:
        """Return the offsets [N, 3] of points [N, 3] at times [N]."""
        place = points.nan_to_num()[None, None, None]  # see `sample_planes`
        # The coarsest grid is always on, the others fade in by a cosine, one after the other.
        order = torch.arange(len(self.grids), device=self.share.device)
        faded = (self.share * max(len(self.grids) - 1, 1) - (order - 1)).clamp(0, 1)
        values = torch.zeros(3 * self.n_frames, len(points), device=points.device, dtype=points.dtype)
        for grid, weight in zip(self.grids, (1 - torch.cos(math.pi * faded)) / 2, strict=True):
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
        pairs = [(grid, axis) for grid in self.grids for axis in (1, 2, 3)]
        terms = [grid.diff(dim=axis).square().mean() * (grid.shape[axis] - 1) for grid, axis in pairs]
        return torch.stack(terms).sum()

    def acceleration(self) -> Tensor:
        return torch.stack([second_difference(grid.view(self.n_frames, -1)) for grid in self.grids]).sum()

    def size(self) -> Tensor:
        return torch.stack([grid.square().mean() for grid in self.grids]).sum()
