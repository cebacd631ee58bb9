"""A field that goes with an object which moves far: its planes hold the object alone, not the whole way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..geometry.hull import Occupancy
from .motion import FramePath, rotations_about
from .planes import MOTION_RATE, Canonical, MovingPlanes

_TRIES, _HALVINGS, _FIRST_RANGE = 150, 5, 1.0  # rotations around the best, halving their range, radians
_POINTS = 1500
_LEAST_GAIN = 0.05  # overlap that a rotation must win over none, mean over the clip
_PRICE_OF_TURNING, _PRICE_OF_DEVIATING = 0.01, 0.15  # overlap per radian from none, from the median


def hull_centres(hull: Occupancy) -> tuple[Tensor, float]:
    """Return the hulls' centres [T, 3] in -1..1, 0 where empty, and mean largest extent, world units."""
    frames = [_points(cells) for cells in hull.cells.cpu()]
    half = (hull.box[1] - hull.box[0]).cpu() / 2
    extents = torch.stack([(points.amax(0) - points.amin(0)) * half for points in frames])
    return torch.stack([points.mean(0) for points in frames]), float(extents.amax(-1).mean())


def hull_turns(hull: Occupancy, centres: Tensor, anchor: int) -> Tensor:
    """Return rotation vectors [T, 3] from frames to the anchor, world axes, radians, beyond half a turn too.

    All are 0 where no rotation makes the hulls agree clearly better.
    """
    vectors = torch.zeros_like(centres)
    search = _Search(hull.cells.cpu(), hull.box.cpu(), centres)
    if len(vectors) < 2 or search.gain() < _LEAST_GAIN:
        return vectors
    forward = rotations_about(search.steps)
    for order in (range(anchor + 1, len(vectors)), range(anchor - 1, -1, -1)):
        matrix, last = torch.eye(3), torch.zeros(3)
        for t in order:
            matrix = matrix @ (forward[t - 1].T if t > anchor else forward[t])
            last = vectors[t] = _nearest_vector(matrix, last)
    return vectors


class _Search:
    """The rotations between neighbouring frames, [T - 1, 3]."""

    def __init__(self, cells: Tensor, box: Tensor, centres: Tensor) -> None:
        self.cells, self.centres, self.half = cells, centres, (box[1] - box[0]) / 2
        self.generator = torch.Generator().manual_seed(0)
        self.clouds = [self._cloud(t) for t in range(len(cells))]
        none, pairs = torch.zeros(3), range(len(cells) - 1)
        self.steps = torch.zeros(len(pairs), 3)
        for t in pairs:
            self.steps[t] = self._best(t, none[None], none, _FIRST_RANGE, _PRICE_OF_TURNING)
        if not pairs:
            return
        common = self.steps.median(0).values
        for t in pairs:
            starts = torch.stack([self.steps[t], common])
            self.steps[t] = self._best(t, starts, common, _FIRST_RANGE / 5, _PRICE_OF_DEVIATING)

    def gain(self) -> float:
        """Return the overlap that the rotations win, mean over the clip."""
        both = [self._overlap(t, torch.stack([torch.zeros(3), step])) for t, step in enumerate(self.steps)]
        return float(torch.stack(both).diff(dim=1).mean())

    def _best(self, t: int, starts: Tensor, near: Tensor, reach: float, price: float) -> Tensor:
        best = starts
        for _ in range(_HALVINGS):
            offsets = reach * (2 * torch.rand(_TRIES, 3, generator=self.generator) - 1)
            tried = torch.cat([starts, (best[:, None] + offsets).flatten(0, 1)])
            score = self._overlap(t, tried) - price * (tried - near).norm(dim=-1)
            best = tried[score.argmax()][None]
            reach /= 2
        return best[0]

    def _overlap(self, t: int, vectors: Tensor) -> Tensor:
        """Return the share of frame t that lands in frame t + 1 and the reverse, their mean, [K]."""
        turn = rotations_about(vectors)
        return (self._hits(t, t + 1, turn) + self._hits(t + 1, t, turn.transpose(1, 2))) / 2

    def _hits(self, source: int, target: int, turn: Tensor) -> Tensor:
        moved = self.clouds[source] @ turn.transpose(1, 2) / self.half + self.centres[target]
        grid = Occupancy(self.cells[target][None], torch.stack([-self.half, self.half]))
        return grid.contains(moved.flatten(0, 1), 0).view(moved.shape[:2]).float().mean(-1)

    def _cloud(self, t: int) -> Tensor:
        """Return points of a frame about its centre, world units."""
        points = _points(self.cells[t])
        chosen = torch.randperm(len(points), generator=self.generator)[:_POINTS]
        return (points[chosen] - self.centres[t]) * self.half


def _points(cells: Tensor) -> Tensor:
    """Return the centres of the occupied cells [N, 3] in -1..1; the box's middle if there are none."""
    index = cells.nonzero().flip(-1)
    return (index + 0.5) / cells.shape[-1] * 2 - 1 if len(index) else torch.zeros(1, 3)


def _nearest_vector(matrix: Tensor, last: Tensor) -> Tensor:
    """Return the rotation vector of a matrix that lies next to ``last``, which may be beyond half a turn."""
    # The quaternion is found from the largest eigenvalue, which half a turn does not upset.
    m = matrix
    q = torch.stack([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    symmetric = torch.zeros(4, 4)
    symmetric[:3, :3] = m + m.T - m.trace() * torch.eye(3)
    symmetric[3, :3] = symmetric[:3, 3] = q
    symmetric[3, 3] = m.trace()
    x = torch.linalg.eigh(symmetric).eigenvectors[:, -1]
    sine = x[:3].norm()
    angle = 2 * torch.atan2(sine, x[3])
    turns = angle + 2 * torch.pi * torch.arange(-3, 4)
    candidates = turns[:, None] * (x[:3] / sine.clamp(min=1e-9))
    return candidates[(candidates - last).norm(dim=-1).argmin()]


_FAR = 0.25  # an object moves far when its middle goes this far, in sizes of the object
_MARGIN = 1.05  # room around the hulls at the anchor frame: coarse hulls' centres are not exact
_NEWTON_STEPS, _LONGEST_STEP, _DAMPING = 6, 0.3, 1e-4  # a step is in half boxes, damped at folds


class Following(nn.Module):
    """A field in the anchor frame's box and a rigid motion per frame, none before `follow` finds it large."""

    middle: Tensor  # [3] of the anchor's box, in -1..1 of the scene's box
    reach: Tensor  # [3] half of its sides
    moves: Tensor  # bool

    def __init__(self, field: MovingPlanes | Canonical, n_frames: int) -> None:
        super().__init__()
        self.field, self.path = field, FramePath(n_frames)
        self.register_buffer("middle", torch.zeros(3))
        self.register_buffer("reach", torch.ones(3))
        self.register_buffer("moves", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def follow(
        self,
        hull: Occupancy,
        anchor: int,  # the frame that all others are taken to
        times: Sequence[float],  # [T] of the frames
        wanted: bool | None = None,  # None: only where the object moves far
    ) -> None:
        """Start from the motion of the hulls, and let the anchor's box just hold them all."""
        centres, size = hull_centres(hull)
        half = ((hull.box[1] - hull.box[0]) / 2).cpu()
        way = ((centres - centres[anchor]) * half).norm(dim=-1).max()
        if not (way > _FAR * size if wanted is None else wanted):
            return
        self.moves.fill_(True)
        turns = hull_turns(hull, centres, anchor)
        self.path.start(_at_nodes(centres, times), _at_nodes(turns, times), hull.box, centres[anchor])
        moved = [
            self.path(points, torch.full_like(points[:, 0], time))
            for time, cells in zip(times, hull.cells, strict=True)
            if len(points := hull.centres()[cells])
        ]
        low, high = torch.cat(moved).amin(0), torch.cat(moved).amax(0)
        self.middle.copy_((low + high) / 2)
        # Points are middles of cells, which reach half a cell further.
        self.reach.copy_((high - low) / 2 * _MARGIN + 1 / hull.cells.shape[-1])

    def forward(self, points: Tensor, times: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return density [N], colour [N, 3] in 0..1 at points in -1..1 of the scene's box, times [N]."""
        return self.field(self._place(points, times), times)

    def densities(self, points: Tensor, times: Tensor | None) -> Tensor:
        """Return the density alone, [N]; arguments as `forward`."""
        return self.field.densities(self._place(points, times), times)

    def colours(self, points: Tensor, times: Tensor | None) -> Tensor:
        """Return the colours alone, [N, 3]; arguments as `forward`."""
        return self(points, times)[1]

    def from_to(self, points: Tensor, start: float, end: float) -> Tensor:
        """Return where points [N, 3] in -1..1 go between times; Newton's method finds the way back."""
        with torch.no_grad():
            place = self.arrived(points, start)
        found = points.detach().clone()
        for _ in range(_NEWTON_STEPS):
            with torch.enable_grad():
                found.requires_grad_()
                there = self.arrived(found, end)
                sums = [axis.sum() for axis in there.unbind(-1)]
                rows = [torch.autograd.grad(axis, found, retain_graph=True)[0] for axis in sums]
            slope, there, found = torch.stack(rows, dim=1), there.detach(), found.detach()
            normal = slope.mT @ slope + _DAMPING * torch.eye(3).to(slope)
            step = torch.linalg.solve(normal, slope.mT @ (place - there)[..., None])[..., 0]
            found = found + step.clamp(-_LONGEST_STEP, _LONGEST_STEP)
        return found

    def groups(self) -> list[dict]:
        path = {"params": [*self.path.parameters()], "rate": MOTION_RATE}
        return self.field.groups() + ([path] if self.moves else [])

    @torch.no_grad()
    def carried(
        self, occupancy: Occupancy, frames: tuple[int, int], times: tuple[float, float, float]
    ) -> Tensor:
        """Return the cells [G, G, G] filled between two frames; ``times`` are theirs and that between."""
        n = occupancy.cells.shape[-1]
        centres = occupancy.centres().flatten(0, 2)
        marked = torch.zeros(1, n, n, n, dtype=torch.bool, device=centres.device)
        for frame, time in zip(frames, times, strict=False):
            place = self.arrived(centres[occupancy.cells[frame].flatten()], time)
            x, y, z = ((place + 1) * (n / 2)).long().clamp(0, n - 1).unbind(-1)
            marked[0, z, y, x] = True
        # Neighbouring points may land a cell apart.
        marked = F.max_pool3d(marked[:, None].float(), 3, 1, 1)[:, 0] > 0
        return Occupancy(marked, occupancy.box).contains(self.arrived(centres, times[2]), 0).view(n, n, n)

    def arrived(self, points: Tensor, time: float | Tensor) -> Tensor:
        """Return where points [N, 3] of a time are in -1..1 of the anchor's box, after the field's motion."""
        times = torch.zeros_like(points[:, 0]) + time
        return self.field.moved(self._place(points, times), times)

    def _place(self, points: Tensor, times: Tensor | None) -> Tensor:
        """Return where points are in -1..1 of the anchor's box, before the field moves them further."""
        if times is not None and self.moves:
            points = self.path(points, times)
        return (points - self.middle) / self.reach


def _at_nodes(values: Tensor, times: Sequence[float]) -> Tensor:
    """Return values [T, 3] at as many evenly spaced times, linear between the given ones."""
    nodes = np.linspace(0, 1, len(times))
    columns = [np.interp(nodes, times, column) for column in values.cpu().double().numpy().T]
    return torch.from_numpy(np.stack(columns, axis=-1)).to(values)
