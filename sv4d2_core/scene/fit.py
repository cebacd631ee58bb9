"""The loop of every fit: which frames a step looks at, the optimiser, and a state to resume from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cameras import Cameras
from ..files import tensors_under
from ..views import ViewGrid
from .config import RefineConfig
from .dynerf_fit import DyNeRFFit
from .gaussians_fit import GaussiansFit
from .rays import PatchLoss, Perceptual
from .scene import Scene4D
from .schedule import Draw, SceneFit, allowed_frames, anchor_frame, draw_frames, motion_is_large
from .store import FitState, fit_fingerprint
from .trust import pixel_trust

_NAMES = ("images", "masks", "weights")


@dataclass(frozen=True)
class RoundTargets:
    """Views of other cameras, or the views themselves under other weights.

    Args:
        cameras: V' + 1, the input first.
        images: [T, V' + 1, H, W, 3] uint8.
        masks: [T, V' + 1, H, W] uint8.
        weights: [T, V' + 1, H, W] uint8, how much a pixel's colour counts, of 255.
    """

    cameras: Cameras
    images: Tensor
    masks: Tensor
    weights: Tensor

    @classmethod
    def of(cls, views: ViewGrid, weights: Tensor) -> RoundTargets:
        """Return views with masks, and weights in 0..1, rounded.

        Raises:
            ValueError: views without masks.
        """
        if views.masks is None:
            raise ValueError("Expected views with masks; got none.")
        rounded = ((x * 255).round().to(torch.uint8) for x in (views.images, views.masks, weights))
        return cls(views.cameras, *rounded)

    def unpacked(self, views: ViewGrid) -> tuple[ViewGrid, Tensor]:
        """Return the targets of these ``views`` as floats, the input view exactly as there, and weights."""
        images, masks, weights = (x.float() / 255 for x in (self.images, self.masks, self.weights))
        images[:, 0] = views.images[:, 0]
        if views.masks is not None:
            masks[:, 0] = views.masks[:, 0]
        return replace(views, images=images, masks=masks, cameras=self.cameras), weights

    def tensors(self) -> dict[str, Tensor]:
        """Return what a state keeps beside the cameras."""
        return {f"targets.{name}": getattr(self, name) for name in _NAMES}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], cameras: Cameras) -> RoundTargets:
        """Return the targets from what `tensors` returned."""
        return cls(cameras, *(tensors[f"targets.{name}"] for name in _NAMES))


@dataclass(frozen=True)
class FitProgress:
    """What a callback hears of a fit.

    Args:
        phase: ``static``, ``dynamic``, then ``refine 1`` and so on.
        loss: of the step just done.
        scene: being fitted; it may be rendered, and changes with the next step.
        losses: of all steps so far, those before a resume too.
        state: returns a copy of the state, to be saved and resumed from.
    """

    phase: str
    loss: float
    scene: Scene4D
    losses: list[float]
    state: Callable[[], FitState]


class Fit:
    """A fit between two steps.

    Args:
        views: checked, with masks.
        config: every number of the procedure.
        device: where the scene is fitted and stays.
        perceptual: distance of patches, in place of SSIM.
        normals: of the views, see `SceneFit.aim`.

    Attributes:
        views: as given.
        config: with the plane sizes that these views ask for.
        step: steps done.
        losses: of all steps done.
    """

    def __init__(
        self,
        views: ViewGrid,
        config: RefineConfig,
        device: torch.device | str = "cpu",
        perceptual: Perceptual | None = None,
        normals: Tensor | None = None,
    ) -> None:
        if views.masks is None:
            raise ValueError("Expected views with masks; got none.")
        if config.backend == "gaussians" and (perceptual is not None or normals is not None):
            raise ValueError(
                "Expected neither normals nor a perceptual distance for Gaussians, which are not compared on "
                "patches; got some. Leave them out, or use the backend dynerf."
            )
        config = config.for_pictures(views.images.shape[2])
        self.views, self.config = views, config
        self.step, self.losses = 0, list[float]()
        self._fingerprint = fit_fingerprint(views, config, normals)
        self._generator = torch.Generator().manual_seed(config.seed)
        self._anchor = anchor_frame(views.masks)
        self._progressive = config.progressive
        if self._progressive is None:
            self._progressive = motion_is_large(views.masks, self._anchor)
        self._targets: RoundTargets | None = None
        self._normals = normals
        self._n_views = views.n_views + 1
        patch_loss = PatchLoss(config, perceptual)
        self._part: SceneFit = (
            DyNeRFFit(views, config, device, self._generator, patch_loss)
            if config.backend == "dynerf"
            else GaussiansFit(views, config, device, self._generator)
        )
        self._optimizer = torch.optim.Adam(self._part.groups(), betas=(0.9, 0.99), eps=1e-15, fused=True)
        weights = pixel_trust(views) if config.weight_by_trust else torch.ones(views.images.shape[:4])
        self._part.aim(views, weights, normals)

    @property
    def scene(self) -> Scene4D:
        """The scene that is being fitted."""
        return self._part.scene

    @property
    def progress(self) -> FitProgress:
        """What there is to say after the last step."""
        step = max(self.step - 1, 0)
        refining = self.config.round_at(step)
        phase = "static" if step < self.config.steps_static else "dynamic"
        loss = self.losses[-1] if self.losses else math.nan
        return FitProgress(
            f"refine {refining}" if refining else phase, loss, self.scene, self.losses, self.state
        )

    def aim(self, targets: RoundTargets) -> None:
        """Fit to the targets of a round of the second stage from now on."""
        self._targets, self._n_views = targets, targets.cameras.n_views + 1
        self._part.aim(*targets.unpacked(self.views), self._normals_of(targets.cameras))

    def advance(self) -> None:
        """Do one step.

        Raises:
            FloatingPointError: the fit diverged.
        """
        config = self.config
        falling = config.learning_rate_at(self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * falling
        draw = self._draw()
        self._part.prepare(draw)
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._part.accumulate(draw)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The fit diverged: the loss was {loss} at step {self.step + 1} of {config.total_steps}. "
                f"Lower {self._part.knobs()}, for example to a third."
            )
        self._optimizer.step()
        self.losses.append(loss)
        self.step += 1

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

    def _normals_of(self, cameras: Cameras) -> Tensor | None:
        """Return the given normals, with none for cameras beyond those of the views."""
        if self._normals is None:
            return None
        none = torch.zeros_like(self._normals[:, :1])
        return torch.cat([self._normals, *[none] * (cameras.n_views - self.views.n_views)], dim=1)

    def _draw(self) -> Draw:
        """Return what the next step looks at."""
        config, n_frames, known = self.config, self.views.n_frames, None
        dynamic = self.step - config.steps_static
        if dynamic < 0:
            anchor = self._anchor
            return Draw(
                self.step, torch.tensor([anchor]), self._n_views, False, self._generator, (anchor, anchor)
            )
        allowed, newest = list(range(n_frames)), []
        if self._progressive and self.step < config.stage_one_steps:
            allowed, newest = allowed_frames(dynamic, config.steps, n_frames, self._anchor)
            before = [self._anchor]
            if dynamic > 0:
                before, _ = allowed_frames(dynamic - 1, config.steps, n_frames, self._anchor)
            known = None if before == allowed else (before[0], before[-1])
        frames = draw_frames(allowed, newest, min(config.frames_per_step, n_frames), self._generator)
        n_views = min(config.views_per_step, self._n_views)
        admitted = allowed[0], allowed[-1]
        return Draw(self.step, frames, n_views, True, self._generator, admitted, known)
