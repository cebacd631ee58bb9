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
        times: [R] in 0..1; None: the field's changes over time are left out.
    """

    origins: Tensor
    directions: Tensor
    frames: Tensor
    times: Tensor | None

    def at(self, index: Tensor) -> Rays:
        """Return some of the rays."""
        times = None if self.times is None else self.times[index]
        return Rays(self.origins[index], self.directions[index], self.frames[index], times)


@dataclass(frozen=True)
class Targets:
    """What R rays should see.

    Args:
        colours: [R, 3] on white.
        opacities: [R].
        weights: [R] how much the colours count.
        normals: [R, 3] unit in the world, 0 where not known; None: none are given.
    """

    colours: Tensor
    opacities: Tensor
    weights: Tensor
    normals: Tensor | None = None

    def at(self, index: Tensor) -> Targets:
        """Return the targets of some of the rays."""
        normals = None if self.normals is None else self.normals[index]
        return Targets(self.colours[index], self.opacities[index], self.weights[index], normals)

    def as_patch(self, side: int) -> Targets:
        """Return the targets of side * side rays as one patch [1, side, side, ...]."""
        shape = (1, side, side)
        return Targets(
            self.colours.unflatten(0, shape),
            self.opacities.unflatten(0, shape),
            self.weights.unflatten(0, shape),
            None if self.normals is None else self.normals.unflatten(0, shape),
        )


class RayPool:
    """All pixels of a grid of views whose rays meet the hull; the other rays have nothing to learn.

    Args:
        views: with masks and square images.
        weights: [T, V + 1, H, W] how much a pixel's colour counts.
        hull: one set of cells per frame.
        device: where the rays are wanted.
        normals: [T, V + 1, H, W, 3] unit in the camera's OpenGL axes, 0 where not known, or None.
    """

    def __init__(
        self,
        views: ViewGrid,
        weights: Tensor,
        hull: Occupancy,
        device: torch.device | str,
        normals: Tensor | None = None,
    ) -> None:
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
        self._normals = None
        if normals is not None:
            rotations = views.cameras.c2w_opengl()[:, :3, :3].to(normals)
            self._normals = torch.einsum("vij,tvhwj->tvhwi", rotations, normals).to(device).flatten(0, 3)
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

    def draw_patch(
        self, frames: Tensor, side: int, generator: torch.Generator, *, timed: bool = True
    ) -> tuple[Rays, Targets]:
        """Return the side * side pixels, row by row, around a candidate of one view of one of the frames."""
        frame = frames[torch.randint(len(frames), (1,), generator=generator)]
        view = torch.randint(self._n_views, (1,), generator=generator)
        pair = int(frame * self._n_views + view)
        place = float(torch.rand(1, generator=generator))
        middle = int(self._ends[pair] - self._counts[pair]) + int(place * int(self._counts[pair]))
        pixel = int(self._candidates[min(middle, len(self._candidates) - 1)]) % self._pixels
        row, column = (min(max(x - side // 2, 0), self.size - side) for x in divmod(pixel, self.size))
        device = self._candidates.device
        along = torch.arange(side, device=device)
        pixels = (row + along)[:, None] * self.size + column + along
        return self._at(pair * self._pixels + pixels.flatten(), timed)

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
        normals = None if self._normals is None else self._normals[index]
        return rays, Targets(self._colours[index], self._opacities[index], self._weights[index], normals)


def _draw_views(total: int, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` different views of ``total``, the input view 0 first."""
    novel = 1 + torch.randperm(total - 1, generator=generator)[: max(count - 1, 0)]
    return torch.cat([novel.new_zeros(1), novel])
