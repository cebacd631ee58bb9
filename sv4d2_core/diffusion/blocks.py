"""Small pieces of the networks: embeddings, feed-forward, learned blends, changes of size, work in parts."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .fused import fuses, geglu, linear
from .image_norm import image_norm


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


class Grid(NamedTuple):
    """How many batch elements, frames and views the images of one pass are."""

    batch: int
    frames: int
    views: int


class Embedding(NamedTuple):
    """The summed timestep and camera embedding.

    Args:
        rows: [R, D], one row per image or, when it is the same for all frames, per batch element and view.
        row_of_image: [N] the row of each image.
        of_views: [B * V, D] the rows of frame 0, which drive the view embedding.
    """

    rows: Tensor
    row_of_image: Tensor
    of_views: Tensor


def part_widths(width_in: int, width_out: int, joined: bool) -> int:
    """Return how many channels a residual block counts for each pixel when it divides images into parts.

    ``joined``: its input is put together with a skip, in memory of the part's own, and normalised.
    """
    return 2 * (width_in + width_out) if joined else 4 * width_out


class TemporalConvs(nn.Module):
    """The convolutions over the whole (t v) sequence; group norms pool over all its images and pixels."""

    def __init__(self, width: int, emb_dim: int, *, operations: ModuleType | Any, **kw) -> None:
        super().__init__()

        def conv() -> nn.Module:
            return operations.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0), **kw)

        self.in_layers = nn.ModuleList([operations.GroupNorm(32, width, **kw), nn.SiLU(), conv()])
        self.emb_layers = nn.Sequential(nn.SiLU(), operations.Linear(emb_dim, width, **kw))
        self.out_layers = nn.ModuleList(
            [operations.GroupNorm(32, width, **kw), nn.SiLU(), nn.Identity(), conv()]
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return the residual branch of sequences ``x`` [B, C, L, h, w] with embeddings ``emb`` [B, L, D]."""
        h = self.in_layers[2](silu(self.in_layers[0](x)))
        h = add(h, self.emb_layers(emb).transpose(1, 2)[..., None, None])
        # A statement of its own, after which what was normalised is no longer in memory.
        h = silu(self.out_layers[0](h))
        return self.out_layers[3](h)


class ResBlock(nn.Module):
    """Residual block: convolutions within each image, then along the (t v) sequence, blended."""

    def __init__(
        self, width_in: int, width_out: int, emb_dim: int, *, operations: ModuleType | Any, **kw
    ) -> None:
        super().__init__()
        ops = operations
        self.width_in = width_in
        self.width_out = width_out
        self.in_layers = nn.ModuleList(
            [
                ops.GroupNorm(32, width_in, **kw),
                nn.SiLU(),
                ops.Conv2d(width_in, width_out, 3, padding=1, **kw),
            ]
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), ops.Linear(emb_dim, width_out, **kw))
        self.out_layers = nn.ModuleList(
            [
                ops.GroupNorm(32, width_out, **kw),
                nn.SiLU(),
                nn.Identity(),
                ops.Conv2d(width_out, width_out, 3, padding=1, **kw),
            ]
        )
        same = width_in == width_out
        self.skip_connection = nn.Identity() if same else ops.Conv2d(width_in, width_out, 1, **kw)
        self.time_mix_blocks = TemporalConvs(width_out, emb_dim, operations=ops, **kw)
        self.time_mixer = Blend(**kw)

    def forward(self, x: Tensor, skip: Tensor | None, emb: Embedding, grid: Grid, budget: int) -> Tensor:
        """Return the block's output, [N, C_out, h, w].

        Args:
            x: [N, C, h, w]; overwritten when there is a skip and autograd does not record.
            skip: [N, C', h, w] further channels from the way down, or None.
            emb: embedding of the images.
            grid: B, T, V.
            budget: bytes that the intermediate results of a part may take.
        """
        n, _, height, width = x.shape
        out = self._output_for(x, reuse=skip is not None and not recording())
        widths = part_widths(self.width_in, self.width_out, joined=skip is not None)
        image_bytes = widths * height * width * x.element_size()
        projected = self.emb_layers(emb.rows)
        for i in parts(n, image_bytes, budget):
            self._within_images(_joined(x, skip, i), projected[emb.row_of_image[i]], out[i])
        return self._along_sequence(out, emb, grid)

    def _output_for(self, x: Tensor, reuse: bool) -> Tensor:
        """Return memory for the output, [N, C_out, h, w] channels-last; ``reuse``: that of ``x``.

        Part after part, the output takes the place of images that were read before.
        """
        shape = (len(x), *x.shape[2:], self.width_out)
        if reuse and self.width_out <= x.shape[1] and x.is_contiguous(memory_format=torch.channels_last):
            memory = x.permute(0, 2, 3, 1).flatten()[: math.prod(shape)].view(shape)
        else:
            memory = torch.empty(shape, dtype=x.dtype, device=x.device)
        return memory.permute(0, 3, 1, 2)

    def _within_images(self, x: Tensor, emb: Tensor, out: Tensor) -> None:
        h = self.in_layers[2](silu(image_norm(self.in_layers[0], x)))
        h = add(h, emb[:, :, None, None])
        h = silu(image_norm(self.out_layers[0], h))
        h = self.out_layers[3](h)
        store_sum(out, h, self.skip_connection(x))

    def _along_sequence(self, x: Tensor, emb: Embedding, grid: Grid) -> Tensor:
        share = self.time_mixer.share_of_mixed(x)
        # [B, C, L, h, w]; a slice with its batch axis is channels-last to the convolutions, without a copy.
        sequences = x.unflatten(0, (grid.batch, -1)).transpose(1, 2)
        rows = emb.row_of_image.view(grid.batch, -1)
        out = torch.empty_like(x) if recording() else x
        targets = out.unflatten(0, (grid.batch, -1)).transpose(1, 2)
        for b in parts(grid.batch, 1, 1):
            branch = self.time_mix_blocks(sequences[b], emb.rows[rows[b]])
            # a * x + (1 - a) * (x + branch)
            if recording():
                targets[b] = torch.addcmul(sequences[b], branch, share)
            else:
                targets[b].addcmul_(branch, share)
            # Not kept while the next sequence is worked on.
            del branch
        return out


def _joined(x: Tensor, skip: Tensor | None, part: slice) -> Tensor:
    """Return some images with the channels of both; a copy, as the output may take the place of ``x``."""
    return x[part] if skip is None else torch.cat([x[part], skip[part]], dim=1)


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


# Smaller parts save next to nothing, because what must exist whole outweighs them.
SMALLEST_CHUNK = 16 * 2**20

# What allocators say whose errors have no class of their own: a CPU's, Apple's, Intel's, cuBLAS and cuDNN.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
# cudaErrorMemoryAllocation
_CUDA_OUT_OF_MEMORY = 2

log = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, the computer's or any device's."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    accelerator = getattr(torch, "AcceleratorError", None)
    if accelerator is not None and isinstance(error, accelerator):
        if getattr(error, "error_code", None) == _CUDA_OUT_OF_MEMORY:
            return True
    return any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def with_second_try(
    work: Callable[[], Tensor],
    shrink: Callable[[], str],
    is_oom: Callable[[BaseException], bool] = is_out_of_memory,
) -> Tensor:
    """Return the result of ``work``, done a second time after ``shrink`` when memory runs out.

    Args:
        work: may be called twice and gives the same result.
        shrink: makes the next call take less memory and says how it works then.
        is_oom: recognises the errors that are worth a second try.

    Raises:
        RuntimeError: the second time too. Whoever knows the user's settings names those that help.
    """
    try:
        return work()
    except Exception as error:
        if not is_oom(error):
            raise
        reason = str(error).split(". ")[0]
    # Out here, because the exception holds on to the tensors of the failed try.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.warning("Out of memory (%s). Trying once more, %s.", reason, shrink())
    return work()
