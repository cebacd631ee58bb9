"""Which cells of the hull a scene has filled, so that rays spend no samples on air."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from .dynerf import DyNeRF
from .hull import Occupancy

_CHUNK = 1 << 17


@torch.no_grad()
def dense_cells(
    scene: DyNeRF, hull: Occupancy, least_opacity: float, frames: Sequence[int] | None = None
) -> Occupancy:
    """Return the cells of the hull that the scene fills, and their neighbours within the hull.

    Args:
        scene: any state of a fit.
        hull: one set of cells per frame of the scene; nothing outside is ever filled.
        least_opacity: of one cell's width, from which a cell counts as filled.
        frames: those that have been fitted; the others keep the hull. None: all.
    """
    size = ((hull.box[1] - hull.box[0]) / hull.cells.shape[-1]).mean()
    centres = hull.centres().flatten(0, 2)
    cells = torch.zeros_like(hull.cells)
    for t, time in enumerate(scene.times):
        if frames is not None and t not in frames:
            cells[t] = hull.cells[t]
            continue
        index = hull.cells[t].flatten().nonzero()[:, 0]
        filled = torch.cat([_density(scene, part, time) for part in centres[index].split(_CHUNK)] or [index])
        cells[t].view(-1)[index] = 1 - torch.exp(-filled * size) >= least_opacity
    wider = F.max_pool3d(cells[:, None].float(), 3, 1, 1)[:, 0] > 0
    return Occupancy(wider & hull.cells, hull.box)


def _density(scene: DyNeRF, points: torch.Tensor, time: float) -> torch.Tensor:
    return scene.field.densities(points, torch.full_like(points[:, 0], time))
