"""Where points move between frames: grids of offsets per frame, from coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .frame_path import frame_shares
from .losses import second_difference


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
