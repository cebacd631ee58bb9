"""The Euler sampler of the EDM ordinary differential equation; it knows no network.

Source: specification section 7; Karras et al. 2022, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

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
