"""Where the object can be: the visual hull of its silhouettes, one grid of cells per frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...cameras import Cameras

_LEAST_COVERAGE = 0.97  # of the silhouettes by the hull, else one more view may miss a cell
_DILATION, _REFERENCE_SIZE = 1.0, 64  # pixels of 64 that silhouettes are widened by: 0 costs a walker 2 dB
_REACH = 12  # cells, beyond which the distance to a hull no longer grows


@dataclass(frozen=True)
class Occupancy:
    """Cells of a box that may hold something, per frame."""

    cells: Tensor  # [T, G, G, G] bool, axes z, y, x
    box: Tensor  # [2, 3] the lower and the upper corner, world units

    def to_unit(self, points: Tensor) -> Tensor:
        """Return world points [..., 3] in the box's coordinates -1..1."""
        low, high = self.box
        return (points - low) / (high - low) * 2 - 1

    def contains(self, unit: Tensor, frames: Tensor | int) -> Tensor:
        """Return whether points [N, 3] in -1..1 of the box lie in an occupied cell of their frames [N]."""
        n = self.cells.shape[-1]
        index = ((unit + 1) * (n / 2)).long()
        inside = ((index >= 0) & (index < n)).all(-1)
        x, y, z = index.clamp(0, n - 1).unbind(-1)
        return self.cells.flatten()[((frames * n + z) * n + y) * n + x] & inside

    def centres(self) -> Tensor:
        """Return the centres of the cells in -1..1 of the box, [G, G, G, 3], axes z, y, x."""
        n = self.cells.shape[-1]
        middle = (torch.arange(n, device=self.cells.device) + 0.5) / n * 2 - 1
        z, y, x = torch.meshgrid(middle, middle, middle, indexing="ij")
        return torch.stack([x, y, z], dim=-1)


def visual_hull(
    masks: Tensor,  # [T, V + 1, H, H] in 0..1; a pixel belongs to the silhouette from 0.5 on
    cameras: Cameras,
    size: int,  # G, cells along an axis
) -> Occupancy:
    """Return the cells that all views see in their widened silhouettes, or all but a few.

    As many views may miss a cell as it takes for the hull to cover 97 % of the silhouettes. It is carved
    again on the box that it left, so that no cell is wasted. Raises ValueError for silhouettes that
    contradict each other or the cameras.
    """
    reach = math.ceil(_DILATION * masks.shape[-1] / _REFERENCE_SIZE)
    binary = (masks >= 0.5).float().flatten(0, 1)[:, None]
    # Along rows, then along columns: a square window costs its area.
    wide = F.max_pool2d(binary, (1, 2 * reach + 1), 1, (0, reach))
    wide = F.max_pool2d(wide, (2 * reach + 1, 1), 1, (reach, 0))
    silhouettes = wide[:, 0].unflatten(0, tuple(masks.shape[:2])) > 0
    for misses in range(cameras.n_views):
        hull = _carved_twice(silhouettes, cameras, size, misses)
        if hull is None:
            continue
        covered = (masks >= 0.5) & hull_pixels(hull, cameras, masks.shape[-1])
        if float(covered.sum() / (masks >= 0.5).sum().clamp(min=1)) >= _LEAST_COVERAGE:
            return hull
    raise ValueError(
        f"Expected silhouettes of one object; no part of space is seen by the {cameras.n_views + 1} views "
        f"together. Check that masks and cameras belong together (order of the views, elevation, field of "
        f"view {cameras.fov_deg:g}, radius {cameras.radius:g})."
    )


def hull_pixels(hull: Occupancy, cameras: Cameras, size: int) -> Tensor:
    """Return whether a pixel's ray comes near an occupied cell, [T, V + 1, size, size] bool."""
    n, n_frames = hull.cells.shape[-1], len(hull.cells)
    coarse = min(size, n)
    centres = _world(hull)
    n_views = cameras.n_views + 1
    seen = torch.zeros(n_frames, n_views, coarse * coarse, dtype=torch.bool, device=centres.device)
    for v in range(n_views):
        column, row, inside = project(centres, cameras, v, coarse)
        pixel = row * coarse + column
        for t in range(n_frames):
            seen[t, v, pixel[hull.cells[t].flatten() & inside]] = True
    seen = seen.unflatten(-1, (coarse, coarse)).float().flatten(0, 1)[:, None]
    seen = F.interpolate(F.max_pool2d(seen, 3, 1, 1), (size, size), mode="nearest")
    return seen[:, 0].unflatten(0, (n_frames, -1)) > 0


def _carved_twice(silhouettes: Tensor, cameras: Cameras, size: int, misses: int) -> Occupancy | None:
    """Return the hull on the box that just holds it, or None if it is empty."""
    # What the input camera sees at the origin, and as much in depth.
    reach = cameras.radius * math.sin(math.radians(cameras.fov_deg) / 2) * 1.1
    box = torch.tensor([[-reach] * 3, [reach] * 3], device=silhouettes.device)
    first = _carved(silhouettes, cameras, box, size, misses)
    used = first.cells.any(0).nonzero().flip(-1)  # x, y, z
    if not len(used):
        return None
    cell = (box[1] - box[0]) / size
    low, high = box[0] + (used.amin(0) - 1) * cell, box[0] + (used.amax(0) + 2) * cell
    return _carved(silhouettes, cameras, torch.stack([low, high]), size, misses)


def _carved(silhouettes: Tensor, cameras: Cameras, box: Tensor, size: int, misses: int) -> Occupancy:
    n_frames, n_views, height = silhouettes.shape[:3]
    empty = torch.zeros(n_frames, size, size, size, dtype=torch.bool, device=silhouettes.device)
    centres = _world(Occupancy(empty, box))
    seen = torch.zeros(n_frames, len(centres), dtype=torch.int16, device=silhouettes.device)
    beside = torch.zeros_like(seen)
    # What lies beside a picture is empty, unless the picture cuts the object off.
    borders = torch.cat([silhouettes[..., [0, -1], :].flatten(2), silhouettes[..., [0, -1]].flatten(2)], -1)
    cut_off = borders.any(-1)  # [T, V + 1]
    for v in range(n_views):
        column, row, inside = project(centres, cameras, v, height)
        seen += silhouettes[:, v].flatten(1)[:, row * height + column] & inside
        beside += cut_off[:, v, None] & ~inside
    kept = (seen + beside >= n_views - misses) & (2 * seen > n_views)
    return Occupancy(kept.view_as(empty), box)


def _world(hull: Occupancy) -> Tensor:
    """Return the world coordinates of all cells' centres, [G^3, 3]."""
    low, high = hull.box
    return (low + (hull.centres() + 1) / 2 * (high - low)).flatten(0, 2)


def project(points: Tensor, cameras: Cameras, view: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return columns and rows [N] of the pixels that show points [N, 3], clamped, and which are inside."""
    matrix = (cameras.intrinsics(size) @ cameras.w2c_opencv()[view, :3]).to(points)
    x, y, depth = (points @ matrix[:, :3].T + matrix[:, 3]).unbind(-1)
    column, row = (x / depth).floor().long(), (y / depth).floor().long()
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size) & (depth > 0)
    return column.clamp(0, size - 1), row.clamp(0, size - 1), inside


def surface_points(hull: Occupancy, frame: int) -> Tensor:
    """Return the centres of a frame's occupied cells that touch an empty one, [P, 3] world units."""
    cells = hull.cells[frame]
    inner = F.max_pool3d(1 - F.pad(cells.float(), (1,) * 6)[None], 3, 1)[0] == 0
    return _world(hull)[(cells & ~inner).flatten()]


class HullDistance:
    """Distances to the occupied cells of every frame of a hull."""

    def __init__(self, hull: Occupancy) -> None:
        self.hull = hull
        # Counts of widenings that do not reach a cell: at most _REACH, so a byte will do.
        self._distances = torch.zeros_like(hull.cells, dtype=torch.uint8)
        for t, cells in enumerate(hull.cells):
            wide = cells.float()[None, None]
            for _ in range(_REACH):
                self._distances[t] += (wide[0, 0] == 0).to(torch.uint8)
                for window in ((3, 1, 1), (1, 3, 1), (1, 1, 3)):
                    wide = F.max_pool3d(wide, window, 1, [side // 2 for side in window])

    def __call__(self, points: Tensor, frame: int) -> Tensor:
        """Return the distance of world points [N, 3], in cells (largest step along an axis), [N].

        It is linear between the centres of cells, and goes on growing outside the box.
        """
        unit = self.hull.to_unit(points)
        field = self._distances[frame].float()[None, None]
        places = unit[None, None, None]
        inside = F.grid_sample(field, places, align_corners=False, padding_mode="border").flatten()
        outside = (unit.abs() - 1).clamp(min=0).sum(-1) * (field.shape[-1] / 2)
        return inside + outside
