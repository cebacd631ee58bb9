"""The refiner's first stage: a `DyNeRF` fitted to a grid of views."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..views import ViewGrid
from .config import RefineConfig
from .dynerf import DyNeRF
from .frame_schedule import allowed_frames, anchor_frame, draw_frames, motion_is_large
from .hull import Occupancy, visual_hull
from .losses import (
    alpha_entropy,
    distance_to_one,
    mask_loss,
    mean_squared,
    second_difference,
    total_variation,
)
from .occupied import dense_cells
from .rays import RayPool
from .state import FitState, fit_fingerprint
from .trust import rim_weights, view_trust
from .validate import checked_views

# The rim of a silhouette is 2 pixels wide at this picture size.
_RIM_SIZE = 64
_DEFAULTS = RefineConfig()


@dataclass(frozen=True)
class FitProgress:
    """What a callback hears of a fit.

    Args:
        phase: ``static`` or ``dynamic``.
        loss: of the step just done.
        scene: being fitted; it may be rendered, and changes with the next step.
        state: returns a copy of the state, to be saved and resumed from.
    """

    phase: str
    loss: float
    scene: DyNeRF
    state: Callable[[], FitState]


def fit_scene(
    views: ViewGrid,
    config: RefineConfig = _DEFAULTS,
    *,
    callback: Callable[[int, int, FitProgress], None] | None = None,
    device: torch.device | str = "cpu",
    state: FitState | None = None,
) -> DyNeRF:
    """Return the scene that shows what the views show.

    Args:
        views: square pictures of at least two views; without masks the near-white rule makes them.
        config: every number of the procedure.
        callback: called after every step with (steps done, all steps, `FitProgress`); may raise to cancel.
        device: where the scene is fitted and stays.
        state: continue this interrupted fit.

    Raises:
        ValueError: views that cannot be fitted, or a state of another fit; the text says what to change.
        FloatingPointError: the fit diverged; the text says which setting to lower.
    """
    fit = _Fit(checked_views(views), config, device)
    if state is not None:
        fit.restore(state)
    while fit.step < config.total_steps:
        loss = fit.advance()
        if callback is not None:
            callback(fit.step, config.total_steps, FitProgress(fit.phase, loss, fit.scene, fit.state))
    return fit.scene


class _Fit:
    """A fit between two steps."""

    def __init__(self, views: ViewGrid, config: RefineConfig, device: torch.device | str) -> None:
        if views.masks is None:
            raise ValueError("Expected views with masks; got none.")
        config = config.for_pictures(views.images.shape[2])
        self.views, self.config, self.device = views, config, device
        self.step = 0
        self.fingerprint = fit_fingerprint(views, config)
        self.generator = torch.Generator().manual_seed(config.seed)
        hull = visual_hull(
            views.masks.to(device), views.cameras, config.hull_size, config.hull_dilation, config.hull_misses
        )
        self.hull = hull
        self.scene = DyNeRF.untrained(
            hull, views.cameras, views.fps, views.frame_times(), config, self.generator
        )
        field = self.scene.field
        planes = [*field.space, *field.time]
        decoder = [p for name, p in field.named_parameters() if not name.startswith(("space.", "time."))]
        self.optimizer = torch.optim.Adam(
            [
                {"params": planes, "rate": config.learning_rate},
                {"params": decoder, "rate": config.learning_rate_decoder},
            ],
            betas=(0.9, 0.99),
            eps=1e-15,
            fused=True,
        )
        self.anchor = anchor_frame(views.masks)
        self.progressive = config.progressive
        if self.progressive is None:
            self.progressive = motion_is_large(views.masks, self.anchor)
        self._pool: RayPool | None = None

    @property
    def phase(self) -> str:
        """``static`` while the anchor frame is fitted alone, then ``dynamic``."""
        return "static" if self.step <= self.config.steps_static else "dynamic"

    def advance(self) -> float:
        """Do one step and return its loss."""
        config, dynamic = self.config, self.step - self.config.steps_static
        if config.occupancy_every and dynamic > 0 and dynamic % config.occupancy_every == 0:
            self.scene.occupancy = dense_cells(self.scene, self.hull, config.occupancy_opacity)
        falling = config.learning_rate_end ** (self.step / config.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * falling
        loss = self._loss(dynamic)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"The fit diverged: the loss was {value} at step {self.step + 1} of {config.total_steps}. "
                f"Lower learning_rate ({config.learning_rate:g}) and learning_rate_decoder "
                f"({config.learning_rate_decoder:g}), for example to a third."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return value

    def state(self) -> FitState:
        """Return a copy of everything that decides how the fit goes on."""
        tensors = {f"field.{key}": value.clone() for key, value in self.scene.field.state_dict().items()}
        for i, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{key}": value.clone() for key, value in entry.items()}
        tensors |= {"generator": self.generator.get_state(), "cells": self.scene.occupancy.cells.clone()}
        return FitState(self.step, self.fingerprint, tensors)

    def restore(self, state: FitState) -> None:
        """Go on from ``state``.

        Raises:
            ValueError: it belongs to a fit of other views or settings.
        """
        if state.fingerprint != self.fingerprint:
            raise ValueError(
                f"Expected the state of a fit of these views with these settings; got one of another fit, at "
                f"step {state.step}. Start anew, or give the views and settings that it was started with."
            )
        field, optimizer = _under("field.", state.tensors), _under("optimizer.", state.tensors)
        self.scene.field.load_state_dict(field)
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in optimizer.items():
            index, name = key.split(".")
            entries.setdefault(int(index), {})[name] = value.clone()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})
        self.generator.set_state(state.tensors["generator"])
        cells = state.tensors["cells"].to(self.device)
        self.scene.occupancy = Occupancy(cells, self.hull.box)
        self.step = state.step

    def _loss(self, dynamic: int) -> Tensor:
        config, field = self.config, self.scene.field
        timed = dynamic >= 0
        frames = self._frames(dynamic) if timed else torch.tensor([self.anchor])
        n_views = config.views_per_step if timed else self.views.n_views + 1
        rays, target = self._rays().draw(frames, n_views, config.rays_per_step, self.generator, timed=timed)
        jitter = torch.rand(len(rays.frames), config.samples, generator=self.generator).to(self.device)
        colours, opacities = self.scene.follow(rays, jitter)
        loss = mean_squared(colours, target.colours, target.weights)
        loss = loss + config.weight_mask * mask_loss(opacities, target.opacities)
        loss = loss + config.weight_entropy * alpha_entropy(opacities)
        loss = loss + config.weight_planes * _sum(total_variation, field.space)
        if timed:
            loss = loss + config.weight_time_smoothness * _sum(second_difference, field.time)
            loss = loss + config.weight_time_offset * _sum(distance_to_one, field.time)
        return loss

    def _frames(self, dynamic: int) -> Tensor:
        """Return the frames of a dynamic step."""
        n_frames, newest = self.views.n_frames, []
        allowed = list(range(n_frames))
        if self.progressive:
            allowed, newest = allowed_frames(dynamic, self.config.steps, n_frames, self.anchor)
        return draw_frames(allowed, newest, min(self.config.frames_per_step, n_frames), self.generator)

    def _rays(self) -> RayPool:
        """Return the pixels of the picture size that this step uses."""
        own = self.views.images.shape[2]
        size = min(self.config.image_size_at(self.step) or own, own)
        if self._pool is None or self._pool.size != size:
            views = self.views.resized(size)
            self._pool = RayPool(views, self._weights(views), self.hull, self.device)
        return self._pool

    def _weights(self, views: ViewGrid) -> Tensor:
        """Return how much every pixel's colour counts, [T, V + 1, H, W]."""
        if views.masks is None or not self.config.weight_by_trust:
            return torch.ones(views.images.shape[:4])
        rims = rim_weights(views.masks.flatten(0, 1), 2 * views.images.shape[2] / _RIM_SIZE)
        rims = rims.unflatten(0, tuple(views.masks.shape[:2]))
        # The input is exact up to its rim.
        rims[:, 0] = 1
        return rims * view_trust(views.cameras)[None, :, None, None]


def _sum(term: Callable[[Tensor], Tensor], planes: Iterable[Tensor]) -> Tensor:
    """Return a term of the loss summed over the scales of a field."""
    return torch.stack([term(plane) for plane in planes]).sum()


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
