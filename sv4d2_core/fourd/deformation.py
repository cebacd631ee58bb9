"""How canonical Gaussians move: a field of offsets over space and time.

Source: Wu et al. 2024, "4D Gaussian Splatting for Real-Time Dynamic Scene Rendering" (2310.08528): features
from six planes over x, y, z and t (HexPlane, 2301.09632), decoded to offsets of position, rotation,
scale and opacity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .plane_sampling import PLANE_AXES, sample_planes

# Initial values, whose products are about 1: with the usual small ones the decoder learns slowly.
_INITIAL = (0.6, 1.4)


class Offsets(NamedTuple):
    """What a time changes.

    Args:
        means: [N, 3] world units, added.
        rotations: [N, 3] the imaginary part of a quaternion whose real part is 1, turned by after the own.
        log_scales: [N, 3] added.
        opacities: [N] added to the logits, times a factor.
    """

    means: Tensor
    rotations: Tensor
    log_scales: Tensor
    opacities: Tensor


class Deformation(nn.Module):
    """Offsets of points in a box at a time; they are 0 before the first step.

    Args:
        box: [2, 3] the lower and the upper corner, world units; points outside get what the border has.
        plane_sizes: nodes along an axis of space, per scale.
        time_size: nodes along time.
        features: channels of a plane, per scale.
        hidden: width of the decoder.
        generator: draws the initial values; None: PyTorch's own.
    """

    def __init__(
        self,
        box: Tensor,
        plane_sizes: Sequence[int],
        time_size: int,
        features: int,
        hidden: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("box", box.detach().float().cpu().clone())
        self.box: Tensor
        self.space = nn.ParameterList(  # [3, C, S, S] per scale
            torch.empty(3, features, size, size).uniform_(*_INITIAL, generator=generator)
            for size in plane_sizes
        )
        self.time = nn.ParameterList(torch.ones(3, features, time_size, size) for size in plane_sizes)
        first, second = nn.Linear(features * len(plane_sizes), hidden), nn.Linear(hidden, hidden)
        self.trunk = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.head = nn.Linear(hidden, 10)
        for layer in (first, second):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, points: Tensor, time: float) -> Offsets:
        """Return the offsets of world points [N, 3] at a time in 0..1."""
        outputs = self.head(self.trunk(self.features(points, time)))
        means, rotations, log_scales, opacities = outputs.split([3, 3, 3, 1], dim=-1)
        return Offsets(means, rotations, log_scales, opacities[:, 0])

    @torch.no_grad()
    def hold(self, first: float, last: float) -> None:
        """Give times before ``first`` and after ``last`` (0..1) the planes of those, to learn from."""
        for planes in self.time:
            end = planes.shape[2] - 1
            low, high = math.ceil(first * end - 1e-6), math.floor(last * end + 1e-6)
            if low <= high:
                planes[:, :, :low] = planes[:, :, low : low + 1]
                planes[:, :, high + 1 :] = planes[:, :, high : high + 1]

    def features(self, points: Tensor, time: float) -> Tensor:
        """Return the product over the planes, all scales one after the other, [N, scales * C]."""
        low, high = self.box
        unit = (points - low) / (high - low) * 2 - 1
        in_space = torch.stack([unit[:, pair] for pair in PLANE_AXES])[:, None]  # [3, 1, N, 2]
        scales = []
        for space, in_time in zip(self.space, self.time, strict=True):
            rows = _row(in_time, time)  # [3, C, 1, S]
            along = torch.stack([unit.T, torch.zeros_like(unit.T)], dim=-1)[:, None]
            factors = sample_planes(space, in_space).unbind() + sample_planes(rows, along).unbind()
            scales.append(reduce(torch.mul, factors))
        return torch.cat(scales).T


def _row(planes: Tensor, time: float) -> Tensor:
    """Return planes [3, C, T, S] at one time in 0..1, linear between nodes, [3, C, 1, S]."""
    place = time * (planes.shape[2] - 1)
    before = min(int(place), planes.shape[2] - 2)
    return torch.lerp(planes[:, :, before], planes[:, :, before + 1], place - before)[:, :, None]
