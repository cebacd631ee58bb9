"""Turns the features of points into density and colour."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import RefineConfig


class Decoder(nn.Module):
    """Two small networks: one layer to the density, two more to the colour.

    Args:
        width: of the features that the density is made of.
        more: width of further features that only the colour knows.
        config: sizes and the scale of the density.
        generator: draws the initial values; None: PyTorch's own.
    """

    def __init__(
        self, width: int, more: int, config: RefineConfig, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        hidden, self.density_scale = config.hidden, config.density_scale
        self.trunk = nn.Linear(width, hidden)
        self.density = nn.Linear(hidden, 1)
        self.colour = nn.Sequential(nn.Linear(hidden + more, hidden), nn.ReLU(), nn.Linear(hidden, 3))
        for layer in (self.trunk, self.density, self.colour[0], self.colour[2]):
            _initialise(layer, generator)

    def forward(self, features: Tensor, more: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the density [N] and the colour [N, 3] in 0..1 of features [N, width] and [N, more]."""
        hidden = F.relu(self.trunk(features))
        seen = hidden if more is None else torch.cat([hidden, more], dim=-1)
        return self._density(hidden), torch.sigmoid(self.colour(seen))

    def densities(self, features: Tensor) -> Tensor:
        """Return the density alone, [N]."""
        return self._density(F.relu(self.trunk(features)))

    def _density(self, hidden: Tensor) -> Tensor:
        # Starting thin lets light through to the far side of the hull, so that both sides learn at once.
        return self.density_scale * F.softplus(self.density(hidden)[:, 0] - 1)


def _initialise(layer: nn.Module, generator: torch.Generator | None) -> None:
    """Draw a linear layer's weights for ReLU (He et al. 2015); its bias starts at 0."""
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"Expected a linear layer; got {type(layer).__name__}.")
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
    nn.init.zeros_(layer.bias)
