"""The guided denoiser: the network, its preconditioning and guidance as one function of (x, sigma).

Source: specification sections 6 and 7; the guidance interval: Kynkäänniemi et al. 2024.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .conditioning import GuidedInputs
from .guidance import guide
from .sampler import DenoiseFunction
from .schedule import precondition
from .unet import PreparedWindow, UNet


def guided_denoiser(
    unet: UNet, inputs: GuidedInputs, guidance: Tensor, interval: tuple[float, float] | None = None
) -> DenoiseFunction:
    """Return ``denoise(x, sigma)`` for noisy latents ``x`` [T * V, 4, h, w] float32, order (t v).

    Args:
        unet: the network; computes in the dtype of ``inputs``.
        inputs: conditioning of both halves.
        guidance: [T, V] scales.
        interval: lowest and highest noise level with guidance; elsewhere the result is the conditional
            half's, and the other half is not computed. None: guidance everywhere.
    """
    guidance = guidance.to(inputs.context.device)
    conditional = inputs.conditional()

    @cache
    def prepared(guided: bool) -> PreparedWindow:
        halves = inputs if guided else conditional
        return unet.prepare(halves.context, halves.references)

    def predict(x: Tensor, sigma: Tensor, guided: bool) -> tuple[Tensor, ...]:
        """Return the denoised predictions, unconditional and conditional or the conditional one alone."""
        halves, n = (inputs, 2) if guided else (conditional, 1)
        scale = precondition(sigma)
        noisy = (x * scale.c_in).to(halves.concat).repeat(n, 1, 1, 1)
        timesteps = scale.c_noise.expand(len(halves.vectors))
        out = unet(torch.cat([noisy, halves.concat], dim=1), timesteps, halves.vectors, prepared(guided))
        return tuple(half * scale.c_out + x * scale.c_skip for half in out.float().chunk(n))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        if interval is not None and not interval[0] <= float(sigma) <= interval[1]:
            return predict(x, sigma, guided=False)[0]
        uncond, cond = predict(x, sigma, guided=True)
        return guide(uncond, cond, guidance)

    return denoise
