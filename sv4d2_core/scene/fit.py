"""A fit between two steps: what it is fitted to, its optimiser, and a state to resume from.

What is fitted is a `SceneFit`, of rays (`dynerf_fit.py`) or Gaussians (`gaussians_fit.py`); `schedule.py`
says what the steps are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..files import tensors_under
from ..views import ViewGrid
from .config import RefineConfig
from .dynerf.dynerf_fit import DyNeRFFit
from .dynerf.rays import Perceptual
from .gaussians.gaussians_fit import GaussiansFit
from .scene import Scene4D
from .schedule import Step, round_of
from .store import FitState, fit_fingerprint
from .targets import RoundTargets, first_weights


class SceneFit(Protocol):
    """A scene that is being fitted to views that `checked_views` returned."""

    @property
    def scene(self) -> Scene4D:
        """The scene, which changes with every step."""
        ...

    def groups(self) -> list[dict]:
        """Return the optimiser's groups: ``params``, and ``rate`` for the learning rate at step 0."""
        ...

    def aim(self, views: ViewGrid, weights: Tensor, normals: Tensor | None = None) -> None:
        """Fit to these views from now on.

        Args:
            views: checked, with masks; the frames and the picture size never change, the cameras may.
            weights: [T, V + 1, H, W] how much a pixel's colour counts.
            normals: [T, V + 1, H, W, 3] unit in the camera's OpenGL axes, 0 where not known, or None.
        """
        ...

    def prepare(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        """Do what is due before a step: refresh, prune, move. The shapes of parameters stay the same."""
        ...

    def accumulate(self, step: Step, frames: Tensor) -> float:
        """Add the gradients of a step on frames [F] to the parameters and return its loss."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of everything but the optimiser that decides how the fit goes on."""
        ...

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` returned."""
        ...


_FITS = {"dynerf": DyNeRFFit, "gaussians": GaussiansFit}


@dataclass(frozen=True)
class FitProgress:
    """What a callback hears of a fit.

    Args:
        phase: ``static``, ``dynamic``, then ``refine 1`` and so on.
        loss: of the step just done.
        scene: being fitted, its object in the middle; it may be rendered, and changes with the next step.
        losses: of all steps so far, those before a resume too.
        state: returns a copy of the state, to be saved and resumed from.
        views: that the first stage is fitted to, as they were checked and resized, with the elevation.
        notes: sentences about what was found or chosen.
    """

    phase: str
    loss: float
    scene: Scene4D
    losses: list[float]
    state: Callable[[], FitState]
    views: ViewGrid
    notes: tuple[str, ...] = ()


class Fit:
    """A fit between two steps.

    Args:
        views: checked, with masks.
        config: the settings.
        device: where the scene is fitted and stays.
        perceptual: distance of patches, in place of SSIM.
        normals: of the views, see `SceneFit.aim`.
        notes: for `FitProgress`.

    Attributes:
        config: with the plane sizes that these views ask for.
        step: steps done.
        losses: of all steps done.

    Raises:
        ValueError: normals or a perceptual distance for Gaussians, silhouettes that contradict each other.
    """

    def __init__(
        self,
        views: ViewGrid,
        config: RefineConfig,
        device: torch.device | str = "cpu",
        perceptual: Perceptual | None = None,
        normals: Tensor | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        if config.backend == "gaussians" and (perceptual is not None or normals is not None):
            raise ValueError(
                "Expected neither normals nor a perceptual distance for Gaussians, which are not compared on "
                "patches; got some. Leave them out, or use the backend dynerf."
            )
        config = config.for_pictures(views.images.shape[2])
        self.views, self.config, self.notes = views, config, notes
        self.step, self.losses = 0, list[float]()
        self._fingerprint = fit_fingerprint(views, config, normals, perceptual is not None)
        self._generator = torch.Generator().manual_seed(config.seed)
        self._targets: RoundTargets | None = None
        self._normals = normals
        self._part: SceneFit = _FITS[config.backend](views, config, device, self._generator, perceptual)
        self._optimizer = torch.optim.Adam(self._part.groups(), betas=(0.9, 0.99), eps=1e-15, fused=True)
        self._part.aim(views, first_weights(views, config), normals)

    @property
    def scene(self) -> Scene4D:
        """The scene that is being fitted."""
        return self._part.scene

    @property
    def progress(self) -> FitProgress:
        """What there is to say after the last step."""
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
        normals = self._normals
        if normals is not None:
            # There are none for cameras beyond those of the views.
            none = torch.zeros_like(normals[:, :1])
            normals = torch.cat([normals, *[none] * (views.n_views - self.views.n_views)], dim=1)
        self._part.aim(views, weights, normals)

    def take(self, step: Step) -> None:
        """Do one step.

        Raises:
            FloatingPointError: the fit diverged.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * step.learning_rate
        frames = step.frames(self.views.n_frames, self._generator)
        self._part.prepare(step, self._optimizer)
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._part.accumulate(step, frames)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The fit diverged: the loss was {loss} at step {step.number + 1} of "
                f"{self.config.total_steps}. Lower learning_rate ({self.config.learning_rate:g}), for "
                f"example to a third."
            )
        self._optimizer.step()
        self.losses.append(loss)
        self.step = step.number + 1

    def state(self) -> FitState:
        """Return a copy of everything that decides how the fit goes on."""
        tensors = {f"scene.{key}": value for key, value in self._part.tensors().items()}
        for i, entry in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{key}": value.clone() for key, value in entry.items()}
        tensors |= {"generator": self._generator.get_state(), "losses": torch.tensor(self.losses)}
        cameras = None
        if self._targets is not None:
            cameras, tensors = self._targets.cameras, tensors | self._targets.tensors()
        return FitState(self.step, self._fingerprint, tensors, cameras, self.config.total_steps)

    def restore(self, state: FitState) -> None:
        """Go on from ``state``.

        Raises:
            ValueError: it belongs to a fit of other views or settings.
        """
        if state.fingerprint != self._fingerprint:
            raise ValueError(
                f"Expected the state of a fit of these views with these settings; got one of another fit, at "
                f"step {state.step}. Start anew, or give the views and settings that it was started with."
            )
        self._part.restore(tensors_under("scene.", state.tensors))
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors_under("optimizer.", state.tensors).items():
            index, name = key.split(".")
            entries.setdefault(int(index), {})[name] = value.clone()
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": entries})
        self._generator.set_state(state.tensors["generator"])
        self.step, self.losses = state.step, state.tensors["losses"].tolist()
        if state.cameras is not None:
            self.aim(RoundTargets.from_tensors(state.tensors, state.cameras))
