"""The products of `planes.py` as a Triton kernel, for CUDA devices. Needs triton and a C compiler.

Planes have their channels last, so that the threads of a point read and add side by side. The backward pass
looks everything up again and keeps nothing but its inputs. Sums into the planes' gradient are atomic, so that
the last digits may change from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false

AT_ONCE = 512  # points times channels of a program, four per thread; with eight, registers spill on sm_80


def products_triton(scales: Sequence[Tensor], points: Tensor, counts: Sequence[int]) -> Tensor:
    """Return what `products` returns, computed in float32."""
    # Returns for every count its index, so many times.
    moments = torch.repeat_interleave(torch.tensor(counts, device=points.device), output_size=len(points))
    planes = [scale.movedim(2, -1).float().contiguous() for scale in scales]
    found: Tensor = _Products.apply(points.float().contiguous(), moments, *planes)  # pyright: ignore
    return found.to(scales[0].dtype)


class _Products(torch.autograd.Function):
    """Points [N, 3], their moments [N] and planes [M, 3, S, S, C] per scale -> products [N, scales * C]."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, moments: Tensor, *scales: Tensor) -> Tensor:
        found = points.new_empty(len(points), len(scales) * scales[0].shape[-1])
        _launch(points, moments, scales, found, [None] * len(scales), None)
        ctx.save_for_backward(points, moments, *scales)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        points, moments, *scales = ctx.saved_tensors
        of_points, of_scales = torch.zeros_like(points), [torch.zeros_like(planes) for planes in scales]
        _launch(points, moments, scales, grad.contiguous(), of_scales, of_points)
        return of_points, None, *of_scales


def _launch(
    points: Tensor,
    moments: Tensor,
    scales: Sequence[Tensor],
    values: Tensor,
    of_scales: Sequence[Tensor | None],
    of_points: Tensor | None,
) -> None:
    """Fill the values; or, where these are a gradient, add to those of planes and points."""
    if not len(points):
        return
    channels = scales[0].shape[-1]
    width = triton.next_power_of_2(channels)
    at_once = max(AT_ONCE // width, 1)
    constants = {"C": channels, "WIDTH": width, "POINTS": at_once}
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(points):
        for i, (planes, of_planes) in enumerate(zip(scales, of_scales, strict=True)):
            tables, size = (points, moments, planes, values, of_planes, of_points), planes.shape[2]
            walk = _walk[(triton.cdiv(len(points), at_once),)]
            walk(*tables, len(points), size, i, len(scales), **constants)


@triton.jit
def _place(coordinate, size):
    """Return the nodes before and after a coordinate, the share of the latter, and nodes per unit."""
    place = (coordinate + 1) / 2 * (size - 1)
    inside = (place > 0) & (place < size - 1)
    place = tl.minimum(tl.maximum(place, 0.0), (size - 1).to(tl.float32))
    before = place.to(tl.int32)
    slope = tl.where(inside, (size - 1) / 2, 0.0)
    return before, tl.minimum(before + 1, size - 1), place - before, slope


@triton.jit
def _corners(first, x0, x1, y0, y1, size, C: tl.constexpr):
    """Return where the four nodes around a point are, of a plane that begins with node ``first``."""
    upper, lower = first + y0 * size, first + y1 * size
    return (upper + x0) * C, (upper + x1) * C, (lower + x0) * C, (lower + x1) * C


@triton.jit
def _look_up(table, a, b, c, d, x, y, mask):
    """Return the bilinear value of a plane, and its slopes along x and y."""
    upper, upper_end = tl.load(table + a, mask=mask, other=0.0), tl.load(table + b, mask=mask, other=0.0)
    lower, lower_end = tl.load(table + c, mask=mask, other=0.0), tl.load(table + d, mask=mask, other=0.0)
    across, across_lower = upper_end - upper, lower_end - lower
    value, value_lower = upper + x * across, lower + x * across_lower
    down = value_lower - value
    return value + y * down, across + y * (across_lower - across), down


@triton.jit
def _spread(table, a, b, c, d, x, y, mask, value):
    """Add a value to a plane's four nodes."""
    upper, lower = (1 - y) * value, y * value
    tl.atomic_add(table + a, (1 - x) * upper, mask=mask, sem="relaxed")
    tl.atomic_add(table + b, x * upper, mask=mask, sem="relaxed")
    tl.atomic_add(table + c, (1 - x) * lower, mask=mask, sem="relaxed")
    tl.atomic_add(table + d, x * lower, mask=mask, sem="relaxed")


@triton.jit
def _add(at, slopes, slope, mask):
    """Add slopes [POINTS, WIDTH], summed over the channels, to one column of the points' gradient."""
    total = tl.sum(slopes, axis=1)[:, None] * slope
    tl.store(at, tl.load(at, mask=mask, other=0.0) + total, mask=mask)


# One program serves all sizes: what was tried on tiny planes is what runs.
@triton.jit(do_not_specialize=["count", "size", "scale", "scales"])
def _walk(
    points,  # [N, 3]
    moments,  # [N]
    planes,  # [M, 3, S, S, C]
    values,  # [N, scales * C], written; or, where there is a gradient of the planes, the gradient
    of_planes,  # [M, 3, S, S, C], added to, or None
    of_points,  # [N, 3], added to, or None
    count,
    size,
    scale,
    scales,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    POINTS: tl.constexpr,
):
    """Look planes xy, xz and yz up at some points, x along the rows of nodes."""
    point = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)[:, None]
    channel = tl.arange(0, WIDTH)[None, :]
    shown = point < count
    mask = shown & (channel < C)
    at = points + 3 * point
    x0, x1, x, x_slope = _place(tl.load(at, mask=shown, other=0.0), size)
    y0, y1, y, y_slope = _place(tl.load(at + 1, mask=shown, other=0.0), size)
    z0, z1, z, z_slope = _place(tl.load(at + 2, mask=shown, other=0.0), size)
    nodes = size * size
    first = tl.load(moments + point, mask=shown, other=0) * 3 * nodes
    xy_a, xy_b, xy_c, xy_d = _corners(first, x0, x1, y0, y1, size, C)
    xz_a, xz_b, xz_c, xz_d = _corners(first + nodes, x0, x1, z0, z1, size, C)
    yz_a, yz_b, yz_c, yz_d = _corners(first + 2 * nodes, y0, y1, z0, z1, size, C)
    table = planes + channel
    xy, xy_x, xy_y = _look_up(table, xy_a, xy_b, xy_c, xy_d, x, y, mask)
    xz, xz_x, xz_z = _look_up(table, xz_a, xz_b, xz_c, xz_d, x, z, mask)
    yz, yz_y, yz_z = _look_up(table, yz_a, yz_b, yz_c, yz_d, y, z, mask)
    column = values + (point * scales + scale) * C + channel
    if of_planes is None:
        tl.store(column, xy * xz * yz, mask=mask)
    else:
        grad = tl.load(column, mask=mask, other=0.0)
        g_xy, g_xz, g_yz = grad * xz * yz, grad * xy * yz, grad * xy * xz
        table = of_planes + channel
        _spread(table, xy_a, xy_b, xy_c, xy_d, x, y, mask, g_xy)
        _spread(table, xz_a, xz_b, xz_c, xz_d, x, z, mask, g_xz)
        _spread(table, yz_a, yz_b, yz_c, yz_d, y, z, mask, g_yz)
        at = of_points + 3 * point
        _add(at, g_xy * xy_x + g_xz * xz_x, x_slope, shown)
        _add(at + 1, g_xy * xy_y + g_yz * yz_y, y_slope, shown)
        _add(at + 2, g_xz * xz_z + g_yz * yz_z, z_slope, shown)
