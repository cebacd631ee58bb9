"""Which rays a step of the fit follows: pixels near the hull, drawn evenly over the chosen pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...views import ViewGrid
from ..geometry.hull import Occupancy, hull_pixels
from ..losses import depth_smoothness, dissimilarity, normal_consistency, normal_smoothness

# Weights of the terms of a patch; a perceptual distance takes the place of 1 - SSIM.
_WEIGHT_SSIM = _WEIGHT_PERCEPTUAL = 0.1
_WEIGHT_DEPTH, _WEIGHT_NORMAL_SMOOTHNESS, _WEIGHT_NORMAL = 0.01, 0.02, 0.05


class Rays(NamedTuple):
    """R rays."""

    origins: Tensor  # [R, 3] camera centres, world units
    directions: Tensor  # [R, 3] unit
    frames: Tensor  # [R] indices of frames, for the occupancy
    times: Tensor | None  # [R] in 0..1; None: the field's changes over time are left out

    def at(self, index: Tensor) -> Rays:
        return Rays(*(None if part is None else part[index] for part in self))  # pyright: ignore


class Targets(NamedTuple):
    """What R rays should see."""

    colours: Tensor  # [R, 3] on white
    opacities: Tensor  # [R]
    weights: Tensor  # [R] how much the colours count
    normals: Tensor | None = None  # [R, 3] unit in the world, 0 where not known; None: none are given

    def at(self, index: Tensor) -> Targets:
        return Targets(*(None if part is None else part[index] for part in self))  # pyright: ignore

    def as_patch(self, side: int) -> Targets:
        """Return the targets of side * side rays as one patch [1, side, side, ...]."""
        shape = (1, side, side)
        return Targets(*(None if part is None else part.unflatten(0, shape) for part in self))  # pyright: ignore


class RayPool:
    """All pixels of a grid of views whose rays meet the hull; the other rays have nothing to learn."""

    def __init__(
        self,
        views: ViewGrid,  # with masks
        weights: Tensor,  # [T, V + 1, H, W] how much a pixel's colour counts
        hull: Occupancy,
        device: torch.device | str,
        normals: Tensor | None = None,  # [T, V + 1, H, W, 3] in the camera's OpenGL axes, 0 where not known
    ) -> None:
        assert views.masks is not None
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
        timed: bool,
    ) -> tuple[Rays, Targets]:
        """Return about ``count`` rays, spread over ``n_views`` views of each frame, the input included.

        Pictures without candidates borrow a neighbour's, so that the number of rays stays the same.
        """
        novel = self._n_views - 1
        views = [1 + torch.randperm(novel, generator=generator)[: max(n_views - 1, 0)] for _ in frames]
        views = F.pad(torch.stack(views), (1, 0))
        pairs = (frames[:, None] * self._n_views + views).flatten()
        per_pair = max(count // len(pairs), 1)
        place = torch.rand(len(pairs), per_pair, generator=generator)
        first = self._ends[pairs] - self._counts[pairs]
        index = first[:, None] + (place * self._counts[pairs][:, None]).long()
        index = index.flatten().clamp(max=len(self._candidates) - 1).to(self._candidates.device)
        return self._at(self._candidates[index], timed)

    def draw_patch(
        self, frames: Tensor, side: int, generator: torch.Generator, timed: bool
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
        times = self._times[frame] if timed else None
        rays = Rays(self._eyes[view], self._directions[view * self._pixels + pixel], frame, times)
        normals = None if self._normals is None else self._normals[index]
        return rays, Targets(self._colours[index], self._opacities[index], self._weights[index], normals)


def box_span(origins: Tensor, directions: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Return where rays [R, 3] enter and leave a box [2, 3], [R] each, in lengths of their directions.

    A ray that misses the box has exit <= entry.
    """
    # A direction parallel to a side would divide 0 by 0.
    inverse = 1 / torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    to_corners = (box[:, None] - origins) * inverse  # [2, R, 3]
    entry = to_corners.amin(0).amax(-1).clamp(min=0)
    return entry, to_corners.amax(0).amin(-1)


def sample_distances(entry: Tensor, leave: Tensor, samples: int, jitter: Tensor | None = None) -> Tensor:
    """Return distances [R, S], one in each of S equal stretches, at ``jitter`` [R, S] in 0..1; None: 0.5."""
    place = torch.arange(samples, dtype=entry.dtype, device=entry.device)
    place = (place + (0.5 if jitter is None else jitter)) / samples
    return entry[:, None] + (leave - entry)[:, None] * place


def ray_weights(density: Tensor, lengths: Tensor) -> Tensor:
    """Return the weights of density [R, S] over stretches [R, S] or [R, 1]; their sum is the opacity."""
    optical = density * lengths
    # The sum of logarithms stays exact where a product of transmittances would underflow.
    before = torch.cumsum(optical, dim=-1) - optical
    return torch.exp(-before) * -torch.expm1(-optical)


def composite_on_white(weights: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
    """Return the colour on white, [R, 3], and the opacity, [R], of weights [R, S] and colours [R, S, 3]."""
    opacity = weights.sum(-1)
    return (weights[..., None] * colours).sum(-2) + (1 - opacity)[:, None], opacity


# Distance of two sets of images [N, P, P, 3] in 0..1, [N], differentiable in the first.
Perceptual = Callable[[Tensor, Tensor], Tensor]


def patch_loss(
    colours: Tensor,  # [N, P, P, 3]
    alpha: Tensor,  # [N, P, P]
    depths: Tensor,  # [N, P, P] along the rays, world units
    points: Tensor,  # [N, P, P, 3] where the depths lie in the world
    target: Targets,  # of shape [N, P, P, ...]
    perceptual: Perceptual | None = None,
) -> Tensor:
    """Return the weighted sum of the terms that need pixels side by side."""
    seen = alpha.detach()
    # The neighbours to the right and below make a pixel's normal.
    solid = seen * F.pad(seen[:, :, 1:], (0, 1)) * F.pad(seen[:, 1:], (0, 0, 0, 1))
    if perceptual is not None:
        # Distances are of float64, which Apple's GPUs do not have.
        structure = _WEIGHT_PERCEPTUAL * perceptual(colours, target.colours).mean().to(colours)
    else:
        structure = _WEIGHT_SSIM * dissimilarity(colours, target.colours)
    normals = surface_normals(points)
    # A doubtful patch counts less as a whole.
    loss = target.weights.mean() * structure + _WEIGHT_DEPTH * depth_smoothness(depths, seen)
    loss = loss + _WEIGHT_NORMAL_SMOOTHNESS * normal_smoothness(normals, target.colours, solid)
    if target.normals is not None:
        known = target.normals.norm(dim=-1) > 0.5
        given = normal_consistency(normals, target.normals, solid * known * target.weights)
        loss = loss + _WEIGHT_NORMAL * given
    return loss


def surface_normals(points: Tensor) -> Tensor:
    """Return unit normals of points [N, P, P, 3] towards the camera; the last row and column are copies."""
    right, down = points.diff(dim=2)[:, :-1], points.diff(dim=1)[:, :, :-1]
    normals = F.normalize(torch.linalg.cross(down, right), dim=-1, eps=1e-9)
    return F.pad(normals.movedim(-1, 1), (0, 1, 0, 1), mode="replicate").movedim(1, -1)
