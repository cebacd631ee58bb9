"""Which rays a step of the fit follows: pixels near the hull, drawn evenly over the chosen pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..views import ViewGrid
from .hull import Occupancy, hull_pixels


@dataclass(frozen=True)
class Rays:
    """R rays.

    Args:
        origins: [R, 3] camera centres, world units.
        directions: [R, 3] unit.
        frames: [R] indices of frames, for the occupancy.
        times: [R] in 0..1; None: the field's planes of time are left out.
    """

    origins: Tensor
    directions: Tensor
    frames: Tensor
    times: Tensor | None


@dataclass(frozen=True)
class Targets:
    """What R rays should see: colours on white [R, 3], opacities [R] and how much the colours count [R]."""

    colours: Tensor
    opacities: Tensor
    weights: Tensor


class RayPool:
    """All pixels of a grid of views whose rays meet the hull; the other rays have nothing to learn.

    Args:
        views: with masks and square images.
        weights: [T, V + 1, H, W] how much a pixel's colour counts.
        hull: one set of cells per frame.
        device: where the rays are wanted.
    """

    def __init__(self, views: ViewGrid, weights: Tensor, hull: Occupancy, device: torch.device | str) -> None:
        if views.masks is None:
            raise ValueError("Expected views with masks; got none.")
        self.size = views.images.shape[-2]
        self._pixels = self.size**2
        self._n_views = views.n_views + 1
        candidates = hull_pixels(hull, views.cameras, self.size).to(device)
        self._candidates = candidates.flatten().nonzero()[:, 0]
        counts = candidates.flatten(2).sum(-1).flatten().cpu()  # [T * (V + 1)]
        self._counts, self._ends = counts, counts.cumsum(0)
        eyes, directions = views.cameras.rays(self.size)
        self._eyes = eyes.to(device, torch.float32)
        self._directions = directions.to(device, torch.float32).flatten(0, 2)
        self._colours = views.images.to(device).flatten(0, 3)
        self._opacities = views.masks.to(device).flatten()
        self._weights = weights.to(device).flatten()
        self._times = torch.tensor(views.frame_times(), device=device)

    def draw(
        self,
        frames: Tensor,  # [F] indices
        n_views: int,
        count: int,
        generator: torch.Generator,
        *,
        timed: bool = True,
    ) -> tuple[Rays, Targets]:
        """Return about ``count`` rays, spread over ``n_views`` views of each frame, the input included.

        Pictures without candidates borrow those of a neighbour, so that the number of rays stays the same.
        """
        views = torch.stack([_draw_views(self._n_views, n_views, generator) for _ in frames])
        pairs = (frames[:, None] * self._n_views + views).flatten()
        per_pair = max(count // len(pairs), 1)
        place = torch.rand(len(pairs), per_pair, generator=generator)
        first = self._ends[pairs] - self._counts[pairs]
        index = first[:, None] + (place * self._counts[pairs][:, None]).long()
        index = index.flatten().clamp(max=len(self._candidates) - 1).to(self._candidates.device)
        return self._at(self._candidates[index], timed)

    def _at(self, index: Tensor, timed: bool) -> tuple[Rays, Targets]:
        """Return the rays and targets of flat indices over [T, V + 1, H, W]."""
        pair, pixel = index // self._pixels, index % self._pixels
        frame, view = pair // self._n_views, pair % self._n_views
        rays = Rays(
            self._eyes[view],
            self._directions[view * self._pixels + pixel],
            frame,
            self._times[frame] if timed else None,
        )
        return rays, Targets(self._colours[index], self._opacities[index], self._weights[index])


def _draw_views(total: int, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` different views of ``total``, the input view 0 first."""
    novel = 1 + torch.randperm(total - 1, generator=generator)[: max(count - 1, 0)]
    return torch.cat([novel.new_zeros(1), novel])
