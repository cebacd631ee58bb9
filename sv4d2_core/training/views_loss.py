"""The loss of the diffusion model: EDM's, with the v-parameterisation and data of unit variance.

With ``c_out^2 = sigma^2 / (sigma^2 + 1)`` EDM's weight ``(sigma^2 + 1) / sigma^2`` makes the loss a plain
mean square of the network's own output. Source: Karras et al. 2022, section 5 and table 1; specification
section 7.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..diffusion.schedule import precondition
from ..diffusion.unet import UNet
from .batches import ViewsBatch, as_network_inputs, input_of_each_view


class ViewsLoss(nn.Module):
    """The loss of a UNet on a `ViewsBatch`; computes in the UNet's dtype."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, batch: ViewsBatch) -> Tensor:
        """Return the mean square error of the network's output."""
        b, t, v = batch.clean.shape[:3]
        dtype = next(self.unet.parameters()).dtype
        noise, clean = as_network_inputs(batch)
        scale = precondition(batch.sigmas)
        c_skip, c_out, c_in = (
            x.repeat_interleave(t * v)[:, None, None, None] for x in (scale.c_skip, scale.c_out, scale.c_in)
        )
        noisy = clean + noise * batch.sigmas.repeat_interleave(t * v)[:, None, None, None]
        window = self.unet.prepare(batch.tokens.to(dtype), batch.references.flatten(0, 1).to(dtype))
        inputs = torch.cat([noisy * c_in, input_of_each_view(batch)], dim=1).to(dtype)
        timesteps = scale.c_noise.repeat_interleave(v)
        out = self.unet(inputs, timesteps, batch.vectors.flatten(0, 1).to(dtype), window).float()
        return (out - (clean - c_skip * noisy) / c_out).square().mean()


def initialise(unet: UNet) -> None:
    """Start a UNet that was never trained: residual branches add nothing, frames do not mix yet.

    torch's own initialisation serves the rest.
    """
    for name, module in unet.named_modules():
        ends_branch = name.endswith(("out_layers.3", "proj_out")) or name == "out.2"
        ends_motion = ".motion_blocks." in name and name.endswith(("to_out.0", "net.2"))
        if ends_branch or ends_motion or name.endswith("time_mix_motion_embed.2"):
            nn.init.zeros_(module.weight)  # pyright: ignore
            if module.bias is not None:  # pyright: ignore
                nn.init.zeros_(module.bias)  # pyright: ignore
