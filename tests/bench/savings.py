"""The savings of the UNet, each of which can be switched off for a measurement.

The product has no switches. `switched_off` replaces its functions, for as long as a ``with`` block lasts,
with the computation of the official code, written from the specification. Every replacement calls the
product's other functions by name, so that any combination works; all of them together are the official
computation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sv4d2_core.diffusion import blocks as attention
from sv4d2_core.diffusion import blocks as attention_block
from sv4d2_core.diffusion import blocks as layers
from sv4d2_core.diffusion import blocks as res_block
from sv4d2_core.diffusion import unet
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
    frames = attention_block.sinusoidal_embedding(frames, self.width).to(context.dtype)
    width = self.motion_context_dim
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
        x = attention_block.add_in_cache(x, 1, self.norm_in, self.ff_in)
    x = attention_block.add_in_cache(x, x.shape[-2], self.norm1, self.attn1)
    x = attention_block.add(x, _cross_attention(self, self.norm2(x), context))
    return attention_block.add_in_cache(x, 1, self.norm3, self.ff)


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
    h = self.in_layers[2](res_block.silu(res_block.image_norm(self.in_layers[0], x)))
    h = res_block.add(h, self.emb_layers(emb.rows)[emb.row_of_image][:, :, None, None])
    h = self.out_layers[3](res_block.silu(res_block.image_norm(self.out_layers[0], h)))
    return self._along_sequence(res_block.add(h, self.skip_connection(x)), emb, grid)


def _both_sequences(self: ResBlock, x: Tensor, emb: Embedding, grid: Grid) -> Tensor:
    convs, share = self.time_mix_blocks, self.time_mixer.share_of_mixed(x)
    sequences = x.unflatten(0, (grid.batch, -1)).transpose(1, 2)
    h = convs.in_layers[2](res_block.silu(convs.in_layers[0](sequences)))
    rows = convs.emb_layers(emb.rows[emb.row_of_image]).unflatten(0, (grid.batch, -1))
    h = res_block.add(h, rows.transpose(1, 2)[..., None, None])
    h = convs.out_layers[3](res_block.silu(convs.out_layers[0](h)))
    if res_block.recording():
        return ((1 - share) * sequences + share * (sequences + h)).transpose(1, 2).flatten(0, 1)
    return x.addcmul_(h.transpose(1, 2).flatten(0, 1), share)


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
    tokens = self.proj_in(to_tokens(attention_block.image_norm(self.norm, x)))
    tokens = self.transformer_blocks[0](tokens, context.spatial[frame_of_image, None])
    tokens = tokens.unflatten(0, tuple(grid))
    tokens = self._mix_views(tokens, context, self.time_mix_time_embed(emb.of_views), budget)
    tokens = self._mix_frames(tokens, context, references, budget)
    images = self.proj_out(tokens.flatten(0, 2)).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    # The sum has the memory layout of its first term: from here on the official code is channels-last too.
    return images + x if attention_block.recording() else x.add_(images)


# Transformers in the cache: all tokens of a part at once.


def _add_at_once(x: Tensor, _length: int, norm: nn.Module, layer: nn.Module) -> Tensor:
    return attention_block.add(x, layer(norm(x)))


# Norms of images: PyTorch's own kernel.


def _plain_norm(norm: nn.Module, x: Tensor) -> Tensor:
    return norm(x)


# Rows of the embedding: one per image.


def _embed_every_image(self: UNet, timesteps: Tensor, y: Tensor, grid: Grid, dtype: torch.dtype) -> Embedding:
    if len(y) != grid.batch * grid.frames * grid.views:
        timesteps, y = (
            rows.unflatten(0, (grid.batch, 1, -1)).expand(*grid, *rows.shape[1:]).flatten(0, 2)
            for rows in (timesteps, y)
        )
    return _embed(self, timesteps, y, grid, dtype)


_embed = UNet._embed


# In-place updates: every sum, activation and blend is a new tensor.


def _gate(self: GEGLU, x: Tensor) -> Tensor:
    value, gate = self.proj(x).chunk(2, dim=-1)
    return value * F.gelu(gate)


def _blend(self: Blend, target: Tensor, before: Tensor, mixed: Tensor) -> None:
    share = self.share_of_mixed(mixed)
    torch.add((1 - share) * before, share * mixed, out=target)


# Grouping: tokens are copied into the order of their groups, and back, before and inside the view block and
# inside the motion block.


def _mix_views_by_copies(
    self: AttentionBlock, tokens: Tensor, context: BlockContext, views: Tensor, token_budget: int
) -> Tensor:
    b, t, v, s, c = shape = tokens.shape
    released = self.view_mixing == "released_3d"
    order, inverse = ((1, 2, 0, 3), (2, 0, 1, 3)) if released else ((1, 0, 2, 3), (1, 0, 2, 3))
    offsets = views.view(b, 1, v, 1, c).expand(b, t, v, 1, c).flatten(0, 1)
    rows = self._view_context_rows(b, t, s, tokens.device)
    slices = list(attention_block.parts(b * t, v * s, token_budget))
    whole = len(slices) == 1
    after = torch.empty_like(tokens) if attention_block.recording() and not whole else tokens
    for i in slices:
        grouped = tokens.flatten(0, 1)[i].permute(order).contiguous()
        if whole:
            # Nothing reads the tokens again, but callers would keep their memory.
            tokens.untyped_storage().resize_(0)
        row_of_group = rows[i].T if released else rows[i].expand(-1, s)
        cross = context.view[row_of_group.flatten(), None]
        mixed = (grouped + offsets[i].permute(order)).view(s if released else 1, v, -1, c)
        mixed = mixed.transpose(1, 2).reshape(-1, v, c)
        mixed = self.time_mix_blocks[0](mixed, cross).view(s if released else 1, -1, v, c)
        self.time_mixer.store(grouped, grouped, mixed.transpose(1, 2).reshape(grouped.shape))
        if whole:
            return grouped.permute(inverse).contiguous().view(shape)
        after.flatten(0, 1)[i] = grouped.permute(inverse)
    return after


def _mix_frames_by_copies(
    self: AttentionBlock, tokens: Tensor, context: BlockContext, references: Tensor, token_budget: int
) -> Tensor:
    b, t, v, s, c = tokens.shape
    after = tokens
    for i in attention_block.parts(s, b * t * v, token_budget):
        before = tokens[:, :, :, i]
        cross = torch.addmm(context.motion_offset, references[:, :, i].flatten(0, 2), context.motion_map)
        mixed = (before + context.frames[:, None, None]).permute(0, 2, 3, 1, 4)
        mixed = self.motion_blocks[0](mixed.reshape(-1, t, c), cross[:, None]).view(mixed.shape)
        mixed = mixed.permute(0, 3, 1, 2, 4).contiguous()
        if after is tokens and attention_block.recording():
            after = torch.empty_like(tokens)
        self.time_mixer_motion.store(after[:, :, :, i], before, mixed)
    return after


SAVINGS: dict[str, list[Replacement]] = {
    ONE_TOKEN: [
        (AttentionBlock, "prepare", _prepare_tokens),
        (TransformerBlock, "forward", _attend_to_token),
    ],
    "work in parts": [
        (attention_block, "parts", _one_part),
        (res_block, "parts", _one_part),
        (ResBlock, "forward", _res_block_whole),
        (ResBlock, "_along_sequence", _both_sequences),
        (AttentionBlock, "forward", _attention_block_whole),
    ],
    "transformers in the cache": [(attention_block, "add_in_cache", _add_at_once)],
    "norms in order": [(module, "image_norm", _plain_norm) for module in (attention_block, res_block, unet)],
    "fused feed-forwards": [(layers, "fuses", lambda *_: False)],
    # PyTorch's own attention, whatever the length of a group.
    "short groups by matrix products": [(attention, "_SMALL_GROUP", 0)],
    "embedding rows per view": [(UNet, "_embed", _embed_every_image)],
    # `recording` is replaced where tensors are updated but not in `layers`, where it would switch off parts.
    "in-place updates": [
        (attention_block, "recording", lambda: True),
        (res_block, "recording", lambda: True),
        (attention_block, "add", torch.add),
        (res_block, "add", torch.add),
        (res_block, "silu", F.silu),
        (unet, "silu", F.silu),
        (GEGLU, "forward", _gate),
        (Blend, "store", _blend),
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
