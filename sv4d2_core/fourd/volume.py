"""Volume rendering: samples along rays, and what a ray sees of densities and colours.

Source: NeRF (Mildenhall et al. 2020), equation 3.
"""

from __future__ import annotations

import torch
from torch import Tensor


def box_span(origins: Tensor, directions: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Return where rays enter and leave a box, [R] each; a ray that misses it has exit <= entry.

    Args:
        origins: [R, 3].
        directions: [R, 3] of any length; distances are in multiples of it.
        box: [2, 3] the lower and the upper corner.
    """
    # A direction parallel to a side would divide 0 by 0.
    inverse = 1 / torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    to_corners = (box[:, None] - origins) * inverse  # [2, R, 3]
    entry = to_corners.amin(0).amax(-1).clamp(min=0)
    return entry, to_corners.amax(0).amin(-1)


def sample_distances(entry: Tensor, leave: Tensor, samples: int, jitter: Tensor | None = None) -> Tensor:
    """Return the distances of the samples of every ray, [R, S], one in each of S equal stretches.

    Args:
        entry: [R].
        leave: [R].
        samples: S.
        jitter: [R, S] in 0..1, the place within the stretch; None: its middle.
    """
    place = torch.arange(samples, dtype=entry.dtype, device=entry.device)
    place = (place + (0.5 if jitter is None else jitter)) / samples
    return entry[:, None] + (leave - entry)[:, None] * place


def ray_weights(density: Tensor, lengths: Tensor) -> Tensor:
    """Return how much every sample contributes to its ray, [R, S]; their sum is the ray's opacity.

    Args:
        density: [R, S], 1 / world unit.
        lengths: [R, S] or [R, 1], the stretch that each sample stands for, world units.
    """
    optical = density * lengths
    # The sum of logarithms stays exact where a product of transmittances would underflow.
    before = torch.cumsum(optical, dim=-1) - optical
    return torch.exp(-before) * -torch.expm1(-optical)


def composite_on_white(weights: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
    """Return the colour on a white background, [R, 3], and the opacity, [R].

    Args:
        weights: [R, S].
        colours: [R, S, 3].
    """
    opacity = weights.sum(-1)
    return (weights[..., None] * colours).sum(-2) + (1 - opacity)[:, None], opacity
