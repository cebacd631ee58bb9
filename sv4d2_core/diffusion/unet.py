"""The SV4D 2.0 UNet (Yao et al. 2025): latents of T frames in V views; names give the official keys."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .blocks import (
    SMALLEST_CHUNK,
    AttentionBlock,
    AttentionFunction,
    BlockContext,
    Embedding,
    Grid,
    ResBlock,
    Upsample,
    scaled_dot_product,
    sinusoidal_embedding,
    to_tokens,
)
from .config import UNetConfig

# Parts of about this many tokens of the first level suit a CPU's cache; a GPU wants enough work per kernel.
CPU_TOKENS = 8192
_GPU_BUDGET = 512 * 2**20


@dataclass(frozen=True)
class PreparedWindow:
    """The conditioning of one window in the form the UNet uses at every step; from `UNet.prepare`."""

    grid: Grid
    blocks: tuple[BlockContext, ...]  # one per attention block, in the order of execution
    references: dict[tuple[int, int], Tensor]  # [B, V, S, 4] by latent height and width of each level


@dataclass
class _Pass:
    """The state of one forward pass that every stage reads."""

    window: PreparedWindow
    emb: Embedding
    budget: int
    before_layer: Callable[[], None]
    loaded: Callable[[nn.Module], AbstractContextManager]
    next_block: int = 0


class Stage(nn.ModuleList):
    """A numbered group of layers of the official layout, run in order."""

    def forward(self, x: Tensor, skip: list[Tensor], state: _Pass) -> Tensor:
        """Return the last layer's output; ``skip``, if any, joins the first layer's input, then is freed."""
        for layer in self:
            state.before_layer()
            with state.loaded(layer):
                if isinstance(layer, ResBlock):
                    x = layer(x, skip[0] if skip else None, state.emb, state.window.grid, state.budget)
                elif isinstance(layer, AttentionBlock):
                    references = state.window.references[x.shape[-2], x.shape[-1]]
                    context = state.window.blocks[state.next_block]
                    state.next_block += 1
                    x = layer(x, context, references, state.emb, state.window.grid, state.budget)
                else:
                    x = layer(x, state.budget) if isinstance(layer, Upsample) else layer(x)
            skip.clear()
        return x


class UNet(nn.Module):
    """The network; ``operations`` and ``attention`` let a host supply its own layers and kernels."""

    def __init__(
        self,
        config: UNetConfig,
        *,
        operations: Any = nn,
        attention: AttentionFunction = scaled_dot_product,
        **plain: Any,  # dtype and device of the weights
    ) -> None:
        super().__init__()
        self.config = config
        self.chunk_bytes: int | None = None  # bound of a part's intermediate results; None: by device
        self.before_layer: Callable[[], None] = lambda: None  # may raise to cancel a pass
        # Each layer runs within it; it may bring the layer's weights.
        self.loaded: Callable[[nn.Module], AbstractContextManager] = lambda _layer: nullcontext()
        self.recomputes = False  # gradient checkpointing: much less memory for a third more time
        kw = {"operations": operations, **plain}
        emb_dim = 4 * config.base

        def mlp(width: int) -> nn.Sequential:
            first = operations.Linear(width, emb_dim, **plain)
            return nn.Sequential(first, nn.SiLU(), operations.Linear(emb_dim, emb_dim, **plain))

        def attend(width: int) -> AttentionBlock:
            return AttentionBlock(width, config, attention=attention, **kw)

        self.time_embed = mlp(config.base)
        self.label_emb = nn.Sequential(mlp(config.vector_dim))

        width = config.base
        first = operations.Conv2d(2 * config.latent_channels, width, 3, padding=1, **plain)
        stages, skips = [Stage([first])], [width]
        for level, multiplier in enumerate(config.multipliers):
            for _ in range(config.res_blocks):
                layers: list[nn.Module] = [ResBlock(width, config.base * multiplier, emb_dim, **kw)]
                width = config.base * multiplier
                if level < config.attention_levels:
                    layers.append(attend(width))
                stages.append(Stage(layers))
                skips.append(width)
            if level < len(config.multipliers) - 1:
                halve = operations.Conv2d(width, width, 3, stride=2, padding=1, **plain)
                stages.append(Stage([nn.Sequential(OrderedDict(op=halve))]))
                skips.append(width)
        self.input_blocks = nn.ModuleList(stages)
        self.middle_block = Stage(
            [ResBlock(width, width, emb_dim, **kw), attend(width), ResBlock(width, width, emb_dim, **kw)]
        )
        stages = []
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            for index in range(config.res_blocks + 1):
                layers = [ResBlock(width + skips.pop(), config.base * multiplier, emb_dim, **kw)]
                width = config.base * multiplier
                if level < config.attention_levels:
                    layers.append(attend(width))
                if level > 0 and index == config.res_blocks:
                    layers.append(Upsample(width, **kw))
                stages.append(Stage(layers))
        self.output_blocks = nn.ModuleList(stages)
        self.out = nn.Sequential(
            operations.GroupNorm(32, width, **plain),
            nn.SiLU(inplace=True),
            operations.Conv2d(width, config.latent_channels, 3, padding=1, **plain),
        )

    def prepare(self, context: Tensor, cond_view: Tensor) -> PreparedWindow:
        """Return a window's conditioning: embeddings [B, T, D], reference latents [B * V, 4, h, w] or 0."""
        b, t, _ = context.shape
        views = cond_view.shape[0] // b
        references = {}
        height, width = cond_view.shape[-2:]
        for _ in self.config.multipliers:
            level = F.interpolate(cond_view, (height, width), mode="bilinear", align_corners=False)
            references[height, width] = to_tokens(level).unflatten(0, (b, views)).contiguous()
            height, width = height // 2, width // 2
        blocks = []
        for block in self._attention_blocks():
            with self.loaded(block):
                blocks.append(block.prepare(context))
        return PreparedWindow(Grid(b, t, views), tuple(blocks), references)

    def set_view_mixing(self, view_mixing: str) -> None:
        """Change how the view blocks group tokens; the same weights fit every kind (`VIEW_MIXINGS`)."""
        if view_mixing != self.config.view_mixing:
            self.config = replace(self.config, view_mixing=view_mixing)
            for block in self._attention_blocks():
                block.config = self.config

    def set_frame_mixing(self, mixes_frames: bool) -> None:
        """Let the frames attend to each other, or hold the blend of the motion blocks at zero."""
        for block in self._attention_blocks():
            block.mixes_frames = mixes_frames

    def shrink_parts(self) -> str:
        """Work in the smallest parts from now on, and say so."""
        self.chunk_bytes = SMALLEST_CHUNK
        return "in the smallest parts"

    def _attention_blocks(self) -> Iterator[AttentionBlock]:
        return (m for m in self.modules() if isinstance(m, AttentionBlock))

    def forward(
        self,
        x: Tensor,  # [N, 8, h, w], N = B T V ordered (b t v): scaled noisy latents, then frames'
        timesteps: Tensor,  # [R] noise conditioning
        y: Tensor,  # [R, A] camera vectors; R = N, or B V when all frames share them and the timesteps
        window: PreparedWindow,
    ) -> Tensor:
        """Return the network's prediction, [N, 4, h, w]."""
        n, multiple = math.prod(window.grid), self.config.downsampling
        channels = 2 * self.config.latent_channels
        if x.shape[:2] != (n, channels) or any(side % multiple for side in x.shape[2:]):
            raise ValueError(
                f"Expected x [{n}, {channels}, h, w] for {window.grid}, h and w divisible by {multiple}; got "
                f"{list(x.shape)}."
            )
        emb = self._embed(timesteps, y.to(x.dtype), window.grid, x.dtype)
        budget = self.part_bytes(x.device, x.element_size())
        state = _Pass(window, emb, budget, self.before_layer, self.loaded)
        x = x.contiguous(memory_format=torch.channels_last)
        skips = []
        for stage in self.input_blocks:
            x = self._run(stage, x, [], state)
            skips.append(x)
        x = self._run(self.middle_block, x, [], state)
        for stage in self.output_blocks:
            x = self._run(stage, x, [skips.pop()], state)
        return self.out(x)

    def _run(self, stage: nn.Module, x: Tensor, skip: list[Tensor], state: _Pass) -> Tensor:
        if not (self.recomputes and torch.is_grad_enabled()):
            return stage(x, skip, state)
        first_block = state.next_block

        def run(x: Tensor, *skip: Tensor) -> Tensor:
            state.next_block = first_block
            return stage(x, list(skip), state)

        return checkpoint(run, x, *skip, use_reentrant=False)

    def part_bytes(self, device: torch.device, itemsize: int) -> int:
        """Return the bound for a part's intermediate results."""
        if self.chunk_bytes is not None:
            return self.chunk_bytes
        return CPU_TOKENS * 8 * self.config.base * itemsize if device.type == "cpu" else _GPU_BUDGET

    def _embed(self, timesteps: Tensor, y: Tensor, grid: Grid, dtype: torch.dtype) -> Embedding:
        b, t, v = grid
        times = sinusoidal_embedding(timesteps, self.config.base).to(dtype)
        rows = self.time_embed(times) + self.label_emb(y)
        if len(rows) == b * v:
            row_of_image = torch.arange(b * v, device=rows.device).view(b, 1, v).expand(b, t, v).flatten()
            return Embedding(rows, row_of_image, rows)
        of_views = rows.unflatten(0, (b, t, v))[:, 0].flatten(0, 1)
        return Embedding(rows, torch.arange(b * t * v, device=rows.device), of_views)
