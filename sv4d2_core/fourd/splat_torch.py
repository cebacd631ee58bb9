"""Front-to-back compositing of tiles in plain PyTorch, forward and backward, for any device and type.

The lists are worked on in slabs of bounded size, and the backward pass computes each slab again: memory does
not grow with the lists. Tiles that have become opaque are done. The gradient is written out, since an
automatic one keeps every step of every slab. Source: Kerbl et al. 2023, section 4 and appendix C.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .splat_projection import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE
from .splat_tiles import TILE, TileLists

# Their product times the pixels of a tile is the size of a temporary tensor; it should fit into a cache.
TILES_AT_ONCE = 64
PLACES_AT_ONCE = 32


def composite_torch(splats: Tensor, lists: TileLists) -> Tensor:
    """Return red, green, blue and depth times weight, and the weight, summed front to back.

    Args:
        splats: [M, 10] as in `Projected.splats`.
        lists: the Gaussians of every tile.

    Returns:
        [size, size, 5]; the last channel is alpha. Differentiable once with respect to ``splats``.
    """
    # One more row, of opacity 0, fills short lists.
    padded = torch.cat([splats, splats.new_zeros(1, splats.shape[1])])
    tiles: Tensor = _Composite.apply(padded, lists)  # pyright: ignore[reportAssignmentType]
    across, size = lists.tiles_across, lists.size
    grid = tiles.view(across, across, TILE, TILE, 5).transpose(1, 2)
    return grid.reshape(across * TILE, across * TILE, 5)[:size, :size]


class _Slab(NamedTuple):
    """The next K places in the lists of C tiles of P pixels, and what the pixels see of them."""

    tiles: Tensor  # [C] numbers of the tiles
    rows: Tensor  # [C, K] rows of the padded splats
    dx: Tensor  # [C, 1, TILE, K] pixel centre minus mean
    dy: Tensor  # [C, TILE, 1, K]
    alpha: Tensor  # [C, P, K], 0 where the Gaussian does not count
    weight: Tensor  # [C, P, K] alpha times the light that is left
    values: Tensor  # [C, K, 5] red, green, blue, depth, 1


def _slabs(splats: Tensor, lists: TileLists) -> Iterator[_Slab]:
    """Yield all lists in slabs, front to back for each tile; tiles that have no light left drop out."""
    lengths, order = torch.sort(lists.starts.diff(), descending=True)
    for tiles in order[: int((lengths > 0).sum())].split(TILES_AT_ONCE):
        light = splats.new_ones(len(tiles), TILE * TILE, 1)
        first, stop = lists.starts[tiles], lists.starts[tiles + 1]
        while len(tiles):
            at = first[:, None] + torch.arange(PLACES_AT_ONCE, device=tiles.device)
            rows = lists.splats[at.clamp(max=len(lists.splats) - 1)]
            rows = torch.where(at < stop[:, None], rows, len(splats) - 1)
            slab, light = _blend(splats, tiles, rows, lists.tiles_across, light)
            yield slab
            first = first + PLACES_AT_ONCE
            go_on = (first < stop) & (light >= MIN_TRANSMITTANCE).any(1).squeeze(-1)
            tiles, first, stop, light = tiles[go_on], first[go_on], stop[go_on], light[go_on]


def _blend(splats: Tensor, tiles: Tensor, rows: Tensor, across: int, light: Tensor) -> tuple[_Slab, Tensor]:
    """Return the weights of a slab's Gaussians, and what is left of the light [C, P, 1] behind them."""
    pixel = torch.arange(TILE, device=splats.device).to(splats) + 0.5
    left, top = tiles % across * TILE, tiles // across * TILE
    places = splats[rows]
    mean_x, mean_y, p, h, r, opacity = (column[:, None, None] for column in places[..., :6].unbind(-1))
    dx = pixel[:, None] + left[:, None, None, None] - mean_x
    dy = pixel[:, None, None] + top[:, None, None, None] - mean_y
    exponent = torch.addcmul(opacity.log(), r * dy, r * dy, value=-0.5)
    u = p * dx + h * dy
    alpha = torch.addcmul(exponent, u, u, value=-0.5).flatten(1, 2).exp_().clamp_(max=MAX_ALPHA)
    alpha = torch.threshold_(alpha, MIN_ALPHA, 0)
    passed = 1 - alpha
    left_behind = passed.cumprod(-1).mul_(light)
    light = left_behind[..., -1:].clone()
    alpha.masked_fill_(left_behind < MIN_TRANSMITTANCE, 0)
    weight = left_behind.div_(passed).mul_(alpha)
    values = torch.cat([places[..., 6:], torch.ones_like(places[..., :1])], dim=-1)
    return _Slab(tiles, rows, dx, dy, alpha, weight, values), light


class _Composite(torch.autograd.Function):
    """Padded splats [M + 1, 10] -> tiles [tiles, TILE^2, 5]."""

    @staticmethod
    def forward(ctx: Any, splats: Tensor, lists: TileLists) -> Tensor:
        picture = splats.new_zeros(lists.tiles_across**2, TILE * TILE, 5)
        for slab in _slabs(splats, lists):
            picture[slab.tiles] += slab.weight @ slab.values
        ctx.lists = lists
        ctx.save_for_backward(splats, picture)
        return picture

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        splats, picture = ctx.saved_tensors
        gradient = torch.zeros_like(splats)
        behind = (grad * picture).sum(-1, keepdim=True)
        for slab in _slabs(splats, ctx.lists):
            g = grad[slab.tiles]  # [C, P, 5]
            power = _power_gradient(slab, g, behind)
            shape = _shape_gradient(splats[slab.rows], slab, power)
            rows = torch.cat([shape, slab.weight.transpose(1, 2) @ g[..., :4]], dim=-1)
            gradient.index_add_(0, slab.rows.flatten(), rows.flatten(0, 1))
        return gradient, None


def _power_gradient(slab: _Slab, grad: Tensor, behind: Tensor) -> Tensor:
    """Return the loss's derivative by the logarithm of every alpha, [C, P, K]; spends the slab's alpha.

    With weights w, values c and g = gradient . c it is ``w_k g_k - a_k / (1 - a_k) sum_{j > k} w_j g_j``, and
    0 where alpha is clamped.

    Args:
        slab: the Gaussians.
        grad: [C, P, 5] by the pixels.
        behind: [tiles, P, 1] the sum of w_j g_j from the slab on; moved behind the slab.
    """
    seen = (grad @ slab.values.transpose(1, 2)).mul_(slab.weight)
    after = behind[slab.tiles] - seen.cumsum(-1)
    behind[slab.tiles] = after[..., -1:]
    clamped = slab.alpha >= MAX_ALPHA
    odds = slab.alpha.div_(1 - slab.alpha)
    return seen.sub_(odds.mul_(after)).masked_fill_(clamped, 0)


def _shape_gradient(rows: Tensor, slab: _Slab, power: Tensor) -> Tensor:
    """Return the gradient by mean, whitening and opacity of every place, [C, K, 6].

    The sums over pixels are moments of the offsets up to order two.
    """
    q = power.unflatten(1, (TILE, TILE))
    of_column, of_row = q.sum(1, keepdim=True), q.sum(2, keepdim=True)  # [C, 1, TILE, K], [C, TILE, 1, K]
    dx, dy = slab.dx, slab.dy
    moment = of_column.sum((1, 2))
    x, xx = (of_column * dx).sum((1, 2)), (of_column * dx * dx).sum((1, 2))
    y, yy = (of_row * dy).sum((1, 2)), (of_row * dy * dy).sum((1, 2))
    xy = ((q * dx).sum(2, keepdim=True) * dy).sum((1, 2))
    p, h, r, opacity = rows[..., 2:6].unbind(-1)
    u, ux, uy = p * x + h * y, p * xx + h * xy, p * xy + h * yy
    # A place that only fills has opacity 0; what it gets is dropped with its row.
    by_opacity = moment / opacity.clamp(min=MIN_ALPHA)
    return torch.stack([p * u, h * u + r * r * y, -ux, -uy, -r * yy, by_opacity], dim=-1)
