"""The savings of the UNet, each of which can be switched off for a measurement.

The product has no switches. `switched_off` replaces its functions, for as long as a ``with`` block lasts,
with the official computation in plain operations (docs/method.md, Network). Every replacement calls the
product's other functions by name, so that any combination works; all of them together are the official
computation.
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
    GEGLU,
    AttentionBlock,
    Blend,
    BlockContext,
    Embedding,
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


# Rows of the embedding: one per image.


def _embed_every_image(self: UNet, timesteps: Tensor, y: Tensor, grid: Grid, dtype: torch.dtype) -> Embedding:
    if len(y) != grid.batch * grid.frames * grid.views:
        timesteps, y = (
            rows.unflatten(0, (grid.batch, 1, -1)).expand(*grid, *rows.shape[1:]).flatten(0, 2)
            for rows in (timesteps, y)
        )
    return _embed(self, timesteps, y, grid, dtype)


_embed = UNet._embed


# Reused memory: every activation, gate and blend is a new tensor.

_activate = F.silu


def _silu(x: Tensor, inplace: bool = False) -> Tensor:
    return _activate(x)


def _gate(self: GEGLU, x: Tensor) -> Tensor:
    value, gate = self.proj(x).chunk(2, dim=-1)
    return value * F.gelu(gate)


def _blend(self: Blend, before: Tensor, mixed: Tensor) -> Tensor:
    share = self.share_of_mixed(mixed)
    return (1 - share) * before + share * mixed


def _new_memory(self: ResBlock, x: Tensor, reuse: bool) -> Tensor:
    return _output_memory(self, x, False)


_output_memory = ResBlock._output_memory


# Grouping: tokens are copied into the order of their groups, and back, before and inside the view block and
# inside the motion block.


def _mix_views_by_copies(
    self: AttentionBlock, tokens: Tensor, context: BlockContext, views: Tensor, token_budget: int
) -> Tensor:
    b, t, v, s, c = tokens.shape
    released = self.config.view_mixing == "released_3d"
    order, inverse = ((1, 2, 0, 3), (2, 0, 1, 3)) if released else ((1, 0, 2, 3), (1, 0, 2, 3))
    offsets = views.view(b, 1, v, 1, c).expand(b, t, v, 1, c).flatten(0, 1)
    rows = self._view_context_rows(b, t, s, tokens.device)
    before = tokens.flatten(0, 1)
    after = blocks.reusable(before)
    for i in blocks.parts(b * t, v * s, token_budget):
        grouped = before[i].permute(order).contiguous()
        row_of_group = rows[i].T if released else rows[i].expand(-1, s)
        cross = context.view[row_of_group.flatten(), None]
        mixed = (grouped + offsets[i].permute(order)).view(s if released else 1, v, -1, c)
        mixed = mixed.transpose(1, 2).reshape(-1, v, c)
        mixed = self.time_mix_blocks[0](mixed, cross).view(s if released else 1, -1, v, c)
        blended = self.time_mixer(grouped, mixed.transpose(1, 2).reshape(grouped.shape))
        after[i] = blended.permute(inverse)
    return after.view(tokens.shape)


def _mix_frames_by_copies(
    self: AttentionBlock, tokens: Tensor, context: BlockContext, references: Tensor, token_budget: int
) -> Tensor:
    b, t, v, s, c = tokens.shape
    after = blocks.reusable(tokens)
    for i in blocks.parts(s, b * t * v, token_budget):
        before = tokens[:, :, :, i]
        cross = torch.addmm(context.motion_offset, references[:, :, i].flatten(0, 2), context.motion_map)
        mixed = (before + context.frames[:, None, None]).permute(0, 2, 3, 1, 4)
        mixed = self.motion_blocks[0](mixed.reshape(-1, t, c), cross[:, None]).view(mixed.shape)
        after[:, :, :, i] = self.time_mixer_motion(before, mixed.permute(0, 3, 1, 2, 4).contiguous())
    return after


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
    "embedding rows per view": [(UNet, "_embed", _embed_every_image)],
    "reused memory": [
        (blocks, "reusable", torch.empty_like),
        (ResBlock, "_output_memory", _new_memory),
        (F, "silu", _silu),
        (GEGLU, "forward", _gate),
        (Blend, "forward", _blend),
    ],
    # The product asks for the layout by this name.
    "channels-last": [(torch, "channels_last", torch.contiguous_format)],
    "copy-free grouping": [
        (AttentionBlock, "_mix_views", _mix_views_by_copies),
        (AttentionBlock, "_mix_frames", _mix_frames_by_copies),
    ],
}

OFFICIAL = frozenset(SAVINGS)
PRODUCT: frozenset[str] = frozenset()
