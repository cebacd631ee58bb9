"""Small pieces of the networks: embeddings, feed-forward, learned blends, changes of size, work in parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .fused import fuses, geglu, linear


def sinusoidal_embedding(values: Tensor, dim: int) -> Tensor:
    """Return cosines then sines of ``values`` at geometrically spaced frequencies, [N, dim] float32.

    Args:
        values: [N] timesteps or angles.
        dim: even width.

    Source: specification 4.1.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float()[:, None] * torch.exp(-math.log(10000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def recording() -> bool:
    """Return whether autograd records, in which case tensors must not be updated in place."""
    return torch.is_grad_enabled()


def in_place(_module: nn.Module) -> AbstractContextManager[None]:
    """Return a context that brings nothing: the module's weights are where it works."""
    # Without an argument, which a compiler would stop at.
    return nullcontext()


def parts(total: int, item_bytes: int, budget: int) -> Iterator[slice]:
    """Yield slices that cover ``range(total)``, each of at most ``budget`` bytes but at least one item.

    They are as few as the budget allows, and all but the last of equal length. While autograd records there
    is one slice: its graph holds all activations anyway.
    """
    most = total if recording() else max(1, min(total, budget // max(1, item_bytes)))
    step = math.ceil(total / math.ceil(total / most))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def add(x: Tensor, y: Tensor) -> Tensor:
    """Return x + y, in the memory of ``x`` when autograd does not record."""
    return x + y if recording() else x.add_(y)


def store_sum(target: Tensor, x: Tensor, y: Tensor) -> None:
    """Write x + y into ``target``."""
    # A compiler makes one pass of it, and knows no ``out`` with gaps between its numbers.
    if recording() or torch.compiler.is_compiling():
        target.copy_(x + y)
    else:
        torch.add(x, y, out=target)


def add_dense(x: Tensor, y: Tensor) -> Tensor:
    """Return x + y as a new tensor that is contiguous whatever the strides of ``x``."""
    if recording():
        return (x + y).contiguous()
    return torch.add(x, y, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))


def silu(x: Tensor) -> Tensor:
    """Return SiLU(x), in the memory of ``x`` when autograd does not record."""
    return F.silu(x, inplace=not recording())


def to_tokens(x: Tensor) -> Tensor:
    """Return images [N, C, h, w] as tokens [N, h * w, C] (no copy when ``x`` is channels-last)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class Blend(nn.Module):
    """A learned scalar blend ``a * before + (1 - a) * mixed`` with ``a = sigmoid(mix_factor)``."""

    def __init__(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> None:
        super().__init__()
        # Eight bits would move the blend by percents and save nothing.
        exact = dtype is None or dtype.itemsize > 1
        self.mix_factor = nn.Parameter(torch.zeros(1, dtype=dtype if exact else torch.float32, device=device))

    def share_of_mixed(self, like: Tensor) -> Tensor:
        """Return 1 - a, [1], in the dtype and on the device of ``like``."""
        return torch.sigmoid(-self.mix_factor.to(like.device, torch.float32)).to(like.dtype)

    def store(self, target: Tensor, before: Tensor, mixed: Tensor) -> None:
        """Write the blend of ``before`` and ``mixed`` into ``target``, which may share its memory."""
        share = self.share_of_mixed(mixed)
        # As in `store_sum`.
        if recording() or torch.compiler.is_compiling():
            target.copy_(torch.lerp(before, mixed, share))
        else:
            torch.lerp(before, mixed, share, out=target)


class Downsample(nn.Module):
    """Convolution with stride 2."""

    def __init__(self, width: int, *, operations: ModuleType | Any, **kw) -> None:
        super().__init__()
        self.op = operations.Conv2d(width, width, 3, stride=2, padding=1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` [N, C, h, w] at half the size."""
        return self.op(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, width: int, *, operations: ModuleType | Any, **kw) -> None:
        super().__init__()
        self.conv = operations.Conv2d(width, width, 3, padding=1, **kw)

    def forward(self, x: Tensor, budget: int) -> Tensor:
        """Return ``x`` [N, C, h, w] at twice the size, some images at a time within ``budget`` bytes."""
        n, width, height, length = x.shape
        shape = (n, width, 2 * height, 2 * length)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        # A part's 8 times its input, counted twice: the output and all skips are alive beside it.
        for i in parts(n, 16 * x[0].nbytes, budget):
            out[i] = self.conv(F.interpolate(x[i], scale_factor=2.0, mode="nearest"))
        return out


class GEGLU(nn.Module):
    """Linear to twice the width; the first half times the exact GELU of the second."""

    def __init__(self, width: int, inner: int, *, operations: ModuleType | Any, **kw) -> None:
        super().__init__()
        self.proj = operations.Linear(width, 2 * inner, **kw)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated projection of ``x`` [..., C], [..., inner]."""
        if fuses(self.proj, x):
            return geglu(self.proj, x)
        value, gate = self.proj(x).chunk(2, dim=-1)
        gate = F.gelu(gate)
        return gate * value if recording() else gate.mul_(value)


class FeedForward(nn.Module):
    """GEGLU with an inner width of four times the tokens' width, then a linear layer back."""

    def __init__(self, width: int, *, operations: ModuleType | Any, **kw) -> None:
        super().__init__()
        gate = GEGLU(width, 4 * width, operations=operations, **kw)
        # The official keys count a dropout layer between the two.
        self.net = nn.ModuleList([gate, nn.Identity(), operations.Linear(4 * width, width, **kw)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the feed-forward output of the tokens ``x`` [..., C], same shape."""
        gate, _, out = self.net
        hidden = gate(x)
        return linear(out, hidden) if fuses(out, hidden) else out(hidden)
