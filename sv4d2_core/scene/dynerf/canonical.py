"""A field in one canonical space, the anchor frame's, and a deformation that takes every time there.

Source: D-NeRF (Pumarola et al., CVPR 2021) and SV4D (2407.17470). Ours differs in two ways: the deformation
is a grid of offsets, and the colour, but not the shape, may change over time, since a light that stands still
shades a body that turns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import RefineConfig
from ..geometry.paths import OffsetGrids
from .planes import Decoder, Planes


class Canonical(nn.Module):
    """Density and colour at points in a box at times in 0..1, like `MovingPlanes`; the density only moves.

    Args:
        config: sizes of planes, grids and decoders; ``plane_sizes`` filled in.
        n_frames: T, evenly spaced over 0..1.
        generator: draws the initial values; None: PyTorch's own.
    """

    def __init__(self, config: RefineConfig, n_frames: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        width, time_size = config.features * len(config.plane_sizes), config.time_size or max(n_frames, 2)
        self.deformation = OffsetGrids(config.deformation_sizes, n_frames)
        self.shape = Planes(config.plane_sizes, 0, config.features, generator)
        coarse = config.plane_sizes[:1]
        self.tint = Planes(coarse, time_size, config.features, generator, config.change_size)
        self.decoder = Decoder(width, config.features, config, generator)

    def forward(self, points: Tensor, times: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the density [N] and the colour [N, 3] in 0..1.

        Args:
            points: [N, 3] in -1..1 of the box.
            times: [N] in 0..1; None: the points are in canonical space.
        """
        place = points if times is None else self.moved(points, times)
        return self.decoder(self.shape.features(place, None), self.tint.features(place, times))

    def densities(self, points: Tensor, times: Tensor | None) -> Tensor:
        """Return the density alone, [N]; arguments as `forward`."""
        place = points if times is None else self.moved(points, times)
        return self.decoder.densities(self.shape.features(place, None))

    def moved(self, points: Tensor, times: Tensor) -> Tensor:
        """Return where points are in canonical space, [N, 3]."""
        return points + self.deformation(points, times)

    def groups(self, config: RefineConfig) -> list[dict]:
        """Return the optimiser's groups: ``params``, and ``rate`` for the learning rate at step 0."""
        planes = [*self.shape.parameters(), *self.tint.parameters()]
        return [
            {"params": planes, "rate": config.learning_rate},
            {"params": [*self.decoder.parameters()], "rate": config.learning_rate_decoder},
            {"params": [*self.deformation.parameters()], "rate": config.learning_rate_deformation},
        ]

    def regularisation(self, config: RefineConfig, timed: bool) -> Tensor:
        """Return the terms of the loss that look at the field alone; while not ``timed``, at its statics."""
        loss = self.shape.roughness(config, timed) + self.tint.roughness(config, timed)
        if not timed:
            return loss
        motion = self.deformation
        loss = loss + config.weight_time_smoothness * motion.acceleration()
        loss = loss + config.weight_deformation_slope * motion.slope()
        return loss + config.weight_deformation * motion.size()

    def hold(self, first: float, last: float) -> None:
        """Let times outside first..last be as the nearer of these two."""
        self.tint.hold(first, last)
        self.deformation.hold(first, last)

    def anneal(self, share: float) -> None:
        """Let the deformation be as fine as the ``share`` 0..1 of the fit allows."""
        self.deformation.anneal(share)
