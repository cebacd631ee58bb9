"""The compositing of `splat_torch.py` as Triton kernels, for CUDA devices. Needs triton and a C compiler.

One program per tile walks its list in batches, each against all pixels at once, until no pixel has light
left. The backward pass walks the same way: what lies behind a Gaussian is the final value minus what came
before. Sums into its gradient are atomic, so that the last digits may change from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .splat_torch import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, TILE, TileLists

# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false


CONSTANTS = {
    "TILE": TILE,
    "BATCH": 16,  # Gaussians per step of a program
    "MAX_ALPHA": MAX_ALPHA,
    "MIN_ALPHA": MIN_ALPHA,
    "MIN_LIGHT": MIN_TRANSMITTANCE,
    "num_warps": 2,
}


def composite_triton(splats: Tensor, lists: TileLists) -> Tensor:
    """Return what `composite_torch` returns, [size, size, 5], computed in float32."""
    picture: Tensor = _Composite.apply(splats.float().contiguous(), lists)  # pyright: ignore
    return picture.to(splats.dtype)


class _Composite(torch.autograd.Function):
    """Splats [M, 10] -> picture [size, size, 5]."""

    @staticmethod
    def forward(ctx: Any, splats: Tensor, lists: TileLists) -> Tensor:
        picture = splats.new_zeros(lists.size, lists.size, 5)
        if len(splats):
            tables = (splats, lists.splats, lists.starts)
            grid = (lists.tiles_across**2,)
            # Triton launches on the current device, which need not be the tensors'.
            with torch.cuda.device_of(splats):
                _forward[grid](*tables, picture, lists.size, lists.tiles_across, **CONSTANTS)
        ctx.lists = lists
        ctx.save_for_backward(splats, picture)
        return picture

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        splats, picture = ctx.saved_tensors
        lists: TileLists = ctx.lists
        gradient = torch.zeros_like(splats)
        if len(splats):
            tables = (splats, lists.splats, lists.starts)
            pixels = (picture, grad.contiguous(), gradient, lists.size, lists.tiles_across)
            with torch.cuda.device_of(splats):
                _backward[(lists.tiles_across**2,)](*tables, *pixels, **CONSTANTS)
        return gradient, None


@triton.jit
def _pixels(size, across, TILE: tl.constexpr):
    """Return the tile's pixel centres x and y, their numbers and whether they are in the picture, [1, P]."""
    tile = tl.program_id(0)
    inside = tl.arange(0, TILE * TILE)
    column = (tile % across) * TILE + inside % TILE
    row = (tile // across) * TILE + inside // TILE
    x = column.to(tl.float32)[None, :] + 0.5
    y = row.to(tl.float32)[None, :] + 0.5
    return x, y, (row * size + column)[None, :], ((row < size) & (column < size))[None, :]


@triton.jit
def _blend(
    splats,  # [M, 10]
    rows,  # [BATCH, 1] rows of splats
    listed,  # [BATCH, 1] whether the row is one of the list
    x,  # [1, P] pixel centres
    y,
    light,  # [1, P] what the Gaussians in front let through; less than the limit where all is done
    MAX_ALPHA: tl.constexpr,
    MIN_ALPHA: tl.constexpr,
    MIN_LIGHT: tl.constexpr,
):
    """Return dx, dy, u, alpha, weight [BATCH, P], and the light that passes the whole batch [1, P]."""
    at = splats + rows * 10
    dx = x - tl.load(at, mask=listed, other=0.0)
    dy = y - tl.load(at + 1, mask=listed, other=0.0)
    u = tl.load(at + 2, mask=listed, other=0.0) * dx + tl.load(at + 3, mask=listed, other=0.0) * dy
    v = tl.load(at + 4, mask=listed, other=0.0) * dy
    opacity = tl.load(at + 5, mask=listed, other=0.0)
    alpha = tl.minimum(opacity * tl.exp(-0.5 * (u * u + v * v)), MAX_ALPHA)
    alpha = tl.where(alpha > MIN_ALPHA, alpha, 0.0)
    left_behind = light * tl.cumprod(1 - alpha, axis=0)
    weight = tl.where(left_behind >= MIN_LIGHT, alpha * left_behind / (1 - alpha), 0.0)
    return dx, dy, u, alpha, weight, tl.min(left_behind, axis=0)[None, :]


@triton.jit
def _values(splats, rows, listed):
    """Return red, green, blue and depth of a batch, [BATCH, 1] each."""
    at = splats + rows * 10 + 6
    red = tl.load(at, mask=listed, other=0.0)
    green = tl.load(at + 1, mask=listed, other=0.0)
    blue = tl.load(at + 2, mask=listed, other=0.0)
    return red, green, blue, tl.load(at + 3, mask=listed, other=0.0)


@triton.jit
def _forward(
    splats,  # [M, 10]
    list_splats,  # [L]
    starts,  # [tiles + 1]
    picture,  # [size, size, 5], written
    size,
    across,
    TILE: tl.constexpr,
    BATCH: tl.constexpr,
    MAX_ALPHA: tl.constexpr,
    MIN_ALPHA: tl.constexpr,
    MIN_LIGHT: tl.constexpr,
):
    """Write the tile's pixels."""
    x, y, number, shown = _pixels(size, across, TILE)
    light = tl.where(shown, 1.0, 0.0)
    red, green, blue = tl.zeros_like(light), tl.zeros_like(light), tl.zeros_like(light)
    depth, total = tl.zeros_like(light), tl.zeros_like(light)
    place = tl.load(starts + tl.program_id(0))
    end = tl.load(starts + tl.program_id(0) + 1)
    while place < end:
        index = place + tl.arange(0, BATCH)[:, None]
        listed = index < end
        rows = tl.load(list_splats + index, mask=listed, other=0)
        dx, dy, u, alpha, weight, light = _blend(
            splats, rows, listed, x, y, light, MAX_ALPHA, MIN_ALPHA, MIN_LIGHT
        )
        r, g, b, z = _values(splats, rows, listed)
        red += tl.sum(weight * r, axis=0)[None, :]
        green += tl.sum(weight * g, axis=0)[None, :]
        blue += tl.sum(weight * b, axis=0)[None, :]
        depth += tl.sum(weight * z, axis=0)[None, :]
        total += tl.sum(weight, axis=0)[None, :]
        place = tl.where(tl.max(light) >= MIN_LIGHT, place + BATCH, end)
    at = picture + number * 5
    tl.store(at, red, mask=shown)
    tl.store(at + 1, green, mask=shown)
    tl.store(at + 2, blue, mask=shown)
    tl.store(at + 3, depth, mask=shown)
    tl.store(at + 4, total, mask=shown)


@triton.jit
def _add(gradient, rows, listed, column, contribution):
    """Add [BATCH, P] contributions, summed over the pixels, to one column of the Gaussians' gradient."""
    tl.atomic_add(gradient + rows * 10 + column, tl.sum(contribution, axis=1)[:, None], mask=listed)


@triton.jit
def _backward(
    splats,  # [M, 10]
    list_splats,  # [L]
    starts,  # [tiles + 1]
    picture,  # [size, size, 5]
    grad,  # [size, size, 5]
    gradient,  # [M, 10], added to
    size,
    across,
    TILE: tl.constexpr,
    BATCH: tl.constexpr,
    MAX_ALPHA: tl.constexpr,
    MIN_ALPHA: tl.constexpr,
    MIN_LIGHT: tl.constexpr,
):
    """Add the tile's share to the gradient; the formulas are those of `splat_torch.py`."""
    x, y, number, shown = _pixels(size, across, TILE)
    at = grad + number * 5
    g_red, g_green = tl.load(at, mask=shown, other=0.0), tl.load(at + 1, mask=shown, other=0.0)
    g_blue, g_depth = tl.load(at + 2, mask=shown, other=0.0), tl.load(at + 3, mask=shown, other=0.0)
    g_total = tl.load(at + 4, mask=shown, other=0.0)
    at = picture + number * 5
    behind = g_red * tl.load(at, mask=shown, other=0.0) + g_green * tl.load(at + 1, mask=shown, other=0.0)
    behind += g_blue * tl.load(at + 2, mask=shown, other=0.0) + g_depth * tl.load(
        at + 3, mask=shown, other=0.0
    )
    behind += g_total * tl.load(at + 4, mask=shown, other=0.0)
    light = tl.where(shown, 1.0, 0.0)
    place = tl.load(starts + tl.program_id(0))
    end = tl.load(starts + tl.program_id(0) + 1)
    while place < end:
        index = place + tl.arange(0, BATCH)[:, None]
        listed = index < end
        rows = tl.load(list_splats + index, mask=listed, other=0)
        dx, dy, u, alpha, weight, light = _blend(
            splats, rows, listed, x, y, light, MAX_ALPHA, MIN_ALPHA, MIN_LIGHT
        )
        r, g, b, z = _values(splats, rows, listed)
        seen = weight * (g_red * r + g_green * g + g_blue * b + g_depth * z + g_total)
        rest = behind - tl.cumsum(seen, axis=0)
        behind -= tl.sum(seen, axis=0)[None, :]
        q = tl.where((weight > 0) & (alpha < MAX_ALPHA), seen - alpha / (1 - alpha) * rest, 0.0)
        p = tl.load(splats + rows * 10 + 2, mask=listed, other=0.0)
        h = tl.load(splats + rows * 10 + 3, mask=listed, other=0.0)
        root = tl.load(splats + rows * 10 + 4, mask=listed, other=0.0)
        opacity = tl.load(splats + rows * 10 + 5, mask=listed, other=1.0)
        _add(gradient, rows, listed, 0, q * u * p)
        _add(gradient, rows, listed, 1, q * (u * h + root * root * dy))
        _add(gradient, rows, listed, 2, -q * u * dx)
        _add(gradient, rows, listed, 3, -q * u * dy)
        _add(gradient, rows, listed, 4, -q * root * dy * dy)
        _add(gradient, rows, listed, 5, q / opacity)
        _add(gradient, rows, listed, 6, weight * g_red)
        _add(gradient, rows, listed, 7, weight * g_green)
        _add(gradient, rows, listed, 8, weight * g_blue)
        _add(gradient, rows, listed, 9, weight * g_depth)
        place = tl.where(tl.max(light) >= MIN_LIGHT, place + BATCH, end)
