"""The motion of a whole object as one rigid motion per frame, so that a field need not learn it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def frame_shares(times: Tensor, count: int) -> Tensor:
    """Return how much each of ``count`` evenly spaced frames contributes at times [N] in 0..1, [N, count].

    At a frame's own time it contributes alone; in between, four frames make a smooth curve.
    Source: Catmull and Rom 1974, cubic convolution with a = -1/2.
    """
    frames = torch.arange(count, device=times.device, dtype=times.dtype)
    d = (times[:, None] * (count - 1) - frames).abs()
    near, far = (1.5 * d - 2.5) * d**2 + 1, ((2.5 - 0.5 * d) * d - 4) * d + 2
    shares = torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))
    return shares / shares.sum(-1, keepdim=True)


def rotations(vectors: Tensor) -> Tensor:
    """Return the rotations [N, 3, 3] about vectors [N, 3], each as long as its angle, radians."""
    x, y, z = vectors.unbind(-1)
    none = torch.zeros_like(x)
    skew = torch.stack([none, -z, y, z, none, -x, -y, x, none], dim=-1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(skew)


class FramePath(nn.Module):
    """Takes points of any time to where they are at the anchor frame; it starts as no motion.

    Args:
        n_frames: T, evenly spaced over 0..1.
    """

    extent: Tensor  # [3] of the box, relative to its longest side: rotations need equal axes
    home: Tensor  # [3] centre of the object at the anchor frame

    def __init__(self, n_frames: int) -> None:
        super().__init__()
        self.n_frames = n_frames
        self.centres = nn.Parameter(torch.zeros(n_frames, 3))
        self.turns = nn.Parameter(torch.zeros(n_frames, 3))
        self.register_buffer("extent", torch.ones(3))
        self.register_buffer("home", torch.zeros(3))

    @torch.no_grad()
    def start(self, centres: Tensor, turns: Tensor, box: Tensor, home: Tensor) -> None:
        """Start from a known motion.

        Args:
            centres: [T, 3] in -1..1 of the box.
            turns: [T, 3] rotation vectors from a frame to the anchor, in world axes.
            box: [2, 3] corners, world units.
            home: [3] centre at the anchor frame, where all points are taken.
        """
        self.centres.copy_(centres)
        self.turns.copy_(turns)
        self.home.copy_(home)
        sides = box[1] - box[0]
        self.extent.copy_(sides / sides.max())

    def forward(self, points: Tensor, times: Tensor) -> Tensor:
        """Return where points [N, 3], seen at times [N], are at the anchor frame, [N, 3]."""
        moments, which = times.unique(return_inverse=True)
        shares = frame_shares(moments, self.n_frames)
        centres = shares @ self.centres
        matrices = rotations(shares @ self.turns) * self.extent / self.extent[:, None]
        bias = self.home - (matrices @ centres[..., None])[..., 0]
        return (matrices[which] * points[:, None]).sum(-1) + bias[which]
