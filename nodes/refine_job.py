"""One run of the refiner in ComfyUI: its memory, its progress, what it goes on from and what came of it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import comfy.model_management
import torch
from PIL import Image
from torch import Tensor

from ..sv4d2_core.diffusion.window_store import tensor_fingerprint
from ..sv4d2_core.export.report import fit_report
from ..sv4d2_core.scene.config import RefineConfig
from ..sv4d2_core.scene.refine import refine_scene
from ..sv4d2_core.scene.scene import Scene4D, centred
from ..sv4d2_core.scene.store import fit_fingerprint
from ..sv4d2_core.video.crop import CropPath
from ..sv4d2_core.views import ViewGrid
from .fit_cache import FitStore
from .out_of_memory import memory_advice
from .refine_watch import RefineWatch
from .scene_preview import check_cancelled
from .second_stage import SecondStage, release_models

log = logging.getLogger(__name__)

# The report looks at pictures of at most this side: it must not take longer than the fit.
_REPORT_SIZE = 128


@dataclass
class RefineJob:
    """One fit; run it with gradients allowed.

    Args:
        views: at the size that the model takes.
        config: all settings.
        second: the model of the second stage, or None.
        normals, crop, size, input_elevation_deg: see `refine_scene`.
    """

    views: ViewGrid
    config: RefineConfig
    second: SecondStage | None
    normals: Tensor | None
    crop: CropPath | None
    size: int | None
    input_elevation_deg: float | None

    def __post_init__(self) -> None:
        second = self.second
        self._store = FitStore(self._fingerprint())
        self._state = self._store.load()
        latent_format = None if second is None else second.backend.patcher.model.latent_format
        self._watch = RefineWatch(self.views.n_views, self._store, latent_format)
        self._resynthesize = None
        if second is not None:
            self._resynthesize = second.resynthesize(self.views, self._watch.sampling)
        self._seconds = 0.0

    def run(self) -> Scene4D:
        """Return the scene; the state is kept when the user cancels.

        Raises:
            ValueError, FloatingPointError: see `refine_scene`.
            OOM_EXCEPTION: out of memory; the text names the settings that help.
        """
        began = time.perf_counter()
        with torch.inference_mode():
            release_models()
        size = self.size or self.views.images.shape[2]
        try:
            with memory_advice(
                f"Out of memory at {size} px. Lower size, or set memory_gb to what may be used."
            ):
                scene = refine_scene(
                    self.views,
                    self.config,
                    size=self.size,
                    input_elevation_deg=self.input_elevation_deg,
                    crop=self.crop,
                    resynthesize=self._resynthesize,
                    normals=self.normals,
                    callback=self._watch,
                    device=comfy.model_management.get_torch_device(),
                    state=self._state,
                )
        except comfy.model_management.InterruptProcessingException:
            self._watch.save()
            raise
        self._store.clear()
        self._seconds = time.perf_counter() - began
        return scene

    def report(self, scene: Scene4D) -> tuple[Image.Image, list[str]]:
        """Return the picture of the fit, and what there is to say about it."""
        fitted = self._watch.progress
        views = fitted.views.resized(min(fitted.views.images.shape[2], _REPORT_SIZE))
        picture, residual = fit_report(centred(scene), views, fitted.losses, callback=check_cancelled)
        self._watch.show_result(picture)
        unexplained = f"It leaves {residual:.4f} of the views unexplained."
        return picture, [*self._lines(fitted.views), unexplained, *fitted.notes]

    def _lines(self, views: ViewGrid) -> list[str]:
        config = self.config
        resumed = "" if self._state is None else f", continued after step {self._state.step}"
        lines = [
            f"Fitted {views.n_frames} frames of {views.n_views + 1} views at {views.images.shape[2]} px with "
            f"{config.backend}: {config.total_steps} steps in {self._seconds:.0f} s{resumed}."
        ]
        if config.rounds and self.second is None:
            lines.append("Stage 2 had no model: it only weighed the views by visibility.")
        elif self.second is not None:
            model = self.second.config
            lines.append(f"Stage 2 made the views anew {config.rounds} times with {model.variant}.")
            if not model.trained:
                lines.append("UNTRAINED WEIGHTS: what stage 2 made is noise.")
                log.warning("SV4D2: UNTRAINED WEIGHTS: what stage 2 made is noise.")
        return lines

    def _fingerprint(self) -> dict[str, object]:
        """Return all that determines the scene, as JSON values."""
        second = None
        if self.second is not None:
            second = [*self.second.fingerprint(), tensor_fingerprint(self.views.images[:, 0])]
        fit = fit_fingerprint(self.views, self.config, self.normals)
        return {"fit": fit, "size": self.size, "elevation": self.input_elevation_deg, "second": second}
