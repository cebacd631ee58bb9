"""The model that makes views anew in the refiner's second stage, out of what the sockets bring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch

from ..sv4d2_core.diffusion.config import ModelConfig
from ..sv4d2_core.diffusion.novel_views import resynthesizer
from ..sv4d2_core.diffusion.sampling import Callback
from ..sv4d2_core.diffusion.window_store import tensor_fingerprint
from ..sv4d2_core.views import ViewGrid
from .backend import HostBackend, backend_of
from .guidance import guidance_of
from .host_model import sv4d2_model
from .window_cache import identity, model_identity


@dataclass(frozen=True)
class SecondStage:
    """A model with its settings, for the views of one job.

    Args:
        backend: the host's model.
        steps: of the full denoising schedule.
        seed: of the noise.
    """

    backend: HostBackend
    steps: int
    seed: int

    @classmethod
    def of(
        cls, model: Any, clip_vision: Any, vae: Any, views: ViewGrid, *, steps: int, seed: int
    ) -> SecondStage:
        """Return the second stage of a node's sockets.

        Raises:
            ValueError: no SV4D 2.0 model, or a missing or unfitting CLIP vision model or VAE.
        """
        config = sv4d2_model(model).config_for(views.n_views)
        return cls(backend_of(model, clip_vision, vae, config), steps, seed)

    @property
    def config(self) -> ModelConfig:
        """Sizes and name of the model."""
        return self.backend.config

    def resynthesize(self, views: ViewGrid, callback: Callback) -> Callable[[ViewGrid, float], ViewGrid]:
        """Return what makes the pictures of a scene anew; the model is in memory only meanwhile.

        Raises:
            ValueError: views that the model cannot take.
        """
        cfg = guidance_of(self.backend.patcher).table(self.config)
        made_anew = resynthesizer(
            self.backend, views, steps=self.steps, seed=self.seed, cfg=cfg, callback=callback
        )

        def resynthesize(rendered: ViewGrid, strength: float) -> ViewGrid:
            # As the host runs its nodes; its weights are tensors of this mode.
            with torch.inference_mode():
                views = made_anew(rendered, strength)
                release_models()
            return views

        return resynthesize

    def fingerprint(self) -> list[Any]:
        """Return JSON values that stay the same while the model makes the same views."""
        backend = self.backend
        encoders = [backend.vae, getattr(backend.vae, "sv4d2_views", None)]
        parts = [None if x is None else identity(x.first_stage_model) for x in encoders]
        parts.append(identity(backend.clip_vision.model))
        cfg = tensor_fingerprint(guidance_of(backend.patcher).table(self.config))
        return [model_identity(backend.patcher), parts, cfg, self.steps, self.seed]


def release_models() -> None:
    """Move the host's models out of the fit's memory; the host loads them again when they are needed."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
