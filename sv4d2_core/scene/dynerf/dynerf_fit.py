"""One step of fitting a `DyNeRF`: which rays are followed, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...files import tensors_under
from ...views import ViewGrid
from ..config import RefineConfig
from ..geometry.hull import Occupancy, visual_hull
from ..losses import alpha_entropy, charbonnier, mask_loss, mean_squared, resized_normals
from ..schedule import Step, anchor_frame
from .dynerf import DyNeRF
from .rays import PatchLoss, RayPool

_CHUNK = 1 << 17


@torch.no_grad()
def dense_cells(
    scene: DyNeRF, hull: Occupancy, least_opacity: float, frames: Sequence[int] | None = None
) -> Occupancy:
    """Return the cells of the hull that the scene fills, and their neighbours within the hull.

    Args:
        scene: any state of a fit.
        hull: one set of cells per frame of the scene; nothing outside is ever filled.
        least_opacity: of one cell's width, from which a cell counts as filled.
        frames: those that have been fitted; the others keep the hull. None: all.
    """
    size = ((hull.box[1] - hull.box[0]) / hull.cells.shape[-1]).mean()
    centres = hull.centres().flatten(0, 2)
    cells = torch.zeros_like(hull.cells)
    for t, time in enumerate(scene.times):
        if frames is not None and t not in frames:
            cells[t] = hull.cells[t]
            continue
        index = hull.cells[t].flatten().nonzero()[:, 0]
        filled = torch.cat([_density(scene, part, time) for part in centres[index].split(_CHUNK)] or [index])
        cells[t].view(-1)[index] = 1 - torch.exp(-filled * size) >= least_opacity
    wider = F.max_pool3d(cells[:, None].float(), 3, 1, 1)[:, 0] > 0
    return Occupancy(wider & hull.cells, hull.box)


def _density(scene: DyNeRF, points: torch.Tensor, time: float) -> torch.Tensor:
    return scene.field.densities(points, torch.full_like(points[:, 0], time))


# All of a deformation's scales are on when this share of the dynamic steps is done.
_ANNEALED = 0.3
_PHOTOMETRIC = {"mse": mean_squared, "charbonnier": charbonnier}


class DyNeRFFit:
    """A `SceneFit` of rays that start near the visual hull.

    Args:
        views: checked, with masks.
        config: with plane sizes.
        device: where the scene is fitted.
        generator: on the CPU, of the initial values and of every draw.
        patch_loss: the terms that need pixels side by side.
    """

    def __init__(
        self,
        views: ViewGrid,
        config: RefineConfig,
        device: torch.device | str,
        generator: torch.Generator,
        patch_loss: PatchLoss,
    ) -> None:
        assert views.masks is not None
        self._hull = visual_hull(
            views.masks.to(device), views.cameras, config.hull_size, config.hull_dilation, config.hull_misses
        )
        times = views.frame_times()
        self.scene = DyNeRF.untrained(self._hull, views.cameras, views.fps, times, config, generator)
        self.scene.field.follow(self._hull, anchor_frame(views.masks), times, config.follow)
        self._config, self._device, self._patch_loss = config, torch.device(device), patch_loss
        self._generator = generator
        self._photometric = _PHOTOMETRIC[config.photometric]
        self.aim(views, torch.ones(views.images.shape[:4]))

    def groups(self) -> list[dict]:
        """Return the optimiser's groups."""
        return self.scene.field.groups(self._config)

    def aim(self, views: ViewGrid, weights: Tensor, normals: Tensor | None = None) -> None:
        """Fit to these views from now on; see `SceneFit`."""
        self._target = views, weights, normals
        self._pool: RayPool | None = None

    def prepare(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        """Look again where the scene is dense, and let frames that come in start from their neighbours."""
        config, dynamic = self._config, step.number - self._config.steps_static
        if config.occupancy_every and dynamic > 0 and dynamic % config.occupancy_every == 0:
            self.scene.occupancy = dense_cells(self.scene, self._hull, config.occupancy_opacity, step.allowed)
        self.scene.field.anneal(min(max(dynamic, 0) / (_ANNEALED * config.steps), 1.0))
        if step.known is not None:
            self.scene.field.hold(*(self.scene.times[frame] for frame in step.known))

    def accumulate(self, step: Step, frames: Tensor) -> float:
        """Add the gradients of one step to the parameters and return the loss of its pictures."""
        config, pool, generator = self._config, self._pixels(step), self._generator
        rays, target = pool.draw(frames, step.n_views, config.rays_per_step, generator, timed=step.timed)
        count = len(rays.frames)
        jitter = torch.rand(count, config.samples, generator=generator).to(self._device)
        total = torch.zeros((), device=self._device)
        for part in torch.arange(count, device=self._device).split(config.rays_in_memory or count):
            colours, opacities, _ = self.scene.follow(rays.at(part), jitter[part])
            goal = target.at(part)
            loss = self._photometric(colours, goal.colours, goal.weights)
            loss = loss + config.weight_mask * mask_loss(opacities, goal.opacities)
            loss = loss + config.weight_entropy * alpha_entropy(opacities)
            total += _backward(loss * (len(part) / count))
        if step.number >= config.patch_start * config.stage_one_steps:
            for _ in range(config.patches_per_step):
                total += _backward(self._patch(step, frames) / config.patches_per_step)
        if step.number % config.smooth_every == 0:
            _backward(config.smooth_every * self.scene.field.regularisation(config, step.timed))
        return float(total)

    def knobs(self) -> str:
        """Return the settings, with their values, that are too high where a fit diverges."""
        config = self._config
        return (
            f"learning_rate ({config.learning_rate:g}) and learning_rate_decoder "
            f"({config.learning_rate_decoder:g})"
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of the field and of the occupied cells."""
        field = {f"field.{key}": value.clone() for key, value in self.scene.field.state_dict().items()}
        return {**field, "cells": self.scene.occupancy.cells.clone()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` returned."""
        self.scene.field.load_state_dict(tensors_under("field.", tensors))
        self.scene.occupancy = Occupancy(tensors["cells"].to(self._device), self._hull.box)

    def _pixels(self, step: Step) -> RayPool:
        """Return the pixels of the picture size that a step uses."""
        views, weights, normals = self._target
        own = views.images.shape[2]
        size = step.size_of(own)
        if self._pool is None or self._pool.size != size:
            if size != own:
                weights = F.interpolate(weights, (size, size), mode="area")
                normals = None if normals is None else resized_normals(normals, size)
            self._pool = RayPool(views.resized(size), weights, self._hull, self._device, normals)
        return self._pool

    def _patch(self, step: Step, frames: Tensor) -> Tensor:
        """Return the terms of one patch, which is drawn as rays are."""
        pool = self._pixels(step)
        side = min(self._config.patch_size, pool.size)
        if self._config.rays_in_memory:
            side = min(side, math.isqrt(self._config.rays_in_memory))
        rays, target = pool.draw_patch(frames, side, self._generator, timed=step.timed)
        colours, opacities, distances = self.scene.follow(rays)
        points = rays.origins + distances[:, None] * rays.directions
        maps = (x.unflatten(0, (1, side, side)) for x in (colours, opacities, distances, points))
        return self._patch_loss(*maps, target=target.as_patch(side))


def _backward(loss: Tensor) -> Tensor:
    """Add a part's gradients and return its value."""
    loss.backward()
    return loss.detach()
