"""The OpenCLIP image tower (Ilharco et al. 2021): a context token per frame; names give the official keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import AttentionFunction, scaled_dot_product
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

    def __init__(
        self, width: int, heads: int, *, operations: Any, attention: AttentionFunction, **kw
    ) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width, **kw))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width, **kw))
        self.out_proj = operations.Linear(width, width, **kw)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.in_proj_weight.to(x), self.in_proj_bias.to(x)
        q, k, v = F.linear(x, weight, bias).chunk(3, dim=-1)
        return self.out_proj(self.attention(q, k, v, self.heads))


class _MLP(nn.Module):
    def __init__(self, config: CLIPVisionConfig, *, operations: Any, **kw) -> None:
        super().__init__()
        self.quick_gelu = config.quick_gelu
        self.c_fc = operations.Linear(config.width, config.mlp_width, **kw)
        self.c_proj = operations.Linear(config.mlp_width, config.width, **kw)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        return self.c_proj(x * torch.sigmoid(1.702 * x) if self.quick_gelu else F.gelu(x))


class _Layer(nn.Module):
    def __init__(
        self, config: CLIPVisionConfig, *, operations: Any, attention: AttentionFunction, **kw
    ) -> None:
        super().__init__()
        width, heads = config.width, config.width // config.head_width
        self.ln_1 = operations.LayerNorm(width, **kw)
        self.attn = _PackedAttention(width, heads, operations=operations, attention=attention, **kw)
        self.ln_2 = operations.LayerNorm(width, **kw)
        self.mlp = _MLP(config, operations=operations, **kw)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class CLIPVision(nn.Module):
    """The tower; keys follow ``conditioner.embedders.0.open_clip.model.visual.``."""

    def __init__(
        self,
        config: CLIPVisionConfig,
        *,
        operations: Any = nn,
        attention: AttentionFunction = scaled_dot_product,
        **plain: Any,  # dtype and device of the weights
    ) -> None:
        super().__init__()
        self.config = config
        kw = {"operations": operations, "attention": attention, **plain}
        width, tokens = config.width, (config.image_size // config.patch) ** 2 + 1
        self.conv1 = operations.Conv2d(3, width, config.patch, stride=config.patch, bias=False, **plain)
        self.class_embedding = nn.Parameter(torch.empty(width, **plain))
        self.positional_embedding = nn.Parameter(torch.empty(tokens, width, **plain))
        self.ln_pre = operations.LayerNorm(width, **plain)
        layers = nn.Sequential(*(_Layer(config, **kw) for _ in range(config.layers)))
        self.transformer = nn.ModuleDict({"resblocks": layers})
        self.ln_post = operations.LayerNorm(width, **plain)
        self.proj = nn.Parameter(torch.empty(width, config.embed_dim, **plain))

    def forward(self, images: Tensor) -> Tensor:
        """Return one embedding per image [N, 3, H, W] in -1..1 of any size, [N, embed_dim]."""
        pixels = preprocess_for_clip(images.float(), self.config.image_size).to(self.proj.dtype)
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.to(x).expand(len(x), 1, -1), x], dim=1)
        x = self.transformer["resblocks"](self.ln_pre(x + self.positional_embedding.to(x)))
        return self.ln_post(x[:, 0]) @ self.proj.to(x)
