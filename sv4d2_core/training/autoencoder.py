"""The loss that trains an autoencoder and an image tower of their own, and what inference takes of them.

The latents are put to mean 0 and variance 1 per channel afterwards, by the encoder's last and the decoder's
first convolution, so that ``scale_factor`` is 1 and ``sigma_data`` of the diffusion model holds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..diffusion.clip_vision import CLIPVision
from ..diffusion.config import ModelConfig
from ..diffusion.vae import VAEDecoder, VAEEncoder

_KL_WEIGHT = 1e-4
_EDGE_WEIGHT = 0.5
# What the image tower's one token must tell: the picture at this size.
_THUMBNAIL = 8
_TOWER_STD = 0.02


class AutoencoderLoss(nn.Module):
    """Reconstruction of pictures through noisy latents, and of thumbnails through the image tower's token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = VAEEncoder(config.vae)
        self.decoder = VAEDecoder(config.vae)
        self.tower = CLIPVision(config.clip)
        for parameter in (self.tower.class_embedding, self.tower.positional_embedding, self.tower.proj):
            nn.init.normal_(parameter, std=_TOWER_STD)
        for layer in self.tower.transformer.resblocks:
            nn.init.normal_(layer.attn.in_proj_weight, std=_TOWER_STD)  # pyright: ignore
            nn.init.zeros_(layer.attn.in_proj_bias)  # pyright: ignore
        nn.init.normal_(self.tower.proj, std=config.clip.width**-0.5)
        self.to_thumbnail = nn.Linear(config.clip.embed_dim, 3 * _THUMBNAIL**2)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of pictures [N, 3, H, W] in -1..1, noise [N, 4, h, w] on the latents."""
        images, noise = batch
        moments = self.encoder.quant_conv(self.encoder.encoder(images))
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-20, 5)
        decoded = self.decoder(mean + noise * (0.5 * log_variance).exp())
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = F.l1_loss(decoded, images) + _EDGE_WEIGHT * _edge_loss(decoded, images)
        thumbnail = F.adaptive_avg_pool2d(images, _THUMBNAIL).flatten(1)
        return loss + _KL_WEIGHT * divergence + F.mse_loss(self.to_thumbnail(self.tower(images)), thumbnail)


def _edge_loss(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean distance between the differences of neighbouring pixels."""
    return sum((F.l1_loss(x.diff(dim=d), y.diff(dim=d)) for d in (-2, -1)), x.new_zeros(()))


@torch.no_grad()
def normalise_latents(encoder: VAEEncoder, decoder: VAEDecoder, images: Tensor) -> None:
    """Give the latents of ``images`` [N, 3, H, W] mean 0 and variance 1 per channel; pictures stay the same.

    The decoder's first convolution pads with zeros, which then stand for another value: the border of the
    pictures, white in all training data, moves by a little.
    """
    latents = torch.cat([encoder(x) for x in images.split(32)])
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    n = len(mean)
    encoder.quant_conv.weight[:n] /= std[:, None, None, None]
    encoder.quant_conv.bias[:n] = (encoder.quant_conv.bias[:n] - mean) / std
    weight = decoder.conv_in.weight
    decoder.conv_in.bias += torch.einsum("oikl,i->o", weight, mean)
    weight *= std[None, :, None, None]
