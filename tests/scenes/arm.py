"""A scene in closed form for tests: an arm of two capsules, whose elbow bends at the origin."""

import math

import torch
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.scene.scene import SceneRendering

_LENGTH, _RADIUS, _SOFTNESS = 0.4, 0.09, 0.012
_DENSITY = 80.0


class Arm:
    """Has what meshes are made from; see `Scene4D`.

    Args:
        bend_deg: angle of the elbow at time 1; it is 0 at time 0.
        far: world units that all moves along x from time 0 to 1.
        gap: time from which the forearm is gone; a surface that no mesh can follow.
    """

    backend = "arm"
    path = None
    fps = 8.0

    def __init__(self, bend_deg: float = 70.0, far: float = 0.0, n_frames: int = 5, gap: float = 2.0) -> None:
        self.bend_deg, self.far, self.gap = bend_deg, far, gap
        self.cameras = Cameras((0.0, 0.0, 30.0), (0.0, 90.0, 200.0))
        self.n_frames = n_frames
        self.times = tuple(i / (n_frames - 1) for i in range(n_frames))

    def bounds(self, time: float) -> Tensor:
        reach = torch.tensor([_LENGTH + 2 * _RADIUS] * 3)
        return torch.stack([-reach, reach]) + self._shift(time)

    def densities(self, points: Tensor, time: float) -> Tensor:
        return _DENSITY * torch.sigmoid(-self.distances(points, time) / _SOFTNESS)

    def colours(self, points: Tensor, time: float) -> Tensor:
        """Return stripes that go with the arm."""
        upper, fore = self._local(points, time)
        x, y, z = torch.where((_capsule(upper) < _capsule(fore, -1))[:, None], upper, fore).unbind(-1)
        return 0.5 + 0.5 * torch.stack([torch.sin(25 * y), 10 * x, 10 * z], dim=-1).clamp(-1, 1)

    def carried(self, points: Tensor, start: float, end: float) -> Tensor:
        return points + self._shift(end) - self._shift(start)

    def distances(self, points: Tensor, time: float) -> Tensor:
        """Return the signed distances to the surface."""
        upper, fore = self._local(points, time)
        nearest = _capsule(upper)
        return nearest if time >= self.gap else torch.minimum(nearest, _capsule(fore, -1))

    def moved(self, points: Tensor, start: float, end: float) -> Tensor:
        """Return where points of the surface truly are at another time."""
        upper, fore = self._local(points, start)
        turned = fore @ self._turn(end).T + self._shift(end)
        return torch.where((_capsule(upper) < _capsule(fore, -1))[:, None], upper + self._shift(end), turned)

    def render(self, cameras, times, size, *, views=None, callback=None) -> SceneRendering:
        origins, directions = cameras.rays(size)
        distances = torch.linspace(1.2, 2.8, 160)
        alpha = torch.zeros(len(times), len(origins), size, size)
        for t, time in enumerate(times):
            for v, eye in enumerate(origins):
                points = eye + distances[:, None, None, None] * directions[v]
                density = self.densities(points.reshape(-1, 3).float(), time).view(points.shape[:3])
                alpha[t, v] = 1 - torch.exp(-density.sum(0) * float(distances[1] - distances[0]))
        empty = torch.zeros(*alpha.shape, 3)
        return SceneRendering(empty, alpha, alpha, empty)

    def _shift(self, time: float) -> Tensor:
        return torch.tensor([self.far * time, 0.0, 0.0])

    def _turn(self, time: float) -> Tensor:
        angle = math.radians(self.bend_deg * time)
        sin, cos = math.sin(angle), math.cos(angle)
        return torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])

    def _local(self, points: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """Return points as the upper arm, which hangs from the elbow, and the forearm at rest have them."""
        points = points.float() - self._shift(time)
        return points, points @ self._turn(time)


def _capsule(points: Tensor, sign: float = 1.0) -> Tensor:
    """Return the signed distances to a capsule from the origin up (1) or down (-1)."""
    along = (sign * points[:, 1]).clamp(0, _LENGTH)
    nearest = torch.stack([torch.zeros_like(along), sign * along, torch.zeros_like(along)], dim=-1)
    return (points - nearest).norm(dim=-1) - _RADIUS
