"""A field over space and time from six feature planes, decoded to density and colour.

Source: K-Planes (Fridovich-Keil et al., CVPR 2023): the features of a point are the product of its
projections on the planes xy, xz, yz, xt, yt and zt, at several scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import RefineConfig
from .losses import distance_to_one, second_difference, total_variation

# The axes that each plane of space spans.
_PAIRS = ((0, 1), (0, 2), (1, 2))


class KPlanes(nn.Module):
    """Density and colour at points in a box at times in 0..1; the colour does not depend on the view.

    Args:
        plane_sizes: nodes along an axis of space, per scale.
        time_size: nodes along time.
        features: channels of a plane, per scale.
        hidden: width of the decoders.
        density_scale: density per unit of the decoder's output.
        generator: draws the initial values; None: PyTorch's own.
    """

    def __init__(
        self,
        plane_sizes: Sequence[int],
        time_size: int,
        features: int,
        hidden: int,
        density_scale: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.density_scale = density_scale
        self.space = nn.ParameterList(  # [3, C, S, S] per scale
            torch.empty(3, features, size, size).uniform_(0.1, 0.5, generator=generator)
            for size in plane_sizes
        )
        # Ones leave the product to the planes of space: nothing moves at first.
        self.time = nn.ParameterList(torch.ones(3, features, time_size, size) for size in plane_sizes)
        width = features * len(plane_sizes)
        self.trunk = nn.Linear(width, hidden)
        self.density = nn.Linear(hidden, 1)
        self.colour = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 3))
        for layer in (self.trunk, self.density, self.colour[0], self.colour[2]):
            _initialise(layer, generator)

    def forward(self, points: Tensor, times: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the density [N] and the colour [N, 3] in 0..1.

        Args:
            points: [N, 3] in -1..1 of the box.
            times: [N] in 0..1; None leaves the planes of time out.
        """
        hidden = F.relu(self.trunk(self.features(points, times)))
        return self._density(hidden), torch.sigmoid(self.colour(hidden))

    def densities(self, points: Tensor, times: Tensor | None) -> Tensor:
        """Return the density alone, [N]; arguments as `forward`."""
        return self._density(F.relu(self.trunk(self.features(points, times))))

    def features(self, points: Tensor, times: Tensor | None) -> Tensor:
        """Return the product over the planes, all scales one after the other, [N, scales * C]."""
        in_space = torch.stack([points[:, pair] for pair in _PAIRS])[:, None]  # [3, 1, N, 2]
        if times is not None:
            in_time = torch.stack([points.T, (2 * times - 1).expand(3, -1)], dim=-1)[:, None]
        scales = []
        for space, time in zip(self.space, self.time, strict=True):
            factors = _sample(space, in_space).unbind()
            if times is not None:
                factors += _sample(time, in_time).unbind()
            # The gradient of a chain of products costs a third of that of Tensor.prod.
            scales.append(reduce(torch.mul, factors))
        return torch.cat(scales).T

    def groups(self, config: RefineConfig) -> list[dict]:
        """Return the optimiser's groups: the planes, and the decoders."""
        decoders = [p for layer in (self.trunk, self.density, self.colour) for p in layer.parameters()]
        return [
            {"params": [*self.space, *self.time], "rate": config.learning_rate},
            {"params": decoders, "rate": config.learning_rate_decoder},
        ]

    def regularisation(self, config: RefineConfig, timed: bool) -> Tensor:
        """Return the terms of the loss that ask for smooth planes, and for time planes near 1."""
        loss = config.weight_planes * _sum(total_variation, self.space)
        if timed:
            loss = loss + config.weight_time_smoothness * _sum(second_difference, self.time)
            loss = loss + config.weight_time_offset * _sum(distance_to_one, self.time)
        return loss

    @torch.no_grad()
    def hold(self, first: float, last: float) -> None:
        """Give the planes at times outside first..last the values of the nearer of these two."""
        for planes in self.time:
            nodes = torch.linspace(0, 1, planes.shape[-2])
            nearest = (nodes.clamp(first, last) * (len(nodes) - 1)).round().long()
            planes.copy_(planes[:, :, nearest.to(planes.device)])

    def _density(self, hidden: Tensor) -> Tensor:
        # Starting thin lets light through to the far side of the hull, so that both sides learn at once.
        return self.density_scale * F.softplus(self.density(hidden)[:, 0] - 1)


def _sample(planes: Tensor, coordinates: Tensor) -> Tensor:
    """Return the bilinear values [3, C, N] of three planes [3, C, H, W] at [3, 1, N, 2] (x along W)."""
    values = F.grid_sample(planes, coordinates, align_corners=True, padding_mode="border")
    return values[:, :, 0]


def _sum(term: Callable[[Tensor], Tensor], planes: Iterable[Tensor]) -> Tensor:
    """Return a term of the loss summed over the scales."""
    return torch.stack([term(plane) for plane in planes]).sum()


def _initialise(layer: nn.Module, generator: torch.Generator | None) -> None:
    """Draw a linear layer's weights for ReLU (He et al. 2015); its bias starts at 0."""
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"Expected a linear layer; got {type(layer).__name__}.")
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
    nn.init.zeros_(layer.bias)
