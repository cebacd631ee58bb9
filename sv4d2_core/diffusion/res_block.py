"""The residual block of the UNet: convolutions within each image, then along the sequence of images.

Images are ordered (b t v), v fastest: B batch elements (the halves of guidance), T frames, V views. Blocks
work on parts of the images, frames or pixels, so that beside the tensors that must exist whole only a part's
intermediate results are alive; every part is exact because no operation crosses its border.

Source: specification 4.3.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .image_norm import image_norm
from .layers import Blend, add, parts, recording, silu, store_sum


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
