"""The guided denoiser: the network, its preconditioning and guidance as one function of (x, sigma).

Source: specification sections 6 and 7.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .conditioning import GuidedInputs
from .guidance import guide
from .sampler import DenoiseFunction
from .schedule import precondition
from .unet import UNet


def guided_denoiser(unet: UNet, inputs: GuidedInputs, guidance: Tensor) -> DenoiseFunction:
    """Return ``denoise(x, sigma)`` for noisy latents ``x`` [T * V, 4, h, w] float32, order (t v).

    Args:
        unet: the network; computes in the dtype of ``inputs``.
        inputs: conditioning of both halves.
        guidance: [T, V] scales.
    """
    window = unet.prepare(inputs.context, inputs.references)
    guidance = guidance.to(inputs.context.device)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        scale = precondition(sigma)
        noisy = (x * scale.c_in).to(inputs.concat).repeat(2, 1, 1, 1)
        timesteps = scale.c_noise.expand(len(inputs.vectors))
        out = unet(torch.cat([noisy, inputs.concat], dim=1), timesteps, inputs.vectors, window).float()
        uncond, cond = (half * scale.c_out + x * scale.c_skip for half in out.chunk(2))
        return guide(uncond, cond, guidance)

    return denoise
