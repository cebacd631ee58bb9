"""Samplers of the EDM ordinary differential equation; they know no network.

Source: specification section 7; Karras et al. 2022, algorithm 1; Lu et al. 2022, DPM-Solver++, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .schedule import first_step

# denoised = denoise(x, sigma), x [N, C, h, w], sigma [] on the device of x.
DenoiseFunction = Callable[[Tensor, Tensor], Tensor]
# callback(step, total, preview): called after each step; may raise to cancel.
Callback = Callable[[int, int, Tensor | None], None]


def start_latents(noise: Tensor, sigmas: Tensor, init: Tensor | None, strength: float) -> tuple[Tensor, int]:
    """Return the noisy latents that sampling starts from and its first step.

    Args:
        noise: [N, C, h, w] unit variance.
        sigmas: [S + 1] from `schedule.karras_sigmas`.
        init: [N, C, h, w] scaled latents to start near, needed when ``strength`` is below 1.
        strength: share of the schedule to run.

    Raises:
        ValueError: ``strength`` out of range, or below 1 without ``init``.
    """
    start = first_step(len(sigmas) - 1, strength)
    if start == 0:
        return noise * (1 + sigmas[0] ** 2).sqrt().to(noise), 0
    if init is None:
        raise ValueError(
            f"Strength (denoise) {strength:g} starts from given views; got none: give init_views."
        )
    return init + noise * sigmas[start].to(noise), start


def sample_euler(
    denoise: DenoiseFunction, x: Tensor, sigmas: Tensor, start: int = 0, callback: Callback | None = None
) -> Tensor:
    """Return the latents at noise level 0, starting from ``x`` at noise level ``sigmas[start]``.

    Args:
        denoise: the guided denoiser.
        x: [N, C, h, w] float32.
        sigmas: [S + 1] descending, last is 0.
        start: first step to run.
        callback: see `Callback`; the preview is the denoised prediction of the step.
    """
    levels = sigmas.to(x)
    for step in range(start, len(sigmas) - 1):
        denoised = denoise(x, levels[step])
        slope = (x - denoised) / levels[step]
        x = x + slope * (levels[step + 1] - levels[step])
        if callback is not None:
            callback(step + 1, len(sigmas) - 1, denoised)
    return x


def sample_dpmpp_2m(
    denoise: DenoiseFunction, x: Tensor, sigmas: Tensor, start: int = 0, callback: Callback | None = None
) -> Tensor:
    """Return the latents at noise level 0, like `sample_euler` but of second order at the same cost.

    A step takes the prediction half-way to the next noise level (in half the logarithm of the signal-to-noise
    ratio), extrapolated from this step's and the one before. The first and the last step are Euler steps.

    Args:
        denoise, x, sigmas, start, callback: as in `sample_euler`.
    """
    levels = sigmas.to(x)
    half_log_snr = -levels.log()
    last, previous = len(sigmas) - 2, None
    for step in range(start, last + 1):
        denoised = predicted = denoise(x, levels[step])
        if previous is not None and step < last:
            to_next, from_previous = half_log_snr[step - 1 : step + 2].diff().flip(0)
            predicted = denoised + to_next / (2 * from_previous) * (denoised - previous)
        x = torch.lerp(predicted, x, levels[step + 1] / levels[step])
        previous = denoised
        if callback is not None:
            callback(step + 1, last + 1, denoised)
    return x


SAMPLERS = {"euler": sample_euler, "dpmpp_2m": sample_dpmpp_2m}
