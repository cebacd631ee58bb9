"""The field between two frames: what it is at either, moved to where the motion has it, and blended."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..geometry.hull import Occupancy
from ..tracking.motion import Motion, Posed
from .following import Following

_GRID = 32  # steps, along the mesh's longest side, of the lattice that keeps the ways to both frames
_NEARER = 0.4  # of the reach: matter that comes so much nearer to the surface of a frame is another limb's


class MovedField:
    """A field at one time between two frames, with the interface of `Following`, whose times it ignores.

    What belongs to no motion stays in its place and fades.
    """

    def __init__(
        self,
        field: Following,
        occupancy: Occupancy,  # of the field, all frames
        motion: Motion,
        around: tuple[int, float],  # the frame before, and the share of the way to the next
        times: tuple[float, ...],  # of these two frames
        time: float,
    ) -> None:
        self.field, self.occupancy, self.times, self.time = field, occupancy, times, time
        self.frame, share = around
        self.shares = (1 - share, share)
        now, *ends = (motion.intervals[self.frame].posed(at) for at in (share, 0, 1))
        self._keep_ways(now, ends, motion.reach)
        self.cells = self._cells(now, ends, motion.reach)  # "frames": what moves, what fades of either frame
        self.filled = Occupancy(self.cells.cells.any(0, keepdim=True), occupancy.box)

    def __call__(self, points: Tensor, _times: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return density [N], colour [N, 3] at points in -1..1 of the scene's box."""
        density, colour = torch.zeros_like(points[:, 0]), torch.zeros_like(points)
        where, moves = points.detach(), self.cells.contains(points.detach(), 0)
        for i, (share, (way, kept)) in enumerate(zip(self.shares, self._ways(points), strict=True)):
            moved = points + way
            there = self.occupancy.contains(moved.detach(), self.frame + i)
            moving, fading = (
                (moves & there).nonzero()[:, 0],
                self.cells.contains(where, 1 + i).nonzero()[:, 0],
            )
            found, tint = self._field_at(i, torch.cat([moved[moving], points[fading]]))
            found = share * found * torch.cat([kept[moving], torch.ones_like(kept[fading])])
            index = torch.cat([moving, fading])
            density = density.index_add(0, index, found)
            colour = colour.index_add(0, index, found[:, None] * tint)
        return density, colour / density.clamp(min=1e-6)[:, None]

    def densities(self, points: Tensor, times: Tensor | None = None) -> Tensor:
        return self(points, times)[0]

    def colours(self, points: Tensor, _times: Tensor | None = None) -> Tensor:
        """Return the colours [N, 3] alone, also where there is nothing."""
        ways = zip(self.shares, self._ways(points), strict=True)
        return sum(share * self._field_at(i, points + way)[1] for i, (share, (way, _)) in enumerate(ways))  # pyright: ignore

    def _field_at(self, i: int, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.field(points, torch.full_like(points[:, 0], self.times[i]))

    def _keep_ways(self, now: Posed, ends: list[Posed], reach: float) -> None:
        low, high = now.points.min(0) - 2 * reach, now.points.max(0) + 2 * reach
        counts = np.ceil((high - low) / (high - low).max() * _GRID).astype(int) + 1
        axes = [np.linspace(first, last, n) for first, last, n in zip(low, high, counts, strict=True)]
        z, y, x = np.meshgrid(*axes[::-1], indexing="ij")
        lattice = np.stack([x, y, z], axis=-1).reshape(-1, 3)
        scene_low, scene_high = self.occupancy.box.cpu().double().numpy()
        heights, kept = now.heights(lattice), []
        for end, (there, _) in zip(ends, now.carries(lattice, ends), strict=True):
            # What is outside now, and nearer to the surface there or inside it, is another limb's.
            nearer = (heights.clip(0) - end.heights(there).clip(0)) / reach
            kept += [*((there - lattice) / (scene_high - scene_low) * 2).T, (_NEARER - nearer) / _NEARER * 2]
        values = torch.from_numpy(np.stack(kept).reshape(1, 8, *counts[::-1]))
        box = torch.from_numpy(np.stack([low, high]))
        self._lattice = values.to(self.occupancy.box)  # [1, 2 * 4, Z, Y, X] in half boxes
        self._lattice_box = self.occupancy.to_unit(box.to(self.occupancy.box))

    def _ways(self, points: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the ways [N, 3] from points [N, 3] to either frame, and how much they count there, [N]."""
        low, high = self._lattice_box
        place = ((points - low) / (high - low) * 2 - 1)[None, None, None]
        sampled = F.grid_sample(self._lattice, place, align_corners=True, padding_mode="border")[0, :, 0, 0].T
        return [(part[:, :3], part[:, 3].clamp(0, 1)) for part in sampled.split(4, dim=1)]

    def _cells(self, now: Posed, ends: list[Posed], reach: float) -> Occupancy:
        own, box = self.occupancy.cells, self.occupancy.box
        centres = self.occupancy.centres().flatten(0, 2)
        world = (box[0] + (centres + 1) / 2 * (box[1] - box[0])).cpu().double().numpy()

        def owned(posed: Posed, cells: Tensor) -> Tensor:
            """Return which of cells [C] go with the mesh."""
            found, index = torch.zeros_like(cells), cells.nonzero()[:, 0]
            near = posed.heights(world[index.cpu().numpy()]) < reach
            found[index] = torch.from_numpy(near).to(cells.device)
            return found

        there = [
            self.occupancy.contains(centres + way, self.frame + i)
            for i, (way, _) in enumerate(self._ways(centres))
        ]
        # A cell may be filled whose middle is not.
        moves = F.max_pool3d((there[0] | there[1]).view(1, 1, *own.shape[1:]).float(), 3, 1, 1).flatten() > 0
        still = [own[self.frame + i].flatten() for i in (0, 1)]
        fades = [cells & ~owned(end, cells) for cells, end in zip(still, ends, strict=True)]
        parts = torch.stack([moves & owned(now, moves), *fades])
        return Occupancy(parts.view(3, *own.shape[1:]), box)
