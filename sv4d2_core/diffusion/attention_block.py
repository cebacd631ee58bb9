"""The attention block of the UNet: over the pixels of an image, then over views, then over frames.

Works in parts as `res_block` does. Source: specification 4.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from .attention import AttentionFunction, OneTokenAttention, SelfAttention
from .image_norm import image_norm
from .layers import Blend, FeedForward, add, add_dense, parts, recording, sinusoidal_embedding, to_tokens
from .res_block import Embedding, Grid

# Tokens whose hidden layers stay in a core's cache where the network is narrow, and still outweigh the cost
# of reading the weights anew where it is wide.
_CACHED_TOKENS = 1280


@dataclass(frozen=True)
class BlockContext:
    """What one attention block takes from the conditioning; constant over the denoising steps.

    Args:
        spatial: [B * T, C] output of the spatial cross-attention for each frame's image embedding.
        view: [B * T, C] the same of the view block.
        motion_map, motion_offset: [4, C] and [C], the motion block's cross-attention as an affine map.
        frames: [T, C] embedding of the frame number.
    """

    spatial: Tensor
    view: Tensor
    motion_map: Tensor
    motion_offset: Tensor
    frames: Tensor


class TransformerBlock(nn.Module):
    """Self-attention within groups of tokens, one-token cross-attention, feed-forward; pre-norm."""

    def __init__(
        self,
        width: int,
        head_channels: int,
        context_dim: int,
        *,
        feed_forward_in: bool,
        operations: ModuleType | Any,
        attention: AttentionFunction,
        **kw,
    ) -> None:
        super().__init__()
        kw = {"operations": operations, **kw}
        norm = {key: value for key, value in kw.items() if key != "operations"}
        self.norm_in = operations.LayerNorm(width, **norm) if feed_forward_in else None
        self.ff_in = FeedForward(width, **kw) if feed_forward_in else None
        self.norm1 = operations.LayerNorm(width, **norm)
        self.attn1 = SelfAttention(width, head_channels, attention=attention, **kw)
        # norm2 feeds queries that a single context token makes irrelevant; official files hold it.
        self.norm2 = operations.LayerNorm(width, **norm)
        self.attn2 = OneTokenAttention(width, context_dim, **kw)
        self.norm3 = operations.LayerNorm(width, **norm)
        self.ff = FeedForward(width, **kw)

    def forward(self, x: Tensor, cross: Tensor) -> Tensor:
        """Return the transformed groups.

        Args:
            x: [..., L, C]; overwritten when autograd does not record.
            cross: output of `attn2`, broadcastable to ``x``.
        """
        if self.ff_in is not None and self.norm_in is not None:
            x = add_in_cache(x, 1, self.norm_in, self.ff_in)
        x = add_in_cache(x, x.shape[-2], self.norm1, self.attn1)
        x = add(x, cross)
        return add_in_cache(x, 1, self.norm3, self.ff)


class AttentionBlock(nn.Module):
    """Attention over the pixels of an image, then over views, then over frames, each blended in.

    Without ``mixes_frames`` the frames' blend is held at zero, as training on static objects does.
    """

    def __init__(
        self,
        width: int,
        emb_dim: int,
        head_channels: int,
        context_dim: int,
        motion_context_dim: int,
        view_mixing: str,
        *,
        operations: ModuleType | Any,
        attention: AttentionFunction,
        **kw,
    ) -> None:
        super().__init__()
        self.width = width
        self.motion_context_dim = motion_context_dim
        self.view_mixing = view_mixing
        self.mixes_frames = True

        def block(context: int, feed_forward_in: bool) -> nn.ModuleList:
            made = TransformerBlock(
                width,
                head_channels,
                context,
                feed_forward_in=feed_forward_in,
                operations=operations,
                attention=attention,
                **kw,
            )
            return nn.ModuleList([made])

        def embed(dim: int) -> nn.Sequential:
            inner = operations.Linear(dim, 4 * width, **kw)
            return nn.Sequential(inner, nn.SiLU(), operations.Linear(4 * width, width, **kw))

        self.norm = operations.GroupNorm(32, width, eps=1e-6, **kw)
        self.proj_in = operations.Linear(width, width, **kw)
        self.transformer_blocks = block(context_dim, False)
        self.time_mix_blocks = block(context_dim, True)
        self.motion_blocks = block(motion_context_dim, True)
        self.time_mix_time_embed = embed(emb_dim)
        self.time_mix_motion_embed = embed(width)
        self.time_mixer = Blend(**kw)
        self.time_mixer_motion = Blend(**kw)
        self.proj_out = operations.Linear(width, width, **kw)

    def prepare(self, context: Tensor) -> BlockContext:
        """Return everything of this block that depends only on the image embeddings [B, T, D]."""
        numbers = torch.arange(context.shape[1], device=context.device)
        spatial, view, motion = map(
            _only, (self.transformer_blocks, self.time_mix_blocks, self.motion_blocks)
        )
        motion_map, motion_offset = motion.attn2.affine_map(self.motion_context_dim, context)
        return BlockContext(
            spatial=spatial.attn2(context).flatten(0, 1),
            view=view.attn2(context).flatten(0, 1),
            motion_map=motion_map,
            motion_offset=motion_offset,
            frames=self.time_mix_motion_embed(sinusoidal_embedding(numbers, self.width).to(context.dtype)),
        )

    def forward(
        self, x: Tensor, context: BlockContext, references: Tensor, emb: Embedding, grid: Grid, budget: int
    ) -> Tensor:
        """Return the block's output, [N, C, h, w].

        Args:
            x: [N, C, h, w]; overwritten when autograd does not record.
            context: from `prepare`.
            references: [B, V, S, 4] latents of the reference views at this level.
            emb: embedding of the images.
            grid: B, T, V.
            budget: bytes that the intermediate results of a part may take.
        """
        n, _, height, width = x.shape
        # The widest intermediate result is the feed-forward's hidden layer.
        token_bytes = 8 * self.width * x.element_size()
        pixels = height * width
        tokens = torch.empty((n, pixels, self.width), dtype=x.dtype, device=x.device)
        frame_of_image = torch.arange(n, device=x.device) // grid.views
        for i in parts(n, pixels * token_bytes, budget):
            cross = context.spatial[frame_of_image[i], None]
            tokens[i] = self.transformer_blocks[0](
                self.proj_in(to_tokens(image_norm(self.norm, x[i]))), cross
            )
        tokens = tokens.view(grid.batch, grid.frames, grid.views, pixels, self.width)
        tokens = self._mix_views(
            tokens, context, self.time_mix_time_embed(emb.of_views), budget // token_bytes
        )
        if self.mixes_frames:
            tokens = self._mix_frames(tokens, context, references, budget // token_bytes)
        out = torch.empty_like(x) if recording() else x
        for i in parts(n, pixels * token_bytes, budget):
            images = (
                self.proj_out(tokens.view(n, pixels, -1)[i]).unflatten(1, (height, width)).permute(0, 3, 1, 2)
            )
            if recording():
                out[i] = x[i] + images
            else:
                out[i].add_(images)
        return out

    def _mix_views(self, tokens: Tensor, context: BlockContext, views: Tensor, token_budget: int) -> Tensor:
        """Return ``tokens`` [B, T, V, S, C] with the view block blended in, frame by frame."""
        b, t, v, s, c = tokens.shape
        block = self.time_mix_blocks[0]
        per_view = views.view(b, 1, v, 1, c).expand(b, t, v, 1, c).flatten(0, 1)
        rows = self._view_context_rows(b, t, s, tokens.device)
        before = tokens.flatten(0, 1)
        after = torch.empty_like(before) if recording() else before
        across_views = self.view_mixing == "view"
        group = v * s if self.view_mixing == "joint_3d" else v
        for i in parts(b * t, v * s, token_budget):
            frames, offsets = before[i], per_view[i]
            if across_views:
                frames, offsets = frames.transpose(1, 2), offsets.transpose(1, 2)
            # As released, a group is V neighbouring pixels in raster order (specification 12a).
            mixed = add_dense(frames, offsets)
            mixed = block(mixed.view(len(mixed), -1, group, c), context.view[rows[i]][:, :, None])
            mixed = mixed.view(frames.shape)
            if across_views:
                mixed = mixed.transpose(1, 2)
            self.time_mixer.store(after[i], before[i], mixed)
        return after.view(b, t, v, s, c)

    def _view_context_rows(self, b: int, t: int, s: int, device: torch.device) -> Tensor:
        """Return which rows of the view context each frame uses: [B * T, S] as released, else [B * T, 1]."""
        frame = torch.arange(t, device=device)[:, None]
        if self.view_mixing == "released_3d":
            # The released code pairs group q of frame t with the embedding of frame (q T + t) // S.
            frame = (torch.arange(s, device=device) * t + frame) // s
        return (torch.arange(b, device=device)[:, None, None] * t + frame).flatten(0, 1)

    def _mix_frames(
        self, tokens: Tensor, context: BlockContext, references: Tensor, token_budget: int
    ) -> Tensor:
        """Return ``tokens`` [B, T, V, S, C] with the motion block blended in, some pixels at a time."""
        b, t, v, s, c = tokens.shape
        block = self.motion_blocks[0]
        after = torch.empty_like(tokens) if recording() else tokens
        for k in parts(b, 1, 1):
            for i in parts(s, t * v, token_budget):
                before = tokens[k, :, :, i].permute(0, 2, 3, 1, 4)  # [B, V, S, T, C]
                cross = torch.addmm(
                    context.motion_offset, references[k, :, i].flatten(0, 2), context.motion_map
                )
                mixed = add_dense(before, context.frames)
                mixed = block(mixed.view(-1, t, c), cross[:, None]).view(mixed.shape)
                target = after[k, :, :, i].permute(0, 2, 3, 1, 4)
                self.time_mixer_motion.store(target, before, mixed)
        return after


def add_in_cache(x: Tensor, length: int, norm: nn.Module, layer: nn.Module) -> Tensor:
    """Return x + layer(norm(x)), on a CPU for so few tokens at a time that all stays in the cache.

    Args:
        x: [..., L, C]; overwritten when autograd does not record.
        length: so many tokens in a row depend on each other.
        norm, layer: of tokens [..., L, C].
    """
    if recording() or torch.compiler.is_compiling() or x.device.type != "cpu" or not x.is_contiguous():
        return add(x, layer(norm(x)))
    groups = x.view(-1, length, x.shape[-1])
    for tokens in groups.chunk(math.ceil(len(groups) * length / _CACHED_TOKENS)):
        tokens.add_(layer(norm(tokens)))
    return x


def _only(blocks: nn.ModuleList) -> TransformerBlock:
    """Return the one block of a list that the official keys number."""
    return cast(TransformerBlock, blocks[0])
