"""Layers of the networks: residual and attention blocks, work in parts, and the retry on out-of-memory.

Images are channels-last, so that tokens [..., L, C] are views; what autograd saves is not updated in place.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..files import is_out_of_memory
from .config import UNetConfig

# Smaller parts save next to nothing, because what must exist whole outweighs them.
SMALLEST_CHUNK = 16 * 2**20
# CUDA kernels put the batch on a grid axis that ends at 65,535; half of it also suits the kernels' padding.
MAX_ATTENTION_BATCH = 32_768

log = logging.getLogger(__name__)

# attention(q, k, v, heads) of [G, L, heads * d], as `scaled_dot_product`.
AttentionFunction = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def retry_on_oom(
    work: Callable[[], Tensor],
    shrink: Callable[[], str],
    is_oom: Callable[[BaseException], bool] = is_out_of_memory,
) -> Tensor:
    """Return ``work()``; out of memory, try once more after ``shrink()``, which says what it reduced."""
    try:
        return work()
    except Exception as error:
        if not is_oom(error):
            raise
        reason = str(error).split(". ")[0]
    # Out here, because the exception holds on to the tensors of the failed try.
    empty_device_cache()
    log.warning("Out of memory (%s). Trying once more, %s.", reason, shrink())
    return work()


def empty_device_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    if torch.xpu.is_available():
        torch.xpu.empty_cache()


def parts(total: int, item_bytes: int, budget: int) -> Iterator[slice]:
    """Yield even slices that cover ``range(total)``, as few as ``budget`` bytes allow."""
    # While autograd records there is one: its graph holds all activations anyway.
    most = total if torch.is_grad_enabled() else max(1, min(total, budget // max(1, item_bytes)))
    step = math.ceil(total / math.ceil(total / most))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def reusable(x: Tensor) -> Tensor:
    """Return memory for a result like ``x``: its own, unless autograd records and needs ``x`` later."""
    return torch.empty_like(x) if torch.is_grad_enabled() else x


def sinusoidal_embedding(values: Tensor, dim: int) -> Tensor:
    """Return cosines, then sines of ``values`` [N], [N, dim] float32 (Vaswani et al. 2017, 3.5)."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float()[:, None] * torch.exp(-math.log(10000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def to_tokens(x: Tensor) -> Tensor:
    """Return images [N, C, h, w] as tokens [N, h * w, C] (no copy when ``x`` is channels-last)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class Blend(nn.Module):
    """A learned blend ``a * before + (1 - a) * mixed`` with the scalar ``a = sigmoid(mix_factor)``."""

    def __init__(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> None:
        super().__init__()
        # Eight bits would move the blend by percents and save nothing.
        exact = dtype is None or dtype.itemsize > 1
        self.mix_factor = nn.Parameter(torch.zeros(1, dtype=dtype if exact else torch.float32, device=device))

    def share_of_mixed(self, like: Tensor) -> Tensor:
        """Return 1 - a, [1], in the dtype and on the device of ``like``."""
        return torch.sigmoid(-self.mix_factor.to(like.device, torch.float32)).to(like.dtype)

    def forward(self, before: Tensor, mixed: Tensor) -> Tensor:
        return torch.lerp(before, mixed, self.share_of_mixed(mixed))


class Upsample(nn.Module):
    """Nearest-neighbour doubling of [N, C, h, w], in parts within ``budget`` bytes; a convolution."""

    def __init__(self, width: int, *, operations: Any, **kw) -> None:
        super().__init__()
        self.conv = operations.Conv2d(width, width, 3, padding=1, **kw)

    def forward(self, x: Tensor, budget: int) -> Tensor:
        shape = (x.shape[0], x.shape[1], 2 * x.shape[2], 2 * x.shape[3])
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        # A part's 8 times its input, counted twice: the output and all skips are alive beside it.
        for i in parts(len(x), 16 * x[0].nbytes, budget):
            out[i] = self.conv(F.interpolate(x[i], scale_factor=2.0, mode="nearest"))
        return out


class FeedForward(nn.Module):
    """GEGLU of tokens [..., C]: 4 C values times the exact GELU of as many gates, linearly back to C."""

    def __init__(self, width: int, *, operations: Any, **kw) -> None:
        super().__init__()
        project = nn.Sequential(OrderedDict(proj=operations.Linear(width, 8 * width, **kw)))
        # The official keys count a dropout layer.
        self.net = nn.Sequential(project, nn.Identity(), operations.Linear(4 * width, width, **kw))

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.net[0](x).chunk(2, dim=-1)
        return self.net[2](F.gelu(gate).mul_(value))


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v for every group and head; all are [G, L, heads * d]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class _Projections(nn.Module):
    """The linear layers of attention to tokens of width ``context_dim``."""

    def __init__(self, width: int, context_dim: int, *, operations: Any, **kw) -> None:
        super().__init__()
        self.to_q = operations.Linear(width, width, bias=False, **kw)
        self.to_k = operations.Linear(context_dim, width, bias=False, **kw)
        self.to_v = operations.Linear(context_dim, width, bias=False, **kw)
        self.to_out = nn.Sequential(operations.Linear(width, width, **kw))


class SelfAttention(_Projections):
    """Multi-head attention of every group of tokens [..., L, C] to itself."""

    def __init__(self, width: int, head_channels: int, *, attention: AttentionFunction, **kw) -> None:
        super().__init__(width, width, **kw)
        self.heads = width // head_channels
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        groups = x.flatten(0, -3)
        projected = (self.to_q(groups), self.to_k(groups), self.to_v(groups))
        batches = zip(*(tokens.split(MAX_ATTENTION_BATCH) for tokens in projected), strict=True)
        mixed = [self.attention(q, k, v, self.heads) for q, k, v in batches]
        return self.to_out(mixed[0] if len(mixed) == 1 else torch.cat(mixed)).view(x.shape)


class OneTokenAttention(_Projections):
    """Cross-attention to one token: softmax is 1, so ``to_q`` and ``to_k`` (official keys) change nothing."""

    def forward(self, context: Tensor) -> Tensor:
        """Return what every query that sees ``context`` [..., D] receives, [..., C]."""
        return self.to_out(self.to_v(context))

    def affine_map(self, context_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return this layer as a matrix [D, C] and an offset [C]; probed, as layers may patch weights."""
        axes = torch.eye(context_dim, device=like.device).to(like.dtype)
        zero_then_axes = torch.cat([torch.zeros_like(axes[:1]), axes])
        rows = self(zero_then_axes)
        return rows[1:] - rows[0], rows[0]


class Grid(NamedTuple):
    """How many batch elements, frames and views the images of one pass are."""

    batch: int
    frames: int
    views: int


class Embedding(NamedTuple):
    """The summed timestep and camera embedding: a row per image or, when frames share it, per view."""

    rows: Tensor  # [R, D]
    row_of_image: Tensor  # [N]
    of_views: Tensor  # [B * V, D] the rows of frame 0, which drive the view embedding


def part_widths(width_in: int, width_out: int, joined: bool) -> int:
    """Return the channels per pixel that count in a residual block's part; ``joined``: it copies a skip."""
    return 2 * (width_in + width_out) if joined else 4 * width_out


class TemporalConvs(nn.Module):
    """The convolutions over the whole (t v) sequence; group norms pool over all its images and pixels."""

    def __init__(self, width: int, emb_dim: int, *, operations: Any, **kw) -> None:
        super().__init__()
        norms = [operations.GroupNorm(32, width, **kw) for _ in range(2)]
        convs = [operations.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0), **kw) for _ in range(2)]
        self.in_layers = nn.Sequential(norms[0], nn.SiLU(inplace=True), convs[0])
        self.emb_layers = nn.Sequential(nn.SiLU(), operations.Linear(emb_dim, width, **kw))
        # The official keys count a dropout layer, here and below.
        self.out_layers = nn.Sequential(norms[1], nn.SiLU(inplace=True), nn.Identity(), convs[1])

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return the residual branch of sequences ``x`` [B, C, L, h, w] with embeddings ``emb`` [B, L, D]."""
        h = self.in_layers(x).add_(self.emb_layers(emb).transpose(1, 2)[..., None, None])
        # Layer by layer, so that what was normalised is no longer in memory during the convolution.
        for layer in self.out_layers:
            h = layer(h)
        return h


class ResBlock(nn.Module):
    """Residual block: convolutions within each image, then along the (t v) sequence, blended."""

    def __init__(self, width_in: int, width_out: int, emb_dim: int, *, operations: Any, **kw) -> None:
        super().__init__()
        self.width_in, self.width_out = widths = width_in, width_out
        norms = [operations.GroupNorm(32, width, **kw) for width in widths]
        convs = [operations.Conv2d(width, width_out, 3, padding=1, **kw) for width in widths]
        self.in_layers = nn.Sequential(norms[0], nn.SiLU(inplace=True), convs[0])
        self.emb_layers = nn.Sequential(nn.SiLU(), operations.Linear(emb_dim, width_out, **kw))
        self.out_layers = nn.Sequential(norms[1], nn.SiLU(inplace=True), nn.Identity(), convs[1])
        same = width_in == width_out
        self.skip_connection = nn.Identity() if same else operations.Conv2d(width_in, width_out, 1, **kw)
        self.time_mix_blocks = TemporalConvs(width_out, emb_dim, operations=operations, **kw)
        self.time_mixer = Blend(**kw)

    def forward(self, x: Tensor, skip: Tensor | None, emb: Embedding, grid: Grid, budget: int) -> Tensor:
        """Return [N, C_out, h, w]; given a ``skip`` [N, C', h, w] and no autograd, ``x`` is overwritten."""
        n, _, height, width = x.shape
        out = self._output_memory(x, reuse=skip is not None)
        widths = part_widths(self.width_in, self.width_out, joined=skip is not None)
        projected = self.emb_layers(emb.rows)
        for i in parts(n, widths * height * width * x.element_size(), budget):
            # With a skip a copy, as the output may take the place of ``x``.
            images = x[i] if skip is None else torch.cat([x[i], skip[i]], dim=1)
            out[i] = self.within_images(images, projected[emb.row_of_image[i]])
        return self._along_sequence(out, emb, grid)

    def _output_memory(self, x: Tensor, reuse: bool) -> Tensor:
        """Return channels-last memory for the output; ``reuse``: in place of what was read of ``x``."""
        shape = (len(x), *x.shape[2:], self.width_out)
        fits = self.width_out <= x.shape[1] and x.is_contiguous(memory_format=torch.channels_last)
        if reuse and fits and not torch.is_grad_enabled():
            memory = x.permute(0, 2, 3, 1).flatten()[: math.prod(shape)].view(shape)
        else:
            memory = x.new_empty(shape)
        return memory.permute(0, 3, 1, 2)

    def within_images(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return [N, C_out, h, w] of images ``x`` [N, C, h, w] and projected embeddings [N, C_out]."""
        h = self.in_layers(x).add_(emb[:, :, None, None])
        return self.out_layers(h).add_(self.skip_connection(x))

    def _along_sequence(self, x: Tensor, emb: Embedding, grid: Grid) -> Tensor:
        share = self.time_mixer.share_of_mixed(x)
        rows = emb.row_of_image.view(grid.batch, -1)
        out = reusable(x)
        # [B, C, L, h, w]; a slice with its batch axis is channels-last to the convolutions, without a copy.
        sequences, targets = (y.unflatten(0, (grid.batch, -1)).transpose(1, 2) for y in (x, out))
        for b in parts(grid.batch, 1, 1):
            branch = self.time_mix_blocks(sequences[b], emb.rows[rows[b]])
            # a * x + (1 - a) * (x + branch)
            targets[b] = torch.addcmul(sequences[b], branch, share)
            del branch  # not kept while the next sequence is worked on
        return out


@dataclass(frozen=True)
class BlockContext:
    """What one attention block takes from the conditioning; constant over the denoising steps."""

    spatial: Tensor  # [B * T, C] output of the spatial cross-attention for each frame's image embedding
    view: Tensor  # [B * T, C] the same of the view block
    motion_map: Tensor  # [4, C] the motion block's cross-attention as an affine map, and
    motion_offset: Tensor  # [C] its offset
    frames: Tensor  # [T, C] embedding of the frame number


class TransformerBlock(nn.Module):
    """Self-attention within groups of tokens, one-token cross-attention, feed-forward; pre-norm."""

    def __init__(
        self,
        width: int,
        context_dim: int,
        feed_forward_in: bool,
        *,
        head_channels: int,
        attention: AttentionFunction,
        operations: Any,
        **plain,
    ) -> None:
        super().__init__()
        kw = {"operations": operations, **plain}
        self.norm_in = operations.LayerNorm(width, **plain) if feed_forward_in else None
        self.ff_in = FeedForward(width, **kw) if feed_forward_in else None
        self.norm1 = operations.LayerNorm(width, **plain)
        self.attn1 = SelfAttention(width, head_channels, attention=attention, **kw)
        # norm2 feeds queries that a single context token makes irrelevant; official files hold it.
        self.norm2 = operations.LayerNorm(width, **plain)
        self.attn2 = OneTokenAttention(width, context_dim, **kw)
        self.norm3 = operations.LayerNorm(width, **plain)
        self.ff = FeedForward(width, **kw)

    def forward(self, x: Tensor, cross: Tensor) -> Tensor:
        """Return groups of tokens ``x`` [..., L, C] transformed; ``cross`` is what `attn2` gives for them."""
        if self.ff_in is not None and self.norm_in is not None:
            x = self.ff_in(self.norm_in(x)).add_(x)
        x = self.attn1(self.norm1(x)).add_(x).add_(cross)
        return self.ff(self.norm3(x)).add_(x)


class AttentionBlock(nn.Module):
    """Attention over the pixels of an image, then over views, then over frames, each blended in.

    Source: Yao et al. 2025 (SV4D 2.0), section 3; docs/method.md, View attention.
    """

    def __init__(
        self, width: int, config: UNetConfig, *, attention: AttentionFunction, operations: Any, **plain
    ) -> None:
        super().__init__()
        self.width = width
        self.config = config
        self.mixes_frames = True  # False: the blend stays at zero, as for training on static objects

        # Lists of one, as the official keys number them.
        def transformer(context_dim: int, feed_forward_in: bool) -> nn.ModuleList:
            kw = {"head_channels": config.head_channels, "attention": attention, "operations": operations}
            return nn.ModuleList([TransformerBlock(width, context_dim, feed_forward_in, **kw, **plain)])

        def embed(dim: int) -> nn.Sequential:
            inner = operations.Linear(dim, 4 * width, **plain)
            return nn.Sequential(inner, nn.SiLU(), operations.Linear(4 * width, width, **plain))

        self.norm = operations.GroupNorm(32, width, eps=1e-6, **plain)
        self.proj_in = operations.Linear(width, width, **plain)
        self.transformer_blocks = transformer(config.context_dim, False)
        self.time_mix_blocks = transformer(config.context_dim, True)
        self.motion_blocks = transformer(config.latent_channels, True)
        self.time_mix_time_embed = embed(4 * config.base)
        self.time_mix_motion_embed = embed(width)
        self.time_mixer = Blend(**plain)
        self.time_mixer_motion = Blend(**plain)
        self.proj_out = operations.Linear(width, width, **plain)

    def prepare(self, context: Tensor) -> BlockContext:
        """Return everything of this block that depends only on the image embeddings [B, T, D]."""
        spatial, view, motion = (
            cast(TransformerBlock, blocks[0]).attn2
            for blocks in (self.transformer_blocks, self.time_mix_blocks, self.motion_blocks)
        )
        motion_map, motion_offset = motion.affine_map(self.config.latent_channels, context)
        numbers = torch.arange(context.shape[1], device=context.device)
        return BlockContext(
            spatial=spatial(context).flatten(0, 1),
            view=view(context).flatten(0, 1),
            motion_map=motion_map,
            motion_offset=motion_offset,
            frames=self.time_mix_motion_embed(sinusoidal_embedding(numbers, self.width).to(context.dtype)),
        )

    def forward(
        self, x: Tensor, context: BlockContext, references: Tensor, emb: Embedding, grid: Grid, budget: int
    ) -> Tensor:
        """Return [N, C, h, w]; without autograd ``x`` is overwritten. ``references`` are [B, V, S, 4]."""
        n, _, height, width = x.shape
        pixels = height * width
        # The widest intermediate result is the feed-forward's hidden layer.
        token_bytes = 8 * self.width * x.element_size()
        tokens = x.new_empty(n, pixels, self.width)
        frame_of_image = torch.arange(n, device=x.device) // grid.views
        for i in parts(n, pixels * token_bytes, budget):
            cross = context.spatial[frame_of_image[i], None]
            tokens[i] = self.transformer_blocks[0](self.proj_in(to_tokens(self.norm(x[i]))), cross)
        tokens, views = tokens.view(*grid, pixels, self.width), self.time_mix_time_embed(emb.of_views)
        tokens = self._mix_views(tokens, context, views, budget // token_bytes)
        if self.mixes_frames:
            tokens = self._mix_frames(tokens, context, references, budget // token_bytes)
        tokens, out = tokens.view(n, pixels, -1), reusable(x)
        for i in parts(n, pixels * token_bytes, budget):
            out[i] = x[i] + self.proj_out(tokens[i]).unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return out

    def _mix_views(self, tokens: Tensor, context: BlockContext, views: Tensor, token_budget: int) -> Tensor:
        """Return ``tokens`` [B, T, V, S, C] with the view block blended in, frame by frame."""
        b, t, v, s, c = tokens.shape
        per_view = views.view(b, 1, v, 1, c).expand(b, t, v, 1, c).flatten(0, 1)
        rows = self._view_context_rows(b, t, s, tokens.device)
        before = tokens.flatten(0, 1)
        after = reusable(before)
        across_views = self.config.view_mixing == "view"
        # As released, a group is V neighbouring pixels in raster order (`VIEW_MIXINGS`).
        group = v * s if self.config.view_mixing == "joint_3d" else v
        for i in parts(b * t, v * s, token_budget):
            mixed = before[i] + per_view[i]
            if across_views:
                mixed = mixed.transpose(1, 2)
            groups = mixed.reshape(len(mixed), -1, group, c)
            groups = self.time_mix_blocks[0](groups, context.view[rows[i]][:, :, None])
            mixed = groups.view(mixed.shape)
            after[i] = self.time_mixer(before[i], mixed.transpose(1, 2) if across_views else mixed)
        return after.view(b, t, v, s, c)

    def _view_context_rows(self, b: int, t: int, s: int, device: torch.device) -> Tensor:
        """Return which rows of the view context a frame uses: [B * T, S] as released, else [B * T, 1]."""
        frame = torch.arange(t, device=device)[:, None]
        if self.config.view_mixing == "released_3d":
            # The released code pairs group q of frame t with the embedding of frame (q T + t) // S.
            frame = (torch.arange(s, device=device) * t + frame) // s
        return (torch.arange(b, device=device)[:, None, None] * t + frame).flatten(0, 1)

    def _mix_frames(
        self, tokens: Tensor, context: BlockContext, references: Tensor, token_budget: int
    ) -> Tensor:
        """Return ``tokens`` [B, T, V, S, C] with the motion block blended in, some pixels at a time."""
        b, t, v, s, c = tokens.shape
        out = reusable(tokens)
        # [B, V, S, T, C]
        before, after = (x.permute(0, 2, 3, 1, 4) for x in (tokens, out))
        for k in parts(b, 1, 1):
            for i in parts(s, t * v, token_budget):
                seen = references[k, :, i].flatten(0, 2)
                cross = torch.addmm(context.motion_offset, seen, context.motion_map)
                mixed = before[k, :, i] + context.frames
                groups = self.motion_blocks[0](mixed.reshape(-1, t, c), cross[:, None])
                after[k, :, i] = self.time_mixer_motion(before[k, :, i], groups.view(mixed.shape))
        return out
