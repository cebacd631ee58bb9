"""One step of fitting a `DyNeRF`: which rays are followed, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ...cameras import DEFAULT_RADIUS
from ...stored import Tensors
from ...views import ViewGrid
from ..config import PATCH, RefineConfig
from ..geometry.hull import Occupancy, visual_hull
from ..losses import alpha_entropy, mask_loss, mean_squared
from ..schedule import Step, anchor_frame
from .dynerf import DyNeRF
from .rays import Perceptual, RayPool, patch_loss

_FINEST_PLANES = 256  # nodes along an axis, at most, whatever the picture size
_OCCUPANCY_EVERY, _LEAST_OPACITY = 256, 0.01  # dynamic steps; opacity from which a cell counts as filled
_CHUNK = 1 << 17  # points that the field is asked for together: bounds the memory
_ANNEALED = 0.3  # share of the dynamic steps after which all of a deformation's scales are on
_SMOOTH_EVERY = 4  # steps between two uses of the terms on the field alone; they count more then
_WEIGHT_MASK, _WEIGHT_ENTROPY = 0.1, 1e-3
# Of even colours, where views are not exact and disagree; a deviation in halves of the box.
_WEIGHT_ALBEDO, _ASIDE = 0.3, 0.03
_PATCH_START = 0.2  # share of stage 1 after which each step that compares patches draws one
# Sides of a patch for a perceptual distance, pixels, and the least for it: LPIPS needs room.
_PERCEPTUAL_PATCH, _LEAST_PERCEPTUAL_PATCH = 64, 32


class DyNeRFFit:
    """A `DyNeRF` fitted along rays that meet the hull; ValueError for contradictory or too small pictures."""

    def __init__(
        self,
        views: ViewGrid,  # checked, with masks
        config: RefineConfig,
        device: torch.device | str,
        generator: torch.Generator,  # on the CPU, of the initial values and of every draw
        perceptual: Perceptual | None = None,  # distance of patches, in place of SSIM
    ) -> None:
        assert views.masks is not None
        size = views.images.shape[2]
        if perceptual is not None and size < _LEAST_PERCEPTUAL_PATCH:
            raise ValueError(
                f"Expected pictures of at least {_LEAST_PERCEPTUAL_PATCH} pixels for a perceptual distance "
                f"such as LPIPS; got {size}. Raise the size, or leave the distance out."
            )
        self._patch_side = PATCH if perceptual is None else min(_PERCEPTUAL_PATCH, size)
        needed = config.memory_for(self._patch_side**2)
        if perceptual is not None and 0 < config.memory_gb < needed:
            raise ValueError(
                f"Expected a memory_gb of at least {needed:.2g} for a perceptual distance such as LPIPS: it "
                f"compares patches of {self._patch_side} pixels; got {config.memory_gb:g}. Raise it, or "
                f"leave the distance out."
            )
        finest = min(max(size // 2, 8), _FINEST_PLANES)
        sizes = config.plane_sizes or (finest // 4, finest // 2, finest)
        # The fit is the same in any unit of the world.
        density_scale = config.density_scale * DEFAULT_RADIUS / views.cameras.radius
        config = replace(config, plane_sizes=sizes, density_scale=density_scale)
        self._hull = visual_hull(views.masks.to(device), views.cameras, config.hull_size)
        times = views.frame_times()
        self.scene = DyNeRF(self._hull, views.cameras, views.fps, times, config, generator)
        self.scene.field.follow(self._hull, anchor_frame(views.masks), times, config.follow)
        self._config, self._device, self._generator = config, torch.device(device), generator
        self._perceptual = perceptual

    def groups(self) -> list[dict]:
        """Return the optimiser's groups: ``params``, and ``rate`` for the learning rate at step 0."""
        return self.scene.field.groups()

    def aim(
        self,
        views: ViewGrid,  # checked; the frames never change, the cameras and the picture size may
        weights: Tensor,  # [T, V + 1, H, W] how much a pixel's colour counts
        normals: Tensor | None = None,  # [T, V + 1, H, W, 3] in the camera's OpenGL axes, 0 where not known
    ) -> None:
        """Fit to these views from now on."""
        self._pool = RayPool(views, weights, self._hull, self._device, normals)
        self._on_patches = self._perceptual is not None or normals is not None

    def prepare(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        """Look again where the scene is dense, and let frames that come in start from their neighbours."""
        scene, dynamic = self.scene, step.number - self._config.steps_static
        if dynamic > 0 and dynamic % _OCCUPANCY_EVERY == 0:
            scene.occupancy = dense_cells(scene, self._hull, step.allowed)
        scene.field.field.anneal(min(max(dynamic, 0) / (_ANNEALED * self._config.steps), 1.0))
        if step.known is not None:
            scene.field.field.hold(*(scene.times[frame] for frame in step.known))

    def accumulate(self, step: Step, frames: Tensor) -> float:
        """Add the gradients of one step to the parameters and return the loss of its pictures."""
        config, pool, generator = self._config, self._pool, self._generator
        rays, target = pool.draw(frames, step.n_views, config.rays_per_step, generator, step.timed)
        count = len(rays.frames)
        jitter = torch.rand(count, config.samples, generator=generator).to(self._device)
        if config.weight_by_trust:
            aside = _ASIDE * torch.randn(count, 3, generator=generator).to(self._device)
        total = torch.zeros((), device=self._device)
        for part in torch.arange(count, device=self._device).split(config.rays_in_memory or count):
            here, goal = rays.at(part), target.at(part)
            colours, opacities, distances = self.scene.follow(here, jitter[part])
            loss = mean_squared(colours, goal.colours, goal.weights)
            loss = loss + _WEIGHT_MASK * mask_loss(opacities, goal.opacities)
            loss = loss + _WEIGHT_ENTROPY * alpha_entropy(opacities)
            if config.weight_by_trust:  # the views are not exact
                places = here.origins + distances.detach()[:, None] * here.directions
                loss = loss + _WEIGHT_ALBEDO * self._unevenness(places, here.times, aside[part], opacities)
            total += _backward(loss * (len(part) / count))
        if self._on_patches and step.number >= _PATCH_START * config.stage_one_steps:
            total += _backward(self._patch(step, frames))
        if step.number % _SMOOTH_EVERY == 0:
            _backward(_SMOOTH_EVERY * self.scene.field.field.regularisation(step.timed))
        return float(total)

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of everything but the optimiser that decides how the fit goes on."""
        field = {f"field.{key}": value.clone() for key, value in self.scene.field.state_dict().items()}
        return {**field, "cells": self.scene.occupancy.cells.clone()}

    def restore(self, tensors: Tensors) -> None:
        """Go on from what `tensors` returned; ValueError where it is of other sizes."""
        tensors.check_like(self.tensors())
        self.scene.field.load_state_dict(tensors.under("field."))
        self.scene.occupancy = Occupancy(tensors["cells"].bool().to(self._device), self._hull.box)

    def _unevenness(self, places: Tensor, times: Tensor | None, aside: Tensor, opacities: Tensor) -> Tensor:
        """Return how colours at world places [R, 3] of the surface differ from those ``aside`` [R, 3].

        Source: SV3D (2403.12008), albedo smoothness; here as far as the rays that meet the places are opaque.
        """
        unit, colours = self._hull.to_unit(places), self.scene.field.colours
        return mean_squared(colours(unit, times), colours(unit + aside, times), opacities.detach())

    def _patch(self, step: Step, frames: Tensor) -> Tensor:
        side = min(self._patch_side, self._pool.size)
        rays, target = self._pool.draw_patch(frames, side, self._generator, step.timed)
        colours, opacities, distances = self.scene.follow(rays)
        points = rays.origins + distances[:, None] * rays.directions
        maps = (x.unflatten(0, (1, side, side)) for x in (colours, opacities, distances, points))
        return patch_loss(*maps, target=target.as_patch(side), perceptual=self._perceptual)


def _backward(loss: Tensor) -> Tensor:
    """Add a part's gradients and return its value."""
    loss.backward()
    return loss.detach()


@torch.no_grad()
def dense_cells(scene: DyNeRF, hull: Occupancy, frames: Sequence[int]) -> Occupancy:
    """Return the hull's cells that the scene fills, and their neighbours; frames not fitted keep the hull."""
    size = ((hull.box[1] - hull.box[0]) / hull.cells.shape[-1]).mean()
    centres = hull.centres().flatten(0, 2)
    cells = torch.zeros_like(hull.cells)
    for t, time in enumerate(scene.times):
        if t not in frames:
            cells[t] = hull.cells[t]
            continue
        index = hull.cells[t].flatten().nonzero()[:, 0]
        parts = centres[index].split(_CHUNK)
        densities = [scene.field.densities(part, torch.full_like(part[:, 0], time)) for part in parts]
        cells[t].view(-1)[index] = 1 - torch.exp(-torch.cat(densities) * size) >= _LEAST_OPACITY
    wider = F.max_pool3d(cells[:, None].float(), 3, 1, 1)[:, 0] > 0
    return Occupancy(wider & hull.cells, hull.box)
