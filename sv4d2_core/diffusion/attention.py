"""Attention through one function, and the two attention layers of the SV4D 2.0 blocks."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AttentionFunction = Callable[[Tensor, Tensor, Tensor, int], Tensor]

# CUDA kernels put the batch on a grid axis that ends at 65,535; half of it also suits the kernels' padding.
MAX_ATTENTION_BATCH = 32_768
# The CPU's attention kernel has a fixed cost per group that outweighs the work of groups up to this length.
_SMALL_GROUP = 32
# Shorter rows fill no vector register.
_VECTOR = 16


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v for every batch element and head.

    Args:
        q, k, v: [G, L, heads * d]; strided views are fine as long as the last axis is dense.
        heads: number of heads.

    Returns:
        [G, L, heads * d].
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if q.device.type == "cpu" and q.shape[2] <= _SMALL_GROUP:
        out = _small_groups(q, k, v)
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


def _small_groups(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the attention output for many short groups [G, heads, L, d] through plain matrix products."""
    shape = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.bmm(q * shape[-1] ** -0.5, k.transpose(1, 2))
    if shape[2] < _VECTOR:
        # A softmax over the first axis is many times faster than over a last one of a few numbers.
        weights = scores.permute(2, 0, 1).contiguous().softmax(dim=0).permute(1, 2, 0)
    else:
        weights = scores.softmax(dim=-1)
    return torch.bmm(weights, v).view(shape)


class SelfAttention(nn.Module):
    """Multi-head attention of every group of tokens to itself; the projections have no input bias."""

    def __init__(
        self,
        width: int,
        head_channels: int,
        *,
        operations: ModuleType | Any,
        attention: AttentionFunction,
        **kw,
    ) -> None:
        super().__init__()
        self.heads = width // head_channels
        self.attention = attention
        self.to_q = operations.Linear(width, width, bias=False, **kw)
        self.to_k = operations.Linear(width, width, bias=False, **kw)
        self.to_v = operations.Linear(width, width, bias=False, **kw)
        self.to_out = nn.Sequential(operations.Linear(width, width, **kw))

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention output for groups of tokens ``x`` [..., L, C], same shape."""
        groups = x.flatten(0, -3)
        q, k, v = self.to_q(groups), self.to_k(groups), self.to_v(groups)
        if len(groups) <= MAX_ATTENTION_BATCH:
            mixed = self.attention(q, k, v, self.heads)
        else:
            batches = zip(*(x.split(MAX_ATTENTION_BATCH) for x in (q, k, v)), strict=True)
            mixed = torch.cat([self.attention(q, k, v, self.heads) for q, k, v in batches])
        return self.to_out(mixed).view(x.shape)


class OneTokenAttention(nn.Module):
    """Cross-attention to a single context token, which is a linear map of that token.

    With one token every softmax is 1, so ``to_q`` and ``to_k`` never matter (specification 4.4). They are
    kept because the official files hold them.
    """

    def __init__(self, width: int, context_dim: int, *, operations: ModuleType | Any, **kw) -> None:
        super().__init__()
        self.to_q = operations.Linear(width, width, bias=False, **kw)
        self.to_k = operations.Linear(context_dim, width, bias=False, **kw)
        self.to_v = operations.Linear(context_dim, width, bias=False, **kw)
        self.to_out = nn.Sequential(operations.Linear(width, width, **kw))

    def forward(self, context: Tensor) -> Tensor:
        """Return what every query that sees ``context`` [..., D] receives, [..., C]."""
        return self.to_out(self.to_v(context))

    def affine_map(self, context_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return this layer as a matrix [D, C] and an offset [C], found by probing it.

        Probing instead of reading the weights keeps layers that cast, quantise or patch them correct.
        """
        zero_then_axes = torch.cat([like.new_zeros(1, context_dim), torch.eye(context_dim).to(like)])
        rows = self(zero_then_axes)
        return rows[1:] - rows[0], rows[0]
