"""Density, colour and motion of Gaussians at points in the world."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .splat_torch import GaussiansAt, rotations

_REACH = 3.0  # standard deviations at which a Gaussian ends, fallen to 1 %
_LEAST_OPACITY = 0.01  # more transparent Gaussians are left out
_NEIGHBOURS = 8  # Gaussians that decide about the colour and the motion of a point
_PAIRS = 1 << 21  # of a Gaussian and a point, looked at together: bounds the memory
_MOST_CELLS = 160  # along an axis, at most, that points are sorted into


def gaussian_box(gaussians: GaussiansAt) -> Tensor:
    """Return the corners [2, 3] of the box that holds all Gaussians that can be seen; inf where none is."""
    seen = gaussians.opacities >= _LEAST_OPACITY
    means, reach = gaussians.means[seen], _half_sides(gaussians)[seen]
    nothing = means.new_full((1, 3), torch.inf)
    return torch.stack(
        [torch.cat([means - reach, nothing]).amin(0), torch.cat([means + reach, -nothing]).amax(0)]
    )


def gaussian_densities(gaussians: GaussiansAt, points: Tensor) -> Tensor:
    """Return the sum of the Gaussians, each as high as its opacity, at points [N, 3] in the world, [N]."""
    seen = gaussians.opacities >= _LEAST_OPACITY
    gaussians = type(gaussians)(*(part[seen] for part in gaussians))
    sums = torch.zeros_like(points[:, 0])
    if not len(points) or not len(gaussians.means):
        return sums
    whiten = _whitening(gaussians)
    order, pairs = _near_pairs(gaussians.means, _half_sides(gaussians), points)
    sorted_points = points[order]
    for which, where in pairs:
        distance = _squared_distances(sorted_points[where] - gaussians.means[which], whiten[which])
        height = gaussians.opacities[which] * torch.exp(-distance / 2)
        sums.index_add_(0, order[where], torch.where(distance <= _REACH**2, height, 0))
    return sums


def gaussian_colours(gaussians: GaussiansAt, points: Tensor) -> Tensor:
    """Return the mean colour of the Gaussians near points [N, 3], weighted as they contribute, [N, 3]."""
    index, weights = _neighbours(gaussians, points)
    return (weights[..., None] * gaussians.colours[index]).sum(1)


def gaussian_motion(start: GaussiansAt, end: GaussiansAt, points: Tensor) -> Tensor:
    """Return where points [N, 3] go with the Gaussians near them, from one time to another, [N, 3]."""
    both = start._replace(opacities=(start.opacities * end.opacities).sqrt())
    index, weights = _neighbours(both, points)
    return points + (weights[..., None] * (end.means - start.means)[index]).sum(1)


def _half_sides(gaussians: GaussiansAt) -> Tensor:
    """Return half the sides of the box that holds a Gaussian up to its reach, [N, 3]."""
    return _REACH * (rotations(gaussians.quats) * gaussians.scales[:, None]).norm(dim=-1)


def _whitening(gaussians: GaussiansAt) -> Tensor:
    """Return what turns offsets from a mean into standard deviations along the Gaussian's axes, [N, 3, 3]."""
    return rotations(gaussians.quats).transpose(-1, -2) / gaussians.scales[..., None]


def _squared_distances(offsets: Tensor, whitening: Tensor) -> Tensor:
    """Return the squared lengths [...] of offsets [..., 3] after whitening [..., 3, 3]."""
    # Batches of tiny matrix products would be several times slower.
    return (whitening * offsets[..., None, :]).sum(-1).square().sum(-1)


def _neighbours(gaussians: GaussiansAt, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of the nearest seen Gaussians and their weights, whose sum is 1; [N, K] each."""
    from scipy.spatial import KDTree

    seen = (gaussians.opacities >= _LEAST_OPACITY).nonzero()[:, 0]
    seen = seen if len(seen) else torch.arange(len(gaussians.means), device=points.device)
    tree = KDTree(gaussians.means[seen].cpu().numpy())
    _, near = tree.query(points.cpu().numpy(), k=min(_NEIGHBOURS, len(seen)))
    # A single neighbour comes without an axis of its own.
    index = seen[torch.from_numpy(near).to(points.device).view(len(points), -1)]
    distance = _squared_distances(points[:, None] - gaussians.means[index], _whitening(gaussians)[index])
    # Far from all of them the nearest decides, and nothing underflows.
    logits = gaussians.opacities[index].clamp(min=1e-6).log() - distance / 2
    return index, torch.softmax(logits, dim=-1)


def _near_pairs(
    means: Tensor, reach: Tensor, points: Tensor
) -> tuple[Tensor, Iterator[tuple[Tensor, Tensor]]]:
    """Return an order of the points, and lists of pairs (Gaussian, place in this order) that may be near."""
    low, high = points.amin(0), points.amax(0)
    side = torch.maximum(reach.median() / 3, (high - low).max() / _MOST_CELLS).clamp(min=1e-9)
    counts = ((high - low) / side).floor().long() + 1
    strides = torch.stack([counts[1] * counts[2], counts[2], torch.ones_like(counts[0])])
    cells = (((points - low) / side).floor().long() * strides).sum(-1)
    order = cells.argsort(stable=True)
    sizes = torch.bincount(cells, minlength=int(counts.prod()))
    starts = sizes.cumsum(0) - sizes
    first = ((means - reach - low) / side).floor().long().clamp(min=0)
    last = torch.minimum(((means + reach - low) / side).floor().long(), counts - 1)
    spans = (last - first + 1).clamp(min=0)

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for which, rank in _batches(spans.prod(-1)):
            width, depth = spans[which, 1], spans[which, 2]
            place = torch.stack([rank // (width * depth), rank // depth % width, rank % depth], dim=-1)
            cell = ((first[which] + place) * strides).sum(-1)
            filled = sizes[cell] > 0
            which, cell = which[filled], cell[filled]
            # Every point of these cells.
            for visit, rank in _batches(sizes[cell]):
                yield which[visit], starts[cell[visit]] + rank

    return order, pairs()


def _batches(counts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Return for sum(counts) entries whose each is and which of its own, in batches of about `_PAIRS`.

    Counts (3, 1) give 0001 and 0120.
    """
    groups = (counts.cumsum(0) - counts) // _PAIRS
    for group in groups.unique_consecutive():
        members = (groups == group).nonzero()[:, 0]
        own = counts[members]
        owner = torch.repeat_interleave(own)
        yield members[owner], torch.arange(len(owner), device=counts.device) - (own.cumsum(0) - own)[owner]
