"""The compositing of `splat_torch.py` as Triton kernels, for CUDA devices. Needs triton and a C compiler.

One program per tile walks its list in batches, each against all pixels at once, one per thread, until no
pixel has light left. The backward pass walks the same way: what lies behind a Gaussian is the final value
minus what came before. Sums into its gradient are atomic, so that the last digits may change from run to run.
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
    "BATCH": 8,  # Gaussians per step of a program; with 16 only half as many programs have room for registers
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
        _launch(splats, lists, picture, None, None)
        ctx.lists = lists
        ctx.save_for_backward(splats, picture)
        return picture

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        splats, picture = ctx.saved_tensors
        gradient = torch.zeros_like(splats)
        _launch(splats, ctx.lists, picture, grad.contiguous(), gradient)
        return gradient, None


def _launch(
    splats: Tensor, lists: TileLists, picture: Tensor, grad: Tensor | None, gradient: Tensor | None
) -> None:
    """Fill the picture; or, of that picture and its grad, the gradient."""
    if not len(splats):
        return
    tables = (splats, lists.splats, lists.starts, picture, grad, gradient)
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(splats):
        _walk[(lists.tiles_across**2,)](*tables, lists.size, lists.tiles_across, **CONSTANTS)


@triton.jit
def _five(at, mask):
    """Return five numbers that follow each other; 0 where masked."""
    first, second = tl.load(at, mask=mask, other=0.0), tl.load(at + 1, mask=mask, other=0.0)
    third, fourth = tl.load(at + 2, mask=mask, other=0.0), tl.load(at + 3, mask=mask, other=0.0)
    return first, second, third, fourth, tl.load(at + 4, mask=mask, other=0.0)


@triton.jit
def _add(at, mask, contribution):
    """Add [BATCH, P] contributions, summed over the pixels, to one column of the Gaussians' gradient."""
    tl.atomic_add(at, tl.sum(contribution, axis=1)[:, None], mask=mask)


# One program serves all sizes: what was tried on a tiny picture is what runs.
@triton.jit(do_not_specialize=["size", "across"])
def _walk(
    splats,  # [M, 10]
    list_splats,  # [L]
    starts,  # [tiles + 1]
    picture,  # [size, size, 5], written where there is no gradient
    grad,  # [size, size, 5] or None
    gradient,  # [M, 10], added to, or None
    size,
    across,
    TILE: tl.constexpr,
    BATCH: tl.constexpr,
    MAX_ALPHA: tl.constexpr,
    MIN_ALPHA: tl.constexpr,
    MIN_LIGHT: tl.constexpr,
):
    """Write the tile's pixels, or add its share to the gradient; the formulas of `splat_torch.py`."""
    tile = tl.program_id(0)
    inside = tl.arange(0, TILE * TILE)[None, :]
    column = (tile % across) * TILE + inside % TILE
    row = (tile // across) * TILE + inside // TILE
    x, y = column.to(tl.float32) + 0.5, row.to(tl.float32) + 0.5
    shown = (row < size) & (column < size)
    pixel = (row * size + column) * 5
    # What the Gaussians in front let through; less than the limit where all is done.
    light = tl.where(shown, 1.0, 0.0)
    red, green, blue = tl.zeros_like(light), tl.zeros_like(light), tl.zeros_like(light)
    depth, total = tl.zeros_like(light), tl.zeros_like(light)
    if gradient is not None:
        g_red, g_green, g_blue, g_depth, g_total = _five(grad + pixel, shown)
        red, green, blue, depth, total = _five(picture + pixel, shown)
        behind = g_red * red + g_green * green + g_blue * blue + g_depth * depth + g_total * total
    place = tl.load(starts + tile)
    end = tl.load(starts + tile + 1)
    while place < end:
        index = place + tl.arange(0, BATCH)[:, None]
        listed = index < end
        rows = tl.load(list_splats + index, mask=listed, other=0) * 10
        mean_x, mean_y, p, h, root = _five(splats + rows, listed)
        opacity, r, g, b, z = _five(splats + rows + 5, listed)
        dx, dy = x - mean_x, y - mean_y
        u, v = p * dx + h * dy, root * dy
        alpha = tl.minimum(opacity * tl.exp(-0.5 * (u * u + v * v)), MAX_ALPHA)
        alpha = tl.where(alpha > MIN_ALPHA, alpha, 0.0)
        left_behind = light * tl.cumprod(1 - alpha, axis=0)
        weight = tl.where(left_behind >= MIN_LIGHT, alpha * left_behind / (1 - alpha), 0.0)
        light = tl.min(left_behind, axis=0)[None, :]
        if gradient is None:
            red += tl.sum(weight * r, axis=0)[None, :]
            green += tl.sum(weight * g, axis=0)[None, :]
            blue += tl.sum(weight * b, axis=0)[None, :]
            depth += tl.sum(weight * z, axis=0)[None, :]
            total += tl.sum(weight, axis=0)[None, :]
        else:
            seen = weight * (g_red * r + g_green * g + g_blue * b + g_depth * z + g_total)
            rest = behind - tl.cumsum(seen, axis=0)
            behind -= tl.sum(seen, axis=0)[None, :]
            q = tl.where((weight > 0) & (alpha < MAX_ALPHA), seen - alpha / (1 - alpha) * rest, 0.0)
            at = gradient + rows
            _add(at, listed, q * u * p)
            _add(at + 1, listed, q * (u * h + v * root))
            _add(at + 2, listed, -q * u * dx)
            _add(at + 3, listed, -q * u * dy)
            _add(at + 4, listed, -q * v * dy)
            _add(at + 5, listed, q / tl.maximum(opacity, MIN_ALPHA))
            _add(at + 6, listed, weight * g_red)
            _add(at + 7, listed, weight * g_green)
            _add(at + 8, listed, weight * g_blue)
            _add(at + 9, listed, weight * g_depth)
        place = tl.where(tl.max(light) >= MIN_LIGHT, place + BATCH, end)
    if gradient is None:
        at = picture + pixel
        tl.store(at, red, mask=shown)
        tl.store(at + 1, green, mask=shown)
        tl.store(at + 2, blue, mask=shown)
        tl.store(at + 3, depth, mask=shown)
        tl.store(at + 4, total, mask=shown)
