"""Fits deformable Gaussians to views: what a step renders, what it compares, and when dead ones move."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..views import ViewGrid
from .config import RefineConfig
from .fitting import Draw
from .frame_schedule import anchor_frame
from .gaussians import Gaussians
from .gaussians_relocation import relocate
from .gaussians_start import start_on_hull
from .hull import visual_hull
from .hull_distance import HullDistance
from .losses import alpha_entropy, dissimilarity, mask_loss, second_difference, total_variation
from .splatting import GaussiansAt, splat

# Rows of a table of distances that are computed together.
_ROWS = 2048


class GaussiansFit:
    """A `Gaussians` scene that is being fitted; see `SceneFit`.

    Source of the loss: specification of the 4D part, section 2.6.

    Args:
        views: checked, with masks; they make the visual hull that the Gaussians start on.
        config: every number of the procedure; most are in ``config.gaussians``.
        device: where the scene is fitted and stays.
        generator: on the CPU, draws the start.

    Raises:
        ValueError: views without masks, silhouettes that contradict each other.
    """

    def __init__(
        self,
        views: ViewGrid,
        config: RefineConfig,
        device: torch.device | str,
        generator: torch.Generator,
    ) -> None:
        if views.masks is None:
            raise ValueError("Expected views with masks; got none.")
        own = config.gaussians
        self._config, self._own, self._device = config, own, torch.device(device)
        hull = visual_hull(
            views.masks.to(device), views.cameras, config.hull_size, config.hull_dilation, config.hull_misses
        )
        self._hull = HullDistance(hull)
        self._times = views.frame_times()
        canonical, scale = start_on_hull(views, hull, anchor_frame(views.masks), own, generator)
        self.scene = Gaussians.still(
            canonical,
            hull.box,
            (own.smallest_scale * scale, own.largest_scale * scale),
            views.cameras,
            views.fps,
            self._times,
            own,
            generator,
        ).to(device)
        self._neighbours = nearest(self.scene.canonical.means, own.neighbours)
        self.aim(views, torch.ones(views.images.shape[:4]))

    def groups(self) -> list[dict]:
        """Return the optimiser's groups: ``params``, and ``rate`` for the learning rate at step 0."""
        own, canonical, deformation = self._own, self.scene.canonical, self.scene.deformation
        decoder = [*deformation.trunk.parameters(), *deformation.head.parameters()]
        return [
            {"params": [canonical.means], "rate": own.learning_rate_means},
            {"params": [canonical.quats], "rate": own.learning_rate_quats},
            {"params": [canonical.log_scales], "rate": own.learning_rate_scales},
            {"params": [canonical.opacities], "rate": own.learning_rate_opacities},
            {"params": [canonical.colours], "rate": own.learning_rate_colours},
            {"params": [*deformation.space, *deformation.time], "rate": own.learning_rate_planes},
            {"params": decoder, "rate": own.learning_rate_decoder},
        ]

    def aim(self, views: ViewGrid, weights: Tensor, normals: Tensor | None = None) -> None:
        """Fit to these views from now on; ``weights`` [T, V + 1, H, W] are how much a pixel's colour counts.

        Args:
            views: with masks, at the times of the first ones.
            weights: in 0..1.
            normals: not used.

        Raises:
            ValueError: views without masks, other frames than before, weights of another shape.
        """
        if views.masks is None or views.frame_times() != self._times:
            raise ValueError("Expected views with masks at the times of the first views; got others.")
        if weights.shape != views.images.shape[:4]:
            raise ValueError(
                f"Expected weights {list(views.images.shape[:4])}; got {list(weights.shape)}. Make them for "
                f"these views."
            )
        self._given, self._given_weights, self._size = views, weights, 0

    def prepare(self, draw: Draw) -> None:
        """Let new frames start from known ones; move dead Gaussians when it is time, find neighbours anew."""
        if draw.known is not None:
            self.scene.deformation.hold(*(self._times[frame] for frame in draw.known))
        every = self._own.relocate_every
        if not every or draw.step == 0 or draw.step % every:
            return
        if draw.step <= self._own.relocate_until * self._config.stage_one_steps:
            relocate(self.scene.canonical, self.dead(draw.timed), draw.generator)
        self._neighbours = nearest(self.scene.canonical.means, self._own.neighbours)

    @torch.no_grad()
    def dead(self, timed: bool) -> Tensor:
        """Return which Gaussians are nearly transparent or outside the hull at every frame, [N] bool.

        Args:
            timed: False: they are taken as they are before they move, and each frame's hull will do.
        """
        still = self.scene.at_time(None)
        alive = torch.zeros_like(still.opacities, dtype=torch.bool)
        for frame, time in enumerate(self._times):
            now = self.scene.at_time(time) if timed else still
            alive |= (now.opacities >= self._own.dead_opacity) & self._hull.contains(now.means, frame)
        return ~alive

    def accumulate(self, draw: Draw) -> float:
        """Add the gradients of one step to the parameters and return its loss, NaN where these diverged."""
        self._use_size(draw.step)
        if not all(parameter.detach().sum().isfinite() for parameter in self.scene.canonical.parameters()):
            return math.nan
        pictures = self._pictures(draw)
        regularisation = self._regularisation(draw.timed)
        regularisation.backward()
        total = regularisation.detach()
        for frame in sorted({frame for frame, _ in pictures}):
            gaussians = self.scene.at_time(self._times[frame] if draw.timed else None)
            views = [view for other, view in pictures if other == frame]
            seen = torch.stack([self._picture_loss(gaussians, frame, view) for view in views]).sum()
            share = len(views) / len(pictures)
            loss = seen / len(pictures) + share * self._motion_loss(gaussians, frame, draw.timed)
            # One frame's graph at a time.
            loss.backward()
            total = total + loss.detach()
        moving = draw.step - self._config.steps_static
        if draw.timed and moving < self._own.motion_alone * self._config.steps:
            self.scene.canonical.zero_grad(set_to_none=True)
        return float(total)

    def knobs(self) -> str:
        """Return the settings, with their values, that are too high where a fit diverges."""
        own = self._own
        names = ("means", "scales", "opacities", "planes", "decoder")
        rates = (f"{name} ({getattr(own, f'learning_rate_{name}'):g})" for name in names)
        return f"the learning rates of gaussians: {', '.join(rates)}"

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of everything but the optimiser that decides how the fit goes on."""
        parameters = {key: value.detach().clone() for key, value in self.scene.state_dict().items()}
        return {**parameters, "neighbours": self._neighbours.clone()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` returned."""
        self.scene.load_state_dict(tensors)
        self._neighbours = tensors["neighbours"].to(self._device)

    def _use_size(self, step: int) -> None:
        """Hold the pictures in the size that a step uses."""
        size = self._config.fitted_size_at(step, self._given.images.shape[2])
        if size == self._size:
            return
        views = self._given.resized(size)
        if views.masks is None:
            raise ValueError("Expected views with masks; got none.")
        weights = F.interpolate(self._given_weights.float(), (size, size), mode="area")
        self._cameras, self._size = views.cameras, size
        self._images, self._masks, self._weights = (
            x.to(self._device) for x in (views.images, views.masks, weights)
        )

    def _pictures(self, draw: Draw) -> list[tuple[int, int]]:
        """Return frames and views of a step: some of the draw's pictures, spread evenly over its frames."""
        novel = self._cameras.n_views
        pairs = []
        for frame in draw.frames.tolist():
            others = 1 + torch.randperm(novel, generator=draw.generator)[: max(draw.n_views - 1, 0)]
            views = torch.cat([others.new_zeros(1), others])
            order = torch.randperm(len(views), generator=draw.generator)
            pairs.append([(frame, view) for view in views[order].tolist()])
        # All frames' first pictures, then all their second ones.
        spread = [pair for turn in zip(*pairs, strict=True) for pair in turn]
        return spread[: self._own.pictures_per_step]

    def _picture_loss(self, gaussians: GaussiansAt, frame: int, view: int) -> Tensor:
        own = self._own
        seen = splat(*gaussians, self._cameras, view, self._size)
        target, weights = self._images[frame, view], self._weights[frame, view]
        loss = own.weight_colour * (weights * (seen.rgb - target).abs().mean(-1)).mean()
        loss = loss + own.weight_mask * mask_loss(seen.alpha, self._masks[frame, view])
        # Where the target counts less it is mixed with what is there, which asks for less change.
        mixed = torch.lerp(seen.rgb.detach(), target, weights.clamp(0, 1)[..., None])
        return loss + own.weight_dissimilarity * dissimilarity(seen.rgb[None], mixed[None])

    def _motion_loss(self, gaussians: GaussiansAt, frame: int, timed: bool) -> Tensor:
        """Return what the places of the Gaussians at one frame cost."""
        own, means = self._own, gaussians.means
        loss = own.weight_hull * self._hull(means, frame).square().mean()
        if not timed:
            return loss
        still = self.scene.canonical.means
        before = (still[self._neighbours] - still[:, None]).norm(dim=-1)
        after = (means[self._neighbours] - means[:, None]).norm(dim=-1)
        isometry = ((after - before) / before.detach().mean()).square().mean()
        offset = (means - still).square().sum(-1).mean()
        return loss + own.weight_isometry * isometry + own.weight_offset * offset

    def _regularisation(self, timed: bool) -> Tensor:
        own, deformation = self._own, self.scene.deformation
        loss = own.weight_entropy * alpha_entropy(self.scene.canonical.opacities.sigmoid())
        if not timed:
            return loss
        loss = loss + own.weight_planes * torch.stack([total_variation(p) for p in deformation.space]).sum()
        roughness = torch.stack([second_difference(p.flatten(0, 1)) for p in deformation.time]).sum()
        return loss + own.weight_time_smoothness * roughness


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
