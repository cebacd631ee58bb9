"""Fields over space and time: density and colour decoded from feature planes, which change or are moved.

Source: K-Planes (Fridovich-Keil et al., CVPR 2023). There, planes xt, yt and zt are multiplied on; here the
planes of space themselves have a change per time, which follows fast motion far better with few views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from .. import kernels
from ..config import FieldConfig
from ..losses import time_difference, total_variation
from .motion import OffsetGrids, rotations_about

PLANE_AXES = ((0, 1), (0, 2), (1, 2))  # of space, spanned by each plane
_PLANES_RATE, _DECODER_RATE, MOTION_RATE = 3e-2, 3e-3, 3e-3  # learning rates at step 0
# Weights of terms on planes: total variation, squared change from node to node of time, size of changes.
_WEIGHT_PLANES, _WEIGHT_TIME_SMOOTHNESS, _WEIGHT_CHANGE = 0.01, 0.05, 1e-3
_WEIGHT_OFFSET, _WEIGHT_SLOPE = 1e-3, 0.1  # on the deformation: squared offset, squared change in space
_SAME_NODE = 1e-4  # nodes by which a time may miss one and still be the node's own


def sample_planes(planes: Tensor, coordinates: Tensor) -> Tensor:
    """Return the bilinear values [P, C, N] of planes [P, C, H, W] at [P, 1, N, 2] in -1..1 (x along W)."""
    # On a CPU the gradient at a place that is not a number, which a diverging fit asks for, ends the process.
    coordinates = coordinates.nan_to_num()
    return F.grid_sample(planes, coordinates, align_corners=True, padding_mode="border")[:, :, 0]


class Decoder(nn.Module):
    """Two small networks: one layer to the density, two more to the colour."""

    def __init__(
        self,
        width: int,  # of the features that the density is made of
        more: int,  # width of further features that only the colour knows
        config: FieldConfig,
        generator: torch.Generator | None = None,  # draws the initial values (He et al. 2015)
    ) -> None:
        super().__init__()
        hidden, self.density_scale = config.hidden, config.density_scale
        self.trunk = nn.Linear(width, hidden)
        self.density = nn.Linear(hidden, 1)
        first, last = nn.Linear(hidden + more, hidden), nn.Linear(hidden, 3)
        self.colour = nn.Sequential(first, nn.ReLU(), last)
        for layer in (self.trunk, self.density, first, last):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, more: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the density [N] and the colour [N, 3] in 0..1 of features [N, width] and [N, more]."""
        hidden = F.relu(self.trunk(features))
        seen = hidden if more is None else torch.cat([hidden, more], dim=-1)
        return self._density(hidden), torch.sigmoid(self.colour(seen))

    def densities(self, features: Tensor) -> Tensor:
        """Return the density alone, which needs neither the colour's layers nor its features."""
        return self._density(F.relu(self.trunk(features)))

    def _density(self, hidden: Tensor) -> Tensor:
        # Starting thin lets light through to the far side of the hull, so that both sides learn at once.
        return self.density_scale * F.softplus(self.density(hidden)[:, 0] - 1)


class Planes(nn.Module):
    """Features at points in a box at times in 0..1."""

    def __init__(
        self,
        sizes: Sequence[int],  # nodes along an axis of space, per scale
        time_size: int,  # nodes along time; 0: nothing changes
        features: int,  # channels of a plane, per scale
        change_size: int,  # nodes along an axis of space, at most, of what changes with time
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        # One value per plane and channel: noise would stay wherever no ray passes.
        self.space = nn.ParameterList(  # [3, C, S, S] per scale
            torch.empty(3, features, 1, 1).uniform_(0.1, 0.5, generator=generator).repeat(1, 1, size, size)
            for size in sizes
        )
        self.change = nn.ParameterList(  # [T, 3, C, S, S] per scale, added to the planes
            torch.zeros(time_size, 3, features, size, size)
            for size in (min(size, change_size) for size in sizes if time_size)
        )

    def features(self, points: Tensor, times: Tensor | None) -> Tensor:
        """Return the product over the planes at points [N, 3], one scale after the other, [N, scales * C].

        ``times`` [N] in 0..1 is fastest where equal ones follow each other; None leaves the changes out.
        """
        if times is None or not len(times) or not len(self.change):
            scales, counts = [planes[None] for planes in self.space], [len(points)]
        else:
            moments, lengths = torch.unique_consecutive(times, return_counts=True)
            scales, counts = self._planes_at(moments.tolist()), lengths.tolist()
        if read_by_triton(points.device, scales[0].shape[2]):
            from .planes_triton import products_triton

            return products_triton(scales, points, counts)
        return products(scales, points, counts)

    def roughness(self, timed: bool) -> Tensor:
        """Return the terms of the loss that ask for smooth planes, and for small and steady changes."""
        loss = _WEIGHT_PLANES * _sum(total_variation, self.space)
        if timed and len(self.change):
            loss = loss + _WEIGHT_PLANES * _sum(total_variation, self.change)
            loss = loss + _WEIGHT_TIME_SMOOTHNESS * _sum(time_difference, self.change)
            loss = loss + _WEIGHT_CHANGE * _sum(lambda change: change.abs().mean(), self.change)
        return loss

    @torch.no_grad()
    def hold(self, first: float, last: float) -> None:
        """Give the changes at times outside first..last the values of the nearer of these two."""
        for change in self.change:
            nodes = torch.linspace(0, 1, len(change))
            nearest = (nodes.clamp(first, last) * (len(nodes) - 1)).round().long()
            change.copy_(change[nearest.to(change.device)])

    def _planes_at(self, times: Sequence[float]) -> list[Tensor]:
        """Return the planes [M, 3, C, S, S] of every scale at times, linear between nodes."""
        scales = []
        for space, nodes in zip(self.space, self.change, strict=True):
            places = [time * (len(nodes) - 1) for time in times]
            before = [min(int(place + _SAME_NODE), len(nodes) - 1) for place in places]
            shares = [place - node for place, node in zip(places, before, strict=True)]
            # One index for all times: its gradient is one tensor of the size of all nodes, not one per time.
            index = torch.tensor(before, device=nodes.device)
            change = nodes[index]
            if max(shares) >= _SAME_NODE:
                share = torch.tensor(shares).to(nodes).clamp(min=0)[:, None, None, None, None]
                change = torch.lerp(change, nodes[(index + 1).clamp(max=len(nodes) - 1)], share)
            if change.shape[1:] != space.shape:
                flat = change.flatten(0, 1)
                change = F.interpolate(flat, space.shape[2:], mode="bilinear", align_corners=True)
                change = change.unflatten(0, (len(times), 3))
            scales.append(space + change)
        return scales


class MovingPlanes(nn.Module):
    """Density and colour in a box at times in 0..1, whatever the view; ``plane_sizes`` must be filled in."""

    def __init__(self, config: FieldConfig, n_frames: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        time_size = max(config.time_size or n_frames, 2)
        self.planes = Planes(config.plane_sizes, time_size, config.features, config.change_size, generator)
        self.decoder = Decoder(config.features * len(config.plane_sizes), 0, config, generator)

    def forward(self, points: Tensor, times: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return density [N], colour [N, 3] in 0..1 at points in -1..1, times [N]; None: the anchor's."""
        return self.decoder(self.planes.features(points, times))

    def densities(self, points: Tensor, times: Tensor | None) -> Tensor:
        """Return the density alone, [N]; arguments as `forward`."""
        return self.decoder.densities(self.planes.features(points, times))

    def moved(self, points: Tensor, _times: Tensor) -> Tensor:
        """Return the points: planes change, but know no motion."""
        return points

    def groups(self) -> list[dict]:
        return [
            {"params": [*self.planes.parameters()], "rate": _PLANES_RATE},
            {"params": [*self.decoder.parameters()], "rate": _DECODER_RATE},
        ]

    def regularisation(self, timed: bool) -> Tensor:
        """Return the terms of the loss that look at the field alone; while not ``timed``, at its statics."""
        return self.planes.roughness(timed)

    def hold(self, first: float, last: float) -> None:
        self.planes.hold(first, last)

    def anneal(self, share: float) -> None:
        """Do nothing: there is no motion to make finer."""


class Canonical(nn.Module):
    """A field in one still space, the anchor frame's, and a deformation that takes every time there.

    Source: D-NeRF (Pumarola et al., CVPR 2021) and SV4D (2407.17470). Ours deforms by a grid of offsets, and
    the colour, but not the shape, may change over time: still light shades a turning body. Its interface is
    that of `MovingPlanes`.
    """

    def __init__(self, config: FieldConfig, n_frames: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        sizes, features = config.plane_sizes, config.features
        time_size = max(config.time_size or n_frames, 2)
        self.deformation = OffsetGrids(config.deformation_sizes, n_frames)
        self.shape = Planes(sizes, 0, features, config.change_size, generator)
        self.tint = Planes(sizes[:1], time_size, features, config.change_size, generator)
        self.decoder = Decoder(features * len(sizes), features, config, generator)

    def forward(self, points: Tensor, times: Tensor | None) -> tuple[Tensor, Tensor]:
        place = self.moved(points, times)
        return self.decoder(self.shape.features(place, None), self.tint.features(place, times))

    def densities(self, points: Tensor, times: Tensor | None) -> Tensor:
        return self.decoder.densities(self.shape.features(self.moved(points, times), None))

    def moved(self, points: Tensor, times: Tensor | None) -> Tensor:
        """Return where points are in canonical space, [N, 3]; without times they are there already."""
        return points if times is None else points + self.deformation(points, times)

    def groups(self) -> list[dict]:
        return [
            {"params": [*self.shape.parameters(), *self.tint.parameters()], "rate": _PLANES_RATE},
            {"params": [*self.decoder.parameters()], "rate": _DECODER_RATE},
            {"params": [*self.deformation.parameters()], "rate": MOTION_RATE},
        ]

    def regularisation(self, timed: bool) -> Tensor:
        loss = self.shape.roughness(timed) + self.tint.roughness(timed)
        if not timed:
            return loss
        loss = loss + _WEIGHT_TIME_SMOOTHNESS * self.deformation.acceleration()
        loss = loss + _WEIGHT_SLOPE * self.deformation.slope()
        return loss + _WEIGHT_OFFSET * self.deformation.size()

    def hold(self, first: float, last: float) -> None:
        self.tint.hold(first, last)
        self.deformation.hold(first, last)

    def anneal(self, share: float) -> None:
        """Let the deformation be as fine as the ``share`` 0..1 of the fit allows."""
        self.deformation.share.fill_(share)


def products(scales: Sequence[Tensor], points: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the products of three planes at points [N, 3], one scale after the other, [N, scales * C].

    ``scales`` has planes [M, 3, C, S, S]; the first ``counts[0]`` points are of moment 0, and so on.
    """
    together = pad_sequence([*points.split(counts)], batch_first=True)  # [M, most of counts, 3]
    where = torch.stack([together[..., pair] for pair in PLANE_AXES], dim=1).flatten(0, 1)[:, None]
    read = [sample_planes(planes.flatten(0, 1), where).unflatten(0, (-1, 3)) for planes in scales]
    # The gradient of a chain of products costs a third of that of Tensor.prod.
    found = torch.cat([reduce(torch.mul, planes.unbind(1)) for planes in read], dim=1)
    return torch.cat([one[:, :count] for one, count in zip(found, counts, strict=True)], dim=1).T


def read_by_triton(device: torch.device, channels: int) -> bool:
    """Return whether Triton reads planes on a device, and, on CUDA, log it once."""
    return device.type == "cuda" and kernels.by_triton("Planes are read", device, tiny, channels)


def tiny(channels: int) -> kernels.Try:
    """Return points of two moments in and around planes; of 32 channels, more than are read at once."""
    from .planes_triton import products_triton

    generator = torch.Generator().manual_seed(0)
    planes = (torch.rand(2, 3, channels, size, size, generator=generator) for size in (2, 4))
    points, counts = torch.linspace(-1.3, 1.3, 120).view(3, 40).T, (15, 25)
    return kernels.Try(
        lambda points, *scales: products_triton(scales, points, counts),
        lambda points, *scales: products(scales, points, counts),
        (points, *planes),
    )


def tiny_scene() -> kernels.Try:
    """Return what scenes ask of PyTorch itself: turns, grids of offsets, planes, and wider cells."""

    def work(points: Tensor, planes: Tensor, grid: Tensor, turns: Tensor) -> Tensor:
        turned = (rotations_about(turns) @ points[..., None])[..., 0]
        where = turned[None, None, None]
        offsets = F.grid_sample(grid[None], where, align_corners=True, padding_mode="border")
        wider = F.max_pool3d(grid.detach()[None], 3, 1, 1).mean()
        return wider * products([planes], turned + offsets[0, :, 0, 0].T, (15, 25))

    generator = torch.Generator().manual_seed(0)
    points = torch.linspace(-1.3, 1.3, 120).view(3, 40).T
    planes, grid = (torch.rand(shape, generator=generator) for shape in ((2, 3, 4, 4, 4), (3, 3, 3, 3)))
    return kernels.Try(work, work, (points, planes, grid, 0.3 * points.flip(0)))


def _sum(term: Callable[[Tensor], Tensor], planes: Iterable[Tensor]) -> Tensor:
    return torch.stack([term(plane) for plane in planes]).sum()
