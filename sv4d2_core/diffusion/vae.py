"""The image autoencoder: an encoder to latents and a decoder back, without temporal layers.

Source: Rombach et al. 2022 (latent diffusion). Module names give the official checkpoint keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import AttentionFunction, scaled_dot_product, to_tokens
from .config import VAEConfig


def _norm(width: int, operations: Any, **kw) -> nn.Module:
    return operations.GroupNorm(32, width, eps=1e-6, **kw)


class ResnetBlock(nn.Module):
    """Two normalised convolutions on [N, C, H, W], and a shortcut."""

    def __init__(self, width_in: int, width_out: int, *, operations: Any, **kw) -> None:
        super().__init__()
        self.norm1 = _norm(width_in, operations, **kw)
        self.conv1 = operations.Conv2d(width_in, width_out, 3, padding=1, **kw)
        self.norm2 = _norm(width_out, operations, **kw)
        self.conv2 = operations.Conv2d(width_out, width_out, 3, padding=1, **kw)
        self.nin_shortcut = None
        if width_in != width_out:
            self.nin_shortcut = operations.Conv2d(width_in, width_out, 1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return h.add_(x if self.nin_shortcut is None else self.nin_shortcut(x))


class PixelAttention(nn.Module):
    """Single-head attention over the pixels of each image [N, C, H, W], added to it."""

    def __init__(self, width: int, *, operations: Any, attention: AttentionFunction, **kw) -> None:
        super().__init__()
        self.attention = attention
        self.norm = _norm(width, operations, **kw)
        self.q, self.k, self.v, self.proj_out = (operations.Conv2d(width, width, 1, **kw) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        out = self.attention(to_tokens(self.q(h)), to_tokens(self.k(h)), to_tokens(self.v(h)), 1)
        return x + self.proj_out(out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2))


class Downsample(nn.Module):
    """Halves [N, C, H, W]; one row and column of zeros join at the bottom and the right only."""

    def __init__(self, width: int, *, operations: Any, **kw) -> None:
        super().__init__()
        self.conv = operations.Conv2d(width, width, 3, stride=2, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles [N, C, H, W]: nearest neighbours, then a convolution."""

    def __init__(self, width: int, *, operations: Any, **kw) -> None:
        super().__init__()
        self.conv = operations.Conv2d(width, width, 3, padding=1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """The blocks of one resolution and, under its official name, the change of resolution after them."""

    def __init__(self, blocks: list[nn.Module], name: str = "", sampler: nn.Module | None = None) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        if sampler is not None:
            self.add_module(name, sampler)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if name in self._modules:
                x = getattr(self, name)(x)
        return x


class _Middle(nn.Module):
    def __init__(self, width: int, *, attention: AttentionFunction, **kw) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width, **kw)
        self.attn_1 = PixelAttention(width, attention=attention, **kw)
        self.block_2 = ResnetBlock(width, width, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _EncoderLayers(nn.Module):
    def __init__(self, config: VAEConfig, operations: Any, attention: AttentionFunction, **plain) -> None:
        super().__init__()
        kw = {"operations": operations, **plain}
        width = config.base
        self.conv_in = operations.Conv2d(3, width, 3, padding=1, **plain)
        levels = []
        for index, multiplier in enumerate(config.multipliers):
            blocks: list[nn.Module] = []
            for _ in range(config.res_blocks):
                blocks.append(ResnetBlock(width, config.base * multiplier, **kw))
                width = config.base * multiplier
            last = index == len(config.multipliers) - 1
            levels.append(_Level(blocks, "downsample", None if last else Downsample(width, **kw)))
        self.down = nn.ModuleList(levels)
        self.mid = _Middle(width, attention=attention, **kw)
        self.norm_out = _norm(width, operations, **plain)
        self.conv_out = operations.Conv2d(width, 2 * config.latent_channels, 3, padding=1, **plain)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x)), inplace=True))


class VAEEncoder(nn.Module):
    """Images to the mean of their latent distribution; keys follow ``conditioner.embedders.N.encoder.``."""

    def __init__(
        self,
        config: VAEConfig,
        *,
        operations: Any = nn,
        attention: AttentionFunction = scaled_dot_product,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        channels = 2 * config.latent_channels
        self.encoder = _EncoderLayers(config, operations, attention, dtype=dtype, device=device)
        self.quant_conv = operations.Conv2d(channels, channels, 1, dtype=dtype, device=device)

    def forward(self, images: Tensor) -> Tensor:
        """Return unscaled latents [N, 4, H / 8, W / 8] of ``images`` [N, 3, H, W] in -1..1."""
        return self.quant_conv(self.encoder(images))[:, : self.config.latent_channels]


class VAEDecoder(nn.Module):
    """Unscaled latents to images; keys follow ``first_stage_model.decoder.`` (no post_quant_conv)."""

    def __init__(
        self,
        config: VAEConfig,
        *,
        operations: Any = nn,
        attention: AttentionFunction = scaled_dot_product,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        plain: dict[str, Any] = {"dtype": dtype, "device": device}
        kw = {"operations": operations, **plain}
        width = config.base * config.multipliers[-1]
        self.conv_in = operations.Conv2d(config.latent_channels, width, 3, padding=1, **plain)
        self.mid = _Middle(width, attention=attention, **kw)
        levels: list[nn.Module] = []
        for index, multiplier in reversed(list(enumerate(config.multipliers))):
            blocks: list[nn.Module] = []
            for _ in range(config.res_blocks + 1):
                blocks.append(ResnetBlock(width, config.base * multiplier, **kw))
                width = config.base * multiplier
            levels.insert(0, _Level(blocks, "upsample", Upsample(width, **kw) if index else None))
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(width, operations, **plain)
        self.conv_out = operations.Conv2d(width, 3, 3, padding=1, **plain)

    def forward(self, latents: Tensor) -> Tensor:
        """Return images [N, 3, 8 h, 8 w], about -1..1, of unscaled ``latents`` [N, 4, h, w]."""
        x = self.mid(self.conv_in(latents))
        for level in reversed(list(self.up)):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x), inplace=True))
