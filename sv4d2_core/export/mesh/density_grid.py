"""A scene's density at one time, on a grid that just holds the object."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...fourd.scene import Scene4D

RESOLUTIONS = (16, 512)


@dataclass(frozen=True)
class DensityGrid:
    """Densities on a grid of cubes; beyond its border there is nothing.

    Args:
        values: [X, Y, Z] float32 on the CPU, 0 on the border.
        low: [3] the world place of entry 0, 0, 0.
        step: world units between neighbours.
    """

    values: Tensor
    low: Tensor
    step: float

    def at(self, points: Tensor) -> Tensor:
        """Return the densities at world points [..., 3], linear between the grid's, [...]."""
        sides = torch.tensor(self.values.shape) - 1
        unit = (points.float() - self.low) / (self.step * sides) * 2 - 1
        # The first axis of a sampled volume is the last of its coordinates.
        sampled = F.grid_sample(
            self.values[None, None], unit.flip(-1).reshape(1, 1, 1, -1, 3), align_corners=True
        )
        return sampled.view(points.shape[:-1])


def density_grid(scene: Scene4D, time: float, resolution: int) -> DensityGrid:
    """Return the scene's densities on a grid over its bounds at a time.

    Args:
        scene: to be looked at.
        time: in 0..1.
        resolution: steps along the longest side of the bounds, 16 to 512.

    Raises:
        ValueError: a resolution out of range, nothing at this time, densities that are not finite.
    """
    if not RESOLUTIONS[0] <= resolution <= RESOLUTIONS[1]:
        raise ValueError(
            f"Expected a resolution of {RESOLUTIONS[0]} to {RESOLUTIONS[1]} steps; got {resolution}. 128 "
            f"suits views of 576 pixels."
        )
    low, high = scene.bounds(time).float()
    sides = high - low
    if not sides.isfinite().all():
        raise ValueError(
            f"Expected an object of finite size at time {time:g}; got bounds {low.tolist()} to "
            f"{high.tolist()}. The fit diverged: fit the scene again, with a lower learning rate."
        )
    step = float(sides.max()) / resolution
    # One more on either side, so that every surface is closed.
    counts = [int(count) for count in (sides / step - 1e-4).ceil() + 3]
    low = low - step
    axes = [low[a] + step * torch.arange(counts[a]) for a in range(3)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    values = torch.zeros(counts)
    inner = points[1:-1, 1:-1, 1:-1]
    found = scene.densities(inner.reshape(-1, 3), time).cpu().float()
    wrong = int((~found.isfinite()).sum())
    if wrong:
        raise ValueError(
            f"Expected finite densities; {wrong} of {len(found)} at time {time:g} are NaN or infinite. The "
            f"fit diverged: fit the scene again, with a lower learning rate."
        )
    values[1:-1, 1:-1, 1:-1] = found.view(inner.shape[:3])
    return DensityGrid(values, low, step)
