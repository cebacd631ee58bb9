"""The OpenCLIP image tower (Ilharco et al. 2021): a context token per frame; names give the official keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import scaled_dot_product
from .config import CLIPVisionConfig

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess_for_clip(images: Tensor, size: int = 224) -> Tensor:
    """Return [N, 3, H, W] in -1..1 blurred where it shrinks, resized to ``size`` (bicubic) and normalised."""
    from kornia.geometry import resize

    images = resize(images, (size, size), interpolation="bicubic", align_corners=True, antialias=True)
    mean, std = (images.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
    return ((images + 1) / 2 - mean) / std


class _PackedAttention(nn.Module):
    """Self-attention whose three input projections are one matrix, as in the official keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.in_proj_weight.to(x), self.in_proj_bias.to(x)
        q, k, v = F.linear(x, weight, bias).chunk(3, dim=-1)
        return self.out_proj(scaled_dot_product(q, k, v, self.heads))


class _MLP(nn.Module):
    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.quick_gelu = config.quick_gelu
        self.c_fc = nn.Linear(config.width, config.mlp_width)
        self.c_proj = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        return self.c_proj(x * torch.sigmoid(1.702 * x) if self.quick_gelu else F.gelu(x))


class _Layer(nn.Module):
    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        width, heads = config.width, config.width // config.head_width
        self.ln_1 = nn.LayerNorm(width)
        self.attn = _PackedAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = _MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class CLIPVision(nn.Module):
    """The tower; keys follow ``conditioner.embedders.0.open_clip.model.visual.``."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.config = config
        width, tokens = config.width, (config.image_size // config.patch) ** 2 + 1
        self.conv1 = nn.Conv2d(3, width, config.patch, stride=config.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        layers = nn.Sequential(*(_Layer(config) for _ in range(config.layers)))
        self.transformer = nn.ModuleDict({"resblocks": layers})
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, config.embed_dim))

    def forward(self, images: Tensor) -> Tensor:
        """Return one embedding per image [N, 3, H, W] in -1..1 of any size, [N, embed_dim]."""
        pixels = preprocess_for_clip(images.float(), self.config.image_size).to(self.proj.dtype)
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.to(x).expand(len(x), 1, -1), x], dim=1)
        x = self.transformer["resblocks"](self.ln_pre(x + self.positional_embedding.to(x)))
        return self.ln_post(x[:, 0]) @ self.proj.to(x)
