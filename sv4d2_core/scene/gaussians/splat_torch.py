"""3D Gaussians projected to the picture of one camera, and blended there by PyTorch.

Source: Zwicker et al. 2001, "EWA Splatting" (the Jacobian of the projection, the low-pass filter); Kerbl et
al. 2023, "3D Gaussian Splatting" (covariance, filter of 0.3 px, the limit of the Jacobian off screen).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOW_PASS = 0.3  # square pixels, added to the 2D variance
NEAR = 0.01  # world units along the optical axis; nearer Gaussians and those behind the camera are skipped
MIN_ALPHA = 1 / 255  # what a contribution must reach in a pixel
MAX_ALPHA = 0.99
MIN_TRANSMITTANCE = 1e-4  # a Gaussian that would leave less light than this, and all behind it, are skipped
_SCREEN_MARGIN = 1.3  # the Jacobian is evaluated at most this many half pictures from the centre


class GaussiansAt(NamedTuple):
    """N Gaussians at one time."""

    means: Tensor  # [N, 3] world units
    quats: Tensor  # [N, 4] wxyz, of any length
    scales: Tensor  # [N, 3] standard deviations along their own axes, world units
    opacities: Tensor  # [N] in 0..1
    colours: Tensor  # [N, 3] in 0..1, the same from everywhere


class Projected(NamedTuple):
    """M of N Gaussians, those that may show, nearest first.

    A pixel centre at the offset (dx, dy) from the mean has alpha ``opacity * exp(-(u^2 + v^2) / 2)`` with
    ``u = p dx + h dy`` and ``v = r dy``: (p, h, r) is the upper triangular root of the inverse 2D covariance.
    """

    # [M, 10] mean x, mean y (pixels), p, h, r (1 / pixels), opacity, red, green, blue, and depth along the
    # optical axis. Differentiable.
    splats: Tensor
    extents: Tensor  # [M, 2] half width and height of the box beyond which alpha is below 1/255, pixels


def project(
    gaussians: GaussiansAt,
    w2c: Tensor,  # [4, 4] OpenCV camera axes
    focal: float,  # pixels
    size: int,
) -> Projected:
    """Return the Gaussians as seen by a camera whose principal point is the centre of its square picture."""
    means, quats, scales, opacities, colours = gaussians
    w2c = w2c.to(means)
    x, y, z = (means @ w2c[:3, :3].T + w2c[:3, 3]).unbind(-1)
    front = z > NEAR
    # The value of what is not in front does not matter, but its gradient must stay finite.
    z = torch.where(front, z, torch.ones_like(z))
    centre = torch.stack([focal * x / z + size / 2, focal * y / z + size / 2], dim=-1)
    # The Gaussians' axes in the camera, one per column, as long as their scales; times the Jacobian they are
    # the two rows [N, 3] that say where they end in the picture.
    axes = w2c[:3, :3] @ rotations(quats) * scales[:, None]
    limit = _SCREEN_MARGIN * size / 2 / focal
    row_x = axes[:, 0] - (x / z).clamp(-limit, limit)[:, None] * axes[:, 2]
    row_y = axes[:, 1] - (y / z).clamp(-limit, limit)[:, None] * axes[:, 2]
    whitening, variances = _whitening(focal * row_x / z[:, None], focal * row_y / z[:, None])
    # Colours keep their own type under mixed precision; the list of pictures does not.
    columns = [centre, whitening, opacities[:, None], colours, z[:, None]]
    splats = torch.cat([column.to(means) for column in columns], dim=-1)
    with torch.no_grad():
        reach = (2 * torch.log((opacities / MIN_ALPHA).clamp(min=1))).sqrt()
        # Rounding must not move a pixel at the limit out of the box.
        extents = reach[:, None] * variances.sqrt() * (1 + 1e-4) + 1e-3
        inside = ((centre + extents > 0.5) & (centre - extents < size - 0.5)).all(-1)
        shown = torch.nonzero(front & inside & (opacities >= MIN_ALPHA)).squeeze(-1)
        order = shown[torch.argsort(z[shown], stable=True)]
    return Projected(splats[order], extents[order])


def rotations(quats: Tensor) -> Tensor:
    """Return the rotation matrices of quaternions (w, x, y, z) of any length, [N, 4] -> [N, 3, 3]."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    entries = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def _whitening(row_x: Tensor, row_y: Tensor) -> tuple[Tensor, Tensor]:
    """Return (p, h, r) [N, 3] of `Projected` and the variances along x and y [N, 2], low-pass included.

    The determinant is a sum of squares (Cauchy-Binet), so that needles lose no digits in float32.
    """
    square_x, square_y = (row_x * row_x).sum(-1), (row_y * row_y).sum(-1)
    xx, yy, xy = square_x + LOW_PASS, square_y + LOW_PASS, (row_x * row_y).sum(-1)
    minors = torch.linalg.cross(row_x, row_y)
    det = (minors * minors).sum(-1) + LOW_PASS * (square_x + square_y) + LOW_PASS**2
    whitening = torch.stack([(yy / det).sqrt(), -xy / (yy * det).sqrt(), yy.rsqrt()], dim=-1)
    return whitening, torch.stack([xx, yy], dim=-1)


def ray_lengths(focal: float, size: int) -> Tensor:
    """Return the distance along each pixel's ray per unit of depth, [size, size] float64, at least 1."""
    offset = (torch.arange(size, dtype=torch.float64) + 0.5 - size / 2) / focal
    return (1 + offset[:, None] ** 2 + offset[None] ** 2).sqrt()


TILE = 8  # pixels
_MOST_PAIRS = 1 << 27  # of a Gaussian and a tile: each takes about 80 bytes


class TileLists(NamedTuple):
    """The list of every tile, one after the other, tiles in row-major order."""

    size: int  # pixels of the square picture
    splats: Tensor  # [P] rows of `Projected.splats`, ascending (nearest first) within a tile
    starts: Tensor  # [tiles + 1] where each tile's list starts; the last entry is P

    @property
    def tiles_across(self) -> int:
        return -(-self.size // TILE)


@torch.no_grad()
def tile_lists(projected: Projected, size: int) -> TileLists:
    """Return the Gaussians of every tile: all whose box holds at least one of the tile's pixel centres."""
    across = -(-size // TILE)
    centre = projected.splats[:, :2]
    # The first tile whose last pixel centre is in the box, and the last tile whose first one is.
    first = ((centre - projected.extents - (TILE - 0.5)) / TILE).ceil().clamp(0, across).long()
    last = ((centre + projected.extents - 0.5) / TILE).floor().clamp(-1, across - 1).long()
    spans = (last - first + 1).clamp(min=0)
    counts = spans[:, 0] * spans[:, 1]
    if (pairs := int(counts.sum())) > _MOST_PAIRS:
        raise ValueError(
            f"Expected Gaussians on {_MOST_PAIRS} tiles of the picture at most; {len(counts)} lie on "
            f"{pairs}. They are too large: draw a smaller picture, or fit the scene again."
        )
    splats = torch.repeat_interleave(torch.arange(len(counts), device=centre.device), counts)
    place = torch.arange(len(splats), device=centre.device) - (counts.cumsum(0) - counts)[splats]
    column = first[splats, 0] + place % spans[splats, 0]
    row = first[splats, 1] + place // spans[splats, 0]
    tile, order = torch.sort(row * across + column, stable=True)
    starts = torch.searchsorted(tile, torch.arange(across * across + 1, device=centre.device))
    return TileLists(size, splats[order], starts)


# Their product times the pixels of a tile is the size of a temporary tensor; it should fit into a cache.
TILES_AT_ONCE = 64
PLACES_AT_ONCE = 32


def composite_torch(splats: Tensor, lists: TileLists) -> Tensor:
    """Return red, green, blue, depth times weight, and alpha, [size, size, 5], differentiable once."""
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

    With weights w, values c and g = grad [C, P, 5] . c it is w_k g_k - a_k / (1 - a_k) sum_{j > k} w_j g_j,
    and 0 where alpha is clamped. ``behind`` [tiles, P, 1], the sum of w_j g_j from the slab on, is moved on.
    """
    seen = (grad @ slab.values.transpose(1, 2)).mul_(slab.weight)
    after = behind[slab.tiles] - seen.cumsum(-1)
    behind[slab.tiles] = after[..., -1:]
    clamped = slab.alpha >= MAX_ALPHA
    odds = slab.alpha.div_(1 - slab.alpha)
    return seen.sub_(odds.mul_(after)).masked_fill_(clamped, 0)


def _shape_gradient(rows: Tensor, slab: _Slab, power: Tensor) -> Tensor:
    """Return the gradient by mean, whitening, opacity [C, K, 6], from moments of offsets up to order two."""
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
