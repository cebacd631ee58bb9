"""The savings of the UNet, each of which can be switched off for a measurement.

The product has no switches. `switched_off` replaces its functions, for as long as a ``with`` block lasts,
with the official computation in plain operations (docs/method.md, Network). Every replacement calls the
product's other functions by name, so that any combination works. Embedding rows per view and the grouping of
tokens without copies stay: what they save was measured, and is small.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from sv4d2_core.diffusion import blocks
from sv4d2_core.diffusion.blocks import (
    AttentionBlock,
    Blend,
    BlockContext,
    Embedding,
    FeedForward,
    Grid,
    ResBlock,
    TransformerBlock,
    to_tokens,
)
from sv4d2_core.diffusion.unet import PreparedWindow, UNet

ONE_TOKEN = "one-token cross-attention"

Replacement = tuple[Any, str, Any]


class WindowInputs(NamedTuple):
    """The inputs of one forward pass: see `UNet.forward` and `UNet.prepare`."""

    x: Tensor
    timesteps: Tensor
    y: Tensor
    context: Tensor
    cond_view: Tensor


@contextmanager
def switched_off(
    net: UNet, inputs: WindowInputs, savings: Collection[str], prepare_in_call: bool = False
) -> Iterator[Callable[[], Tensor]]:
    """Yield one forward pass of ``net`` as a function, computed without ``savings`` (names in `SAVINGS`).

    What the product prepares once for all steps of a window is prepared before, unless ``prepare_in_call``.
    """
    with ExitStack() as stack:
        for name in savings:
            for owner, attribute, replacement in SAVINGS[name]:
                stack.enter_context(patch.object(owner, attribute, replacement))

        def prepare() -> PreparedWindow:
            return net.prepare(inputs.context, inputs.cond_view)

        if prepare_in_call or ONE_TOKEN in savings:
            yield lambda: net(inputs.x, inputs.timesteps, inputs.y, prepare())
        else:
            window = prepare()
            yield lambda: net(inputs.x, inputs.timesteps, inputs.y, window)


# One-token cross-attention: queries, keys, values and a softmax over the single context token, which is
# repeated for every group of tokens, in every forward pass.


def _prepare_tokens(self: AttentionBlock, context: Tensor) -> BlockContext:
    frames = torch.arange(context.shape[1], device=context.device)
    frames = blocks.sinusoidal_embedding(frames, self.width).to(context.dtype)
    width = self.config.latent_channels
    return BlockContext(
        spatial=context.flatten(0, 1),
        view=context.flatten(0, 1),
        motion_map=torch.eye(width, dtype=context.dtype, device=context.device),
        motion_offset=context.new_zeros(width),
        frames=self.time_mix_motion_embed(frames),
    )


def _attend_to_token(self: TransformerBlock, x: Tensor, context: Tensor) -> Tensor:
    """Replace `TransformerBlock.forward`; ``context`` holds tokens [..., 1, D] instead of their effect."""
    if self.ff_in is not None and self.norm_in is not None:
        x = self.ff_in(self.norm_in(x)).add_(x)
    x = self.attn1(self.norm1(x)).add_(x)
    x = _cross_attention(self, self.norm2(x), context).add_(x)
    return self.ff(self.norm3(x)).add_(x)


def _cross_attention(block: TransformerBlock, x: Tensor, context: Tensor) -> Tensor:
    cross, heads = block.attn2, block.attn1.heads
    token = context.expand(*x.shape[:-2], 1, -1).reshape(-1, 1, context.shape[-1])
    queries = cross.to_q(x.flatten(0, -3))
    return cross.to_out(block.attn1.attention(queries, cross.to_k(token), cross.to_v(token), heads)).view(
        x.shape
    )


# Work in parts: every intermediate result exists whole.


def _one_part(total: int, *_sizes: int) -> list[slice]:
    return [slice(0, total)]


def _res_block_whole(
    self: ResBlock, x: Tensor, skip: Tensor | None, emb: Embedding, grid: Grid, budget: int
) -> Tensor:
    x = x if skip is None else torch.cat([x, skip], dim=1)
    return self._along_sequence(self.within_images(x, self.emb_layers(emb.rows)[emb.row_of_image]), emb, grid)


def _both_sequences(self: ResBlock, x: Tensor, emb: Embedding, grid: Grid) -> Tensor:
    sequences = x.unflatten(0, (grid.batch, -1)).transpose(1, 2)
    rows = emb.rows[emb.row_of_image].unflatten(0, (grid.batch, -1))
    branch = self.time_mix_blocks(sequences, rows).transpose(1, 2).flatten(0, 1)
    return torch.addcmul(x, branch, self.time_mixer.share_of_mixed(x))


def _attention_block_whole(
    self: AttentionBlock,
    x: Tensor,
    context: BlockContext,
    references: Tensor,
    emb: Embedding,
    grid: Grid,
    budget: int,
) -> Tensor:
    frame_of_image = torch.arange(len(x), device=x.device) // grid.views
    tokens = self.proj_in(to_tokens(self.norm(x)))
    tokens = self.transformer_blocks[0](tokens, context.spatial[frame_of_image, None])
    tokens = tokens.unflatten(0, tuple(grid))
    tokens = self._mix_views(tokens, context, self.time_mix_time_embed(emb.of_views), budget)
    tokens = self._mix_frames(tokens, context, references, budget)
    # The sum has the memory layout of its first term: from here on the official code is channels-last too.
    return self.proj_out(tokens.flatten(0, 2)).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2) + x


# Reused memory: every activation, gate and blend is a new tensor.

_activate = F.silu


def _silu(x: Tensor, inplace: bool = False) -> Tensor:
    return _activate(x)


def _feed_forward(self: FeedForward, x: Tensor) -> Tensor:
    value, gate = self.net[0](x).chunk(2, dim=-1)
    return self.net[2](value * F.gelu(gate))


def _blend(self: Blend, before: Tensor, mixed: Tensor) -> Tensor:
    share = self.share_of_mixed(mixed)
    return (1 - share) * before + share * mixed


def _new_memory(self: ResBlock, x: Tensor, reuse: bool) -> Tensor:
    return _output_memory(self, x, False)


_output_memory = ResBlock._output_memory


SAVINGS: dict[str, list[Replacement]] = {
    ONE_TOKEN: [
        (AttentionBlock, "prepare", _prepare_tokens),
        (TransformerBlock, "forward", _attend_to_token),
    ],
    "work in parts": [
        (blocks, "parts", _one_part),
        (ResBlock, "forward", _res_block_whole),
        (ResBlock, "_along_sequence", _both_sequences),
        (AttentionBlock, "forward", _attention_block_whole),
    ],
    "reused memory": [
        (blocks, "reusable", torch.empty_like),
        (ResBlock, "_output_memory", _new_memory),
        (F, "silu", _silu),
        (FeedForward, "forward", _feed_forward),
        (Blend, "forward", _blend),
    ],
    # The product asks for the layout by this name.
    "channels-last": [(torch, "channels_last", torch.contiguous_format)],
}

OFFICIAL = frozenset(SAVINGS)
PRODUCT: frozenset[str] = frozenset()
