"""Fits deformable Gaussians to views: what a step renders, what it compares, and when dead ones move."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ...cameras import DEFAULT_RADIUS
from ...stored import Tensors
from ...views import ViewGrid
from ..config import RefineConfig
from ..geometry.hull import HullDistance, Occupancy, visual_hull
from ..losses import dissimilarity, mask_loss, second_difference, total_variation
from ..schedule import FRAMES, Step, anchor_frame, shuffled
from .gaussians import CanonicalGaussians, Gaussians
from .splat_torch import GaussiansAt, rotations
from .splatting import splat

_OPACITY, _SCALE = 0.5, 0.7  # of a Gaussian at the start; its scale in distances between neighbours
# Limits of scales, in those at the start: large flat ones look right only from the given views.
_SMALLEST_SCALE, _LARGEST_SCALE = 0.2, 4.0
_FACING_POWER = 4  # how much more a view that faces the surface counts for the colour at the start
# Steps between two moves of dead Gaussians, the share of stage 1 that has any, and the opacity of a dead one.
_RELOCATE_EVERY, _RELOCATE_UNTIL, _DEAD_OPACITY = 200, 0.6, 0.01
_MOST_COPIES = 8  # Gaussians that may come to share one place in one move
_MAX_OPACITY = 0.99
_SPREAD = 0.5  # how far copies stand apart, in scales of the original
_PICTURES_PER_STEP = FRAMES["gaussians"]  # rendered: one of each frame of its draw
# First share of the dynamic steps, for the motion alone: else what is known of the anchor is averaged.
_MOTION_ALONE = 0.15
# Learning rates at step 0: of means in world units with cameras at 2, of logarithms of scales, of logits.
_RATES = {"means": 2e-3, "quats": 1e-2, "log_scales": 2e-2, "opacities": 5e-2, "colours": 5e-2}
_PLANES_RATE, _DECODER_RATE = 2e-2, 2e-3
# Terms on pictures (3DGS, and the mask), on places (distance from the frame's hull in cells; change of the
# distances to so many neighbours), on the planes of the deformation (K-Planes).
_WEIGHT_COLOUR, _WEIGHT_DISSIMILARITY, _WEIGHT_MASK = 0.8, 0.2, 0.5
_WEIGHT_HULL, _WEIGHT_ISOMETRY, _NEIGHBOURS = 0.1, 0.02, 8
_WEIGHT_PLANES, _WEIGHT_TIME_SMOOTHNESS = 1e-3, 0.05
_ROWS = 2048  # of a table of distances that are computed together


@torch.no_grad()
def relocate(
    canonical: CanonicalGaussians,  # changed in place
    dead: Tensor,  # [N] bool
    generator: torch.Generator,  # on the CPU
    optimizer: torch.optim.Optimizer | None = None,  # an Adam of these parameters
) -> int:
    """Move dead Gaussians onto live ones, drawn by their opacity, and return how many moved.

    Copies are spread: at one place they would stay alike for good. Adam's moments of all start from 0 again.
    Source: 3DGS-MCMC (Kheradmand et al. 2024, 2404.09591), whose code clears those of the originals only.
    """
    # Not on the device: Apple's GPUs have no float64.
    opacities = canonical.opacities.sigmoid().cpu().double()
    moved = dead.nonzero()[:, 0]
    chances = opacities.masked_fill(dead.cpu(), 0)
    if not len(moved) or float(chances.sum()) <= 0:
        return 0
    onto = torch.multinomial(chances, len(moved), replacement=True, generator=generator)
    sharing = (1 + torch.bincount(onto, minlength=len(dead))).clamp(max=_MOST_COPIES)
    touched = (sharing > 1).nonzero()[:, 0]
    opacity, factor = shared(opacities[touched].clamp(max=_MAX_OPACITY), sharing[touched])
    canonical.opacities[touched] = opacity.logit().to(canonical.opacities)
    canonical.log_scales[touched] += factor.log()[:, None].to(canonical.log_scales)
    for parameter in canonical.parameters():
        parameter[moved] = parameter[onto]
    spread = _SPREAD * torch.randn(len(moved), 3, generator=generator).to(canonical.means)
    axes = rotations(canonical.quats[moved]) * canonical.log_scales[moved].exp()[:, None]
    canonical.means[moved] += (axes @ spread[..., None])[..., 0]
    for parameter in canonical.parameters():
        moments = {} if optimizer is None else optimizer.state.get(parameter, {})
        for name in moments.keys() & {"exp_avg", "exp_avg_sq"}:
            moments[name][torch.cat([touched.to(moved.device), moved])] = 0
    return len(moved)


def shared(opacities: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Return the opacities [N] of 1..8 equal copies that look like the one, and factors of their scales."""
    each = 1 - (1 - opacities) ** (1 / copies)
    total = torch.zeros_like(opacities)
    for m in range(1, _MOST_COPIES + 1):
        # The double sum of equation 9, its inner index summed by the hockey-stick identity.
        ways = copies.new_tensor([math.comb(c, m) for c in range(_MOST_COPIES + 1)])[copies]
        total += (-1) ** (m + 1) * ways * each**m / math.sqrt(m)
    return each, opacities / total


def start_on_hull(
    views: ViewGrid, hull: Occupancy, frame: int, count: int, generator: torch.Generator
) -> tuple[CanonicalGaussians, float]:
    """Return ``count`` Gaussians on the hull of a frame, on its device, and their scale, world units."""
    cells, normals = _surface(hull.cells[frame])
    size = hull.cells.shape[-1]
    chosen = shuffled(len(cells), count, generator).to(cells.device)
    jitter = torch.rand(count, 3, generator=generator).to(cells.device)
    low, high = hull.box
    means = low + (cells[chosen].flip(-1) + jitter) / size * (high - low)
    outward = F.normalize(normals[chosen] / (high - low), dim=-1)
    # Each stands for its share of the surface, which is about one face per cell.
    cell = float((high - low).prod() ** (1 / 3)) / size
    scale = _SCALE * cell * (len(cells) / count) ** 0.5
    return CanonicalGaussians(means, scale, _OPACITY, _colours(means, outward, views, frame)), scale


def _surface(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices z, y, x [N, 3] of cells [G, G, G] next to empty ones, and outward x, y, z."""
    full = F.pad(cells.float(), [1] * 6)
    below, above = (
        torch.stack([full.roll(shift, dims=axis)[1:-1, 1:-1, 1:-1] for axis in (0, 1, 2)])
        for shift in (1, -1)
    )
    indices = (cells & ((below == 0) | (above == 0)).any(0)).nonzero()
    smooth = F.avg_pool3d(full[None, None], 5, 1, 2)[0, 0]
    slopes = torch.stack([smooth.roll(1, axis) - smooth.roll(-1, axis) for axis in (2, 1, 0)], dim=-1)
    return indices, slopes[1:-1, 1:-1, 1:-1][tuple(indices.T)]


def _colours(means: Tensor, outward: Tensor, views: ViewGrid, frame: int) -> Tensor:
    """Return the colours of points [N, 3] in the views that their surface faces; grey where there is none."""
    images, masks = views.one_frame(frame)
    assert masks is not None
    size = images.shape[1]
    total, weight = torch.zeros_like(means), torch.zeros_like(means[:, :1])
    for view, matrix in enumerate(views.cameras.intrinsics(size) @ views.cameras.w2c_opencv()[:, :3]):
        projected = means @ matrix[:, :3].T.to(means) + matrix[:, 3].to(means)
        places = (projected[:, :2] / projected[:, 2:].clamp(min=1e-6) / size * 2 - 1)[None, None]
        picture = torch.cat([images[view], masks[view, ..., None]], dim=-1).to(means).movedim(-1, 0)
        seen = F.grid_sample(picture[None], places, align_corners=False)[0, :, 0].T  # [N, 4]
        to_eye = F.normalize(views.cameras.eyes()[view].to(means) - means, dim=-1)
        facing = (to_eye * outward).sum(-1, keepdim=True).clamp(min=0) ** _FACING_POWER
        counts = (facing + 1e-4) * (projected[:, 2:] > 0) * seen[:, 3:] ** 2
        total, weight = total + counts * seen[:, :3], weight + counts
    return (total + 1e-8 * 0.5) / (weight + 1e-8)


class GaussiansFit:
    """A `Gaussians` scene that is being fitted; arguments, errors and methods are those of `DyNeRFFit`.

    The loss of a picture is that of 3DGS (Kerbl et al. 2023, equation 7) with a mask; what keeps the motion
    smooth follows K-Planes (2301.10241, section 4.2) and Dynamic 3D Gaussians (2308.09713, isometry).
    """

    def __init__(
        self,
        views: ViewGrid,
        config: RefineConfig,
        device: torch.device | str,
        generator: torch.Generator,
        perceptual: None = None,
    ) -> None:
        assert views.masks is not None
        # The fit is the same in any unit of the world.
        self._unit = views.cameras.radius / DEFAULT_RADIUS
        gaussians = replace(config.gaussians, move_scale=config.gaussians.move_scale * self._unit)
        self._config, self._device, self._generator = config, torch.device(device), generator
        hull = visual_hull(views.masks.to(device), views.cameras, config.hull_size)
        self._hull = HullDistance(hull)
        self._times = views.frame_times()
        count = config.gaussians.count_for(views.images.shape[2])
        canonical, scale = start_on_hull(views, hull, anchor_frame(views.masks), count, generator)
        limits = (_SMALLEST_SCALE * scale, _LARGEST_SCALE * scale)
        self.scene = Gaussians(
            canonical, hull.box, limits, views.cameras, views.fps, self._times, gaussians, generator
        )
        self.scene.parts.to(device)
        self._neighbours = nearest(self.scene.canonical.means, _NEIGHBOURS)

    def groups(self) -> list[dict]:
        canonical, deformation = self.scene.canonical, self.scene.deformation
        rates = {**_RATES, "means": _RATES["means"] * self._unit}
        groups = [{"params": [getattr(canonical, name)], "rate": rate} for name, rate in rates.items()]
        decoder = [*deformation.trunk.parameters(), *deformation.head.parameters()]
        return [
            *groups,
            {"params": [*deformation.space, *deformation.time], "rate": _PLANES_RATE},
            {"params": decoder, "rate": _DECODER_RATE},
        ]

    def aim(self, views: ViewGrid, weights: Tensor, normals: Tensor | None = None) -> None:
        assert views.masks is not None
        self._cameras, self._size = views.cameras, views.images.shape[2]
        self._images, self._masks, self._weights = (
            x.to(self._device) for x in (views.images, views.masks, weights)
        )

    def prepare(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        """Let new frames start from known ones; move dead Gaussians when it is time, find neighbours anew."""
        if step.known is not None:
            self.scene.deformation.hold(*(self._times[frame] for frame in step.known))
        if step.number == 0 or step.number % _RELOCATE_EVERY:
            return
        if step.number <= _RELOCATE_UNTIL * self._config.stage_one_steps:
            relocate(self.scene.canonical, self.dead(step.timed), self._generator, optimizer)
        self._neighbours = nearest(self.scene.canonical.means, _NEIGHBOURS)

    @torch.no_grad()
    def dead(self, timed: bool) -> Tensor:
        """Return which Gaussians are nearly transparent or outside the hull at every frame, [N] bool."""
        still, hull = self.scene.at_time(None), self._hull.hull
        alive = torch.zeros_like(still.opacities, dtype=torch.bool)
        for frame, time in enumerate(self._times):
            now = self.scene.at_time(time) if timed else still
            alive |= (now.opacities >= _DEAD_OPACITY) & hull.contains(hull.to_unit(now.means), frame)
        return ~alive

    def accumulate(self, step: Step, frames: Tensor) -> float:
        """Add the gradients of one step to the parameters and return its loss, NaN where these diverged."""
        if not all(parameter.detach().sum().isfinite() for parameter in self.scene.canonical.parameters()):
            return math.nan
        pictures = self._pictures(frames, step.n_views)
        total = torch.zeros((), device=self._device)
        if step.timed:
            roughness = self._roughness()
            roughness.backward()
            total = total + roughness.detach()
        for frame in sorted({frame for frame, _ in pictures}):
            gaussians = self.scene.at_time(self._times[frame] if step.timed else None)
            views = [view for other, view in pictures if other == frame]
            seen = torch.stack([self._picture_loss(gaussians, frame, view) for view in views]).sum()
            share = len(views) / len(pictures)
            loss = seen / len(pictures) + share * self._motion_loss(gaussians, frame, step.timed)
            # One frame's graph at a time.
            loss.backward()
            total = total + loss.detach()
        moving = step.number - self._config.steps_static
        if step.timed and moving < _MOTION_ALONE * self._config.steps:
            self.scene.canonical.zero_grad(set_to_none=True)
        return float(total)

    def tensors(self) -> dict[str, Tensor]:
        parameters = {key: value.clone() for key, value in self.scene.parts.state_dict().items()}
        return {**parameters, "neighbours": self._neighbours.clone()}

    def restore(self, tensors: Tensors) -> None:
        """Go on from what `tensors` returned; ValueError where it is of other sizes."""
        tensors.check_like(self.tensors())
        if (
            not 0
            <= int(tensors["neighbours"].min())
            <= int(tensors["neighbours"].max())
            < len(self._neighbours)
        ):
            raise ValueError("Expected neighbours among the Gaussians; the state is damaged. Start anew.")
        self._neighbours = tensors["neighbours"].to(self._device)
        self.scene.parts.load_state_dict({key: x for key, x in tensors.items() if key != "neighbours"})

    def _pictures(self, frames: Tensor, n_views: int) -> list[tuple[int, int]]:
        """Return frames and views of a step: one picture of each frame, more of one that is alone."""
        pairs = []
        for frame in frames.tolist():
            others = 1 + torch.randperm(self._cameras.n_views, generator=self._generator)
            views = torch.cat([others.new_zeros(1), others[: max(n_views - 1, 0)]])
            order = torch.randperm(len(views), generator=self._generator)
            pairs.append([(frame, view) for view in views[order].tolist()])
        # All frames' first pictures, then all their second ones.
        spread = [pair for turn in zip(*pairs, strict=True) for pair in turn]
        return spread[:_PICTURES_PER_STEP]

    def _picture_loss(self, gaussians: GaussiansAt, frame: int, view: int) -> Tensor:
        seen = splat(gaussians, self._cameras, view, self._size)
        target, weights = self._images[frame, view], self._weights[frame, view]
        loss = _WEIGHT_COLOUR * (weights * (seen.rgb - target).abs().mean(-1)).mean()
        loss = loss + _WEIGHT_MASK * mask_loss(seen.alpha, self._masks[frame, view])
        # Where the target counts less it is mixed with what is there, which asks for less change.
        mixed = torch.lerp(seen.rgb.detach(), target, weights.clamp(0, 1)[..., None])
        return loss + _WEIGHT_DISSIMILARITY * dissimilarity(seen.rgb[None], mixed[None])

    def _motion_loss(self, gaussians: GaussiansAt, frame: int, timed: bool) -> Tensor:
        means, still = gaussians.means, self.scene.canonical.means
        loss = _WEIGHT_HULL * self._hull(means, frame).square().mean()
        if not timed:
            return loss
        before = (still[self._neighbours] - still[:, None]).norm(dim=-1)
        after = (means[self._neighbours] - means[:, None]).norm(dim=-1)
        return loss + _WEIGHT_ISOMETRY * ((after - before) / before.detach().mean()).square().mean()

    def _roughness(self) -> Tensor:
        deformation = self.scene.deformation
        variation = torch.stack([total_variation(p) for p in deformation.space]).sum()
        bends = torch.stack([second_difference(p.flatten(0, 1)) for p in deformation.time]).sum()
        return _WEIGHT_PLANES * variation + _WEIGHT_TIME_SMOOTHNESS * bends


@torch.no_grad()
def nearest(points: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` nearest other points of points [N, 3], [N, min(count, N - 1)]."""
    count = min(count, len(points) - 1)
    found = []
    for first in range(0, len(points), _ROWS):
        rows = points[first : first + _ROWS]
        distances = torch.cdist(rows, points)
        own = torch.arange(len(rows), device=points.device)
        distances[own, first + own] = torch.inf
        found.append(distances.topk(count, largest=False).indices)
    return torch.cat(found)
