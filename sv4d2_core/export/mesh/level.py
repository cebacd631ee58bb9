"""The density at which a scene's surface is: where its silhouettes are those of its own pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...fourd.scene import Scene4D, own_cameras
from .density_grid import DensityGrid, density_grid

# Pictures are compared at this size, at this many times.
_SIZE = 64
_TIMES = 3
# Levels that are tried, from the highest density down to this share of it.
_LEVELS = 48
_LOWEST = 1e-3
# Levels that agree with the pictures up to this share of the best do as well; the middle of them is taken.
_ALIKE = 0.995


def surface_level(scene: Scene4D, resolution: int = 96) -> float:
    """Return the density of the surface whose silhouettes are nearest to those of the scene's pictures.

    A pixel belongs to the surface's silhouette where the highest density along its ray reaches the level, and
    to the picture's where its opacity is at least 0.5. The level is one for the whole scene, so that the
    surface does not breathe.

    Raises:
        ValueError: nothing in the scene, or in its pictures.
    """
    peaks, seen = zip(*(_one_time(scene, time, resolution) for time in _sampled(scene.times)), strict=True)
    peak, visible = torch.cat(peaks), torch.cat(seen)
    if not visible.any() or not float(peak.max()) > 0:
        raise ValueError(
            f"Expected a scene whose pictures show something; {int(visible.sum())} of {visible.numel()} "
            f"pixels of its {scene.cameras.n_views + 1} views are opaque. Fit the scene with more steps."
        )
    top = float(peak.max())
    levels = top * torch.logspace(0, math.log10(_LOWEST), _LEVELS)
    overlaps = torch.stack([_overlap(peak >= level, visible) for level in levels])
    good = (overlaps >= _ALIKE * overlaps.max()).nonzero()[:, 0]
    return float(levels[good[len(good) // 2]])


def _one_time(scene: Scene4D, time: float, resolution: int) -> tuple[Tensor, Tensor]:
    """Return the highest density along the rays of all pictures at a time, and which pixels are opaque."""
    cameras = own_cameras(scene)
    grid = density_grid(scene, time, resolution)
    alpha = scene.render(cameras, [time], _SIZE).alpha[0]
    origins, directions = cameras.rays(_SIZE)
    peaks = [_peak(grid, eye, rays) for eye, rays in zip(origins, directions, strict=True)]
    return torch.stack(peaks), alpha >= 0.5


def _peak(grid: DensityGrid, eye: Tensor, directions: Tensor) -> Tensor:
    """Return the highest density along rays [H, W, 3] from an eye [3], [H, W]."""
    middle = grid.low + grid.step * (torch.tensor(grid.values.shape) - 1) / 2
    reach = grid.step * math.dist(grid.values.shape, (0, 0, 0)) / 2
    count = math.ceil(2 * reach / grid.step)
    distances = float((eye - middle).norm()) + torch.linspace(-reach, reach, count)
    peak = torch.zeros(directions.shape[:2])
    for distance in distances.clamp(min=0):
        peak = torch.maximum(peak, grid.at(eye + distance * directions))
    return peak


def _sampled(times: tuple[float, ...]) -> list[float]:
    """Return a few of the times, evenly spread, the first and the last among them."""
    count = min(_TIMES, len(times))
    return [times[round(i * (len(times) - 1) / max(count - 1, 1))] for i in range(count)]


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    """Return the intersection over the union of two masks."""
    return (one & other).sum() / (one | other).sum().clamp(min=1)
