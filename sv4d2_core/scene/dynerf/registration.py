"""How an object moves as a whole, found from its visual hulls before anything is fitted.

The hulls of neighbouring frames are laid over each other under many rotations about their centres. Hulls of
few views are coarse, so a rotation counts only if it makes them agree clearly better all along the clip: a
body that rolls passes, limbs that swing do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry.hull import Occupancy
from .motion import rotations_about

# Rotations tried around the best so far, halving the range each time; the first range in radians.
_TRIES, _HALVINGS, _FIRST_RANGE = 150, 5, 1.0
_POINTS = 1500
# Overlap that a rotation must win over none, mean over the clip.
_LEAST_GAIN = 0.05
# Overlap given up per radian away from no rotation, then from the clip's median rotation.
_PRICE_OF_TURNING, _PRICE_OF_DEVIATING = 0.01, 0.15


def hull_centres(hull: Occupancy) -> tuple[Tensor, float]:
    """Return the centres [T, 3] of the hulls in -1..1 of the box, and their mean largest extent, world units.

    A frame without a hull stays where the box has its middle.
    """
    frames = [_points(cells) for cells in hull.cells.cpu()]
    half = (hull.box[1] - hull.box[0]).cpu() / 2
    extents = torch.stack([(points.amax(0) - points.amin(0)) * half for points in frames])
    return torch.stack([points.mean(0) for points in frames]), float(extents.amax(-1).mean())


def hull_turns(hull: Occupancy, centres: Tensor, anchor: int) -> Tensor:
    """Return the rotation vectors [T, 3] from each frame to the anchor, in world axes, radians.

    They go on beyond half a turn; all are 0 where no rotation makes the hulls agree clearly better.
    ``centres`` [T, 3] are those of `hull_centres`.
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
