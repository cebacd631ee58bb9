"""The noise schedule and the preconditioning of the network.

Source: specification section 7; Karras et al. 2022, equation 5 and table 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def karras_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 700.0, rho: float = 7.0) -> Tensor:
    """Return descending noise levels that end with 0, [steps + 1] float32.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"Expected at least 1 step; got {steps}.")
    ramp = torch.linspace(0, 1, steps)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


class Preconditioning(NamedTuple):
    """Factors around the network: ``denoised = c_skip * x + c_out * network(c_in * x, c_noise)``."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def precondition(sigma: Tensor) -> Preconditioning:
    """Return the factors for noise levels ``sigma`` (v-prediction, sigma_data 1), of the same shape."""
    root = torch.sqrt(sigma**2 + 1)
    return Preconditioning(1 / (sigma**2 + 1), -sigma / root, 1 / root, 0.25 * torch.log(sigma))


def first_step(steps: int, strength: float) -> int:
    """Return the step of the full schedule at which denoising of given strength starts.

    Raises:
        ValueError: no steps, a strength outside (0, 1], or one so small that no step is left.
    """
    if steps < 1:
        raise ValueError(f"Expected at least 1 step; got {steps}.")
    start = round((1 - strength) * steps)
    if not 0 < strength <= 1 or start >= steps:
        raise ValueError(
            f"Expected 0 < strength <= 1 with at least one of {steps} steps left; got {strength:g}. "
            f"Use at least {1 / steps:.3g} or more steps."
        )
    return start
