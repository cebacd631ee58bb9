"""A fit between two steps: what it is fitted to, its optimiser, and a state to resume from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..stored import Tensors
from ..views import ViewGrid
from .config import RefineConfig
from .dynerf.dynerf_fit import DyNeRFFit
from .dynerf.rays import Perceptual
from .gaussians.gaussians_fit import GaussiansFit
from .scene import Scene4D
from .schedule import Step, round_of
from .store import FitState, fit_fingerprint
from .targets import RoundTargets, first_weights, resized_normals

_MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam, per parameter
_FITS = {"dynerf": DyNeRFFit, "gaussians": GaussiansFit}


@dataclass(frozen=True)
class FitProgress:
    """What a callback hears of a fit."""

    phase: str  # static, dynamic, then "refine 1" and so on
    loss: float  # of the step just done
    scene: Scene4D  # being fitted, its object in the middle; it changes with the next step
    losses: list[float]  # of all steps so far, those before a resume too
    state: Callable[[], FitState]  # returns a copy of the state, to be saved and resumed from
    views: ViewGrid  # that stage 1 is fitted to, as they were checked and resized, with the elevation
    notes: tuple[str, ...] = ()  # sentences about what was found or chosen


class StepInterrupted(RuntimeError):
    """A step was begun and not ended, so that there is no state to go on from."""


class Fit:
    """A fit between two steps, ``step`` of which are done with ``losses``.

    Raises ValueError for contradictory silhouettes, and Gaussians with normals or a perceptual distance.
    """

    def __init__(
        self,
        views: ViewGrid,  # checked, with masks
        config: RefineConfig,
        device: torch.device | str = "cpu",  # where the scene is fitted and stays
        perceptual: Perceptual | None = None,  # distance of patches, in place of SSIM
        normals: Tensor | None = None,  # of the views, see `DyNeRFFit.aim`
        notes: tuple[str, ...] = (),  # for `FitProgress`
        identity: dict[str, Any] | None = None,  # see `refine_scene`
    ) -> None:
        if config.backend == "gaussians" and (perceptual is not None or normals is not None):
            raise ValueError(
                "Expected neither normals nor a perceptual distance for Gaussians, which are not compared on "
                "patches; got some. Leave them out, or use the backend dynerf."
            )
        self.views, self.config, self.notes = views, config, notes
        self.step, self.losses = 0, list[float]()
        self._within_step = False
        self._fingerprint = fit_fingerprint(views, config, normals, perceptual is not None, identity)
        self._generator = torch.Generator().manual_seed(config.seed)
        self._targets: RoundTargets | None = None
        self._full_size = views, first_weights(views, config), normals  # as they were given
        self._shrink = 0  # how many times smaller than given is what the scene is fitted to; 0: nothing yet
        self._part = _FITS[config.backend](views, config, device, self._generator, perceptual)
        self._optimizer = torch.optim.Adam(self._part.groups(), betas=(0.9, 0.99), eps=1e-15, fused=True)

    @property
    def scene(self) -> Scene4D:
        return self._part.scene

    @property
    def progress(self) -> FitProgress:
        done = max(self.step - 1, 0)
        phase = "static" if done < self.config.steps_static else "dynamic"
        if number := round_of(self.config, done):
            phase = f"refine {number}"
        loss = self.losses[-1] if self.losses else math.nan
        return FitProgress(phase, loss, self.scene, self.losses, self.state, self.views, self.notes)

    def aim(self, targets: RoundTargets) -> None:
        """Fit to the targets of a round of the second stage from now on."""
        self._targets = targets
        views, weights = targets.unpacked(self.views)
        _, _, normals = self._full_size
        if normals is not None:
            # There are none for cameras beyond those of the views.
            normals = normals[:, : self.views.n_views + 1]
            none = torch.zeros_like(normals[:, :1])
            normals = torch.cat([normals, *[none] * (views.n_views - self.views.n_views)], dim=1)
        self._full_size, self._shrink = (views, weights, normals), 0

    def take(self, step: Step) -> None:
        """Do one step; FloatingPointError where the fit diverged."""
        self._within_step = True
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * step.learning_rate
        frames = step.frames(self.views.n_frames, self._generator)
        if step.shrink != self._shrink:
            views, weights, given = self._full_size
            size = views.images.shape[2] // step.shrink
            if step.shrink > 1:
                weights = F.interpolate(weights, (size, size), mode="area")
                given = None if given is None else resized_normals(given, size)
            self._part.aim(views.resized(size), weights, given)
            self._shrink = step.shrink
        self._part.prepare(step, self._optimizer)
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._part.accumulate(step, frames)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The fit diverged: the loss was {loss} at step {step.number + 1} of "
                f"{self.config.total_steps}. Try another seed, or from Python a lower "
                f"learning_rate_factor than {self.config.learning_rate_factor:g}."
            )
        self._optimizer.step()
        self.scene.changed()
        self.losses.append(loss)
        self.step = step.number + 1
        self._within_step = False

    def state(self) -> FitState:
        """Return a copy of everything that decides how the fit goes on; StepInterrupted within a step."""
        if self._within_step:
            raise StepInterrupted(f"Step {self.step + 1} was interrupted; nothing can go on from within.")
        tensors = {f"scene.{key}": value for key, value in self._part.tensors().items()}
        for i, entry in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{key}": value.clone() for key, value in entry.items()}
        tensors |= {"generator": self._generator.get_state(), "losses": torch.tensor(self.losses)}
        cameras = None
        if self._targets is not None:
            cameras, tensors = self._targets.cameras, tensors | self._targets.tensors()
        return FitState(self.step, self._fingerprint, tensors, cameras, self.config.total_steps)

    def restore(self, state: FitState) -> None:
        """Go on from ``state``; ValueError for that of a fit of other views, settings or models."""
        if state.fingerprint != self._fingerprint:
            raise ValueError(
                f"Expected the state of a fit of these views with these settings and models; got one of "
                f"another fit, at step {state.step}. Start anew, or give the views, settings and models that "
                f"it was started with."
            )
        stored = Tensors(state.tensors, "the state of the fit")
        self._part.restore(stored.under("scene."))
        entries: dict[int, dict[str, Tensor]] = {}
        parameters = [one for group in self._optimizer.param_groups for one in group["params"]]
        for i, parameter in enumerate(parameters):
            if f"optimizer.{i}.step" in stored:
                moments = {key: stored.shaped(f"optimizer.{i}.{key}", *parameter.shape) for key in _MOMENTS}
                entries[i] = {key: value.clone() for key, value in moments.items()}
                entries[i]["step"] = stored.shaped(f"optimizer.{i}.step").clone()
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": entries})
        self._generator.set_state(stored.shaped("generator", *self._generator.get_state().shape))
        self.step, self.losses = state.step, stored.shaped("losses", state.step).tolist()
        if state.cameras is not None:
            self.aim(RoundTargets.from_tensors(stored, state.cameras, self.views))
