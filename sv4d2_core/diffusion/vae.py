"""The image autoencoder (Rombach et al. 2022), without temporal layers; names give the official keys."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import scaled_dot_product, to_tokens
from .config import VAEConfig


def _norm(width: int) -> nn.Module:
    return nn.GroupNorm(32, width, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two normalised convolutions on [N, C, H, W], and a shortcut."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = _norm(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.nin_shortcut = None
        if width_in != width_out:
            self.nin_shortcut = nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return h.add_(x if self.nin_shortcut is None else self.nin_shortcut(x))


class PixelAttention(nn.Module):
    """Single-head attention over the pixels of each image [N, C, H, W], added to it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        out = scaled_dot_product(to_tokens(self.q(h)), to_tokens(self.k(h)), to_tokens(self.v(h)), 1)
        return x + self.proj_out(out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2))


class _Resample(nn.Module):
    """Halves images [N, C, H, W], zeros joining at the bottom and the right only, or doubles them."""

    def __init__(self, width: int, down: bool) -> None:
        super().__init__()
        self.down = down
        stride, padding = (2, 0) if down else (1, 1)
        self.conv = nn.Conv2d(width, width, 3, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.down:
            return self.conv(F.pad(x, (0, 1, 0, 1)))
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _level(width_in: int, width: int, n_blocks: int, change: str | None) -> nn.Module:
    """Return the blocks of one resolution and the ``change`` of it after them, by its official key."""
    blocks = [ResnetBlock(width if i else width_in, width) for i in range(n_blocks)]
    parts = OrderedDict[str, nn.Module](block=nn.Sequential(*blocks))
    if change is not None:
        parts[change] = _Resample(width, down=change == "downsample")
    return nn.Sequential(parts)


def _middle(width: int) -> nn.Module:
    parts = OrderedDict[str, nn.Module](
        block_1=ResnetBlock(width, width),
        attn_1=PixelAttention(width),
        block_2=ResnetBlock(width, width),
    )
    return nn.Sequential(parts)


class _EncoderLayers(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        width = config.base
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        levels = []
        for index, multiplier in enumerate(config.multipliers):
            change = "downsample" if index < len(config.multipliers) - 1 else None
            levels.append(_level(width, config.base * multiplier, config.res_blocks, change))
            width = config.base * multiplier
        self.down = nn.Sequential(*levels)
        self.mid = _middle(width)
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.down(self.conv_in(x)))
        return self.conv_out(F.silu(self.norm_out(x), inplace=True))


class VAEEncoder(nn.Module):
    """Images to the mean of their latent distribution; keys follow ``conditioner.embedders.N.encoder.``."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        channels = 2 * config.latent_channels
        self.encoder = _EncoderLayers(config)
        self.quant_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return unscaled latents [N, 4, H / 8, W / 8] of ``images`` [N, 3, H, W] in -1..1."""
        return self.quant_conv(self.encoder(images))[:, : self.config.latent_channels]


class VAEDecoder(nn.Module):
    """Unscaled latents to images; keys follow ``first_stage_model.decoder.`` (no post_quant_conv)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.base * config.multipliers[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = _middle(width)
        levels: list[nn.Module] = []
        for index, multiplier in reversed(list(enumerate(config.multipliers))):
            change = "upsample" if index else None
            levels.insert(0, _level(width, config.base * multiplier, config.res_blocks + 1, change))
            width = config.base * multiplier
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Return images [N, 3, 8 h, 8 w], about -1..1, of unscaled ``latents`` [N, 4, h, w]."""
        x = self.mid(self.conv_in(latents))
        for level in reversed(list(self.up)):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x), inplace=True))
