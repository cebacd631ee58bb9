"""The node that turns views into a 4D scene."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..sv4d2_core.diffusion.novel_views import resynthesizer
from ..sv4d2_core.diffusion.sampling import Callback
from ..sv4d2_core.diffusion.window_store import tensor_fingerprint
from ..sv4d2_core.export.report import fit_report
from ..sv4d2_core.scene.config import RefineConfig
from ..sv4d2_core.scene.fit import FitProgress
from ..sv4d2_core.scene.refine import refine_scene
from ..sv4d2_core.scene.scene import Scene4D, centred
from ..sv4d2_core.scene.store import fit_fingerprint
from ..sv4d2_core.scene.targets import resized_normals, unpacked_normals
from ..sv4d2_core.video.crop import CropPath
from ..sv4d2_core.views import ViewGrid
from .backend import HostBackend, backend_of, guidance_of
from .host import (
    SceneType,
    ViewsType,
    advanced,
    aliases,
    check_cancelled,
    choice,
    copied,
    described,
    gradients,
    memory_advice,
    number,
    outputs,
    seed_input,
    shows_a_picture,
)
from .host_model import sv4d2_model
from .preview import Progress, ScenePreview, as_images, latent_picture, picture_preview
from .resume import FitCache
from .views import parsed_crop

log = logging.getLogger(__name__)

AUTO, GIVEN = "auto", "given"

_DEFAULTS = RefineConfig()
_SAVE_EVERY_S = 60.0
_REPORT_SIZE = 128  # pixels, at most: the report must not take longer than the fit


class SV4D2Refine4D(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2Refine4D",
            category="SV4D2/scene",
            inputs=[
                ViewsType.Input("views"),
                choice("backend", ["dynerf", "gaussians"]),
                number("steps", _DEFAULTS.stage_one_steps, (4, 100000)),
                choice("stages", [AUTO, "1", "2"]),
                number("size", 0, (0, 2048, 16)),
                io.Boolean.Input("trust", default=True),
                choice("elevation", [AUTO, GIVEN], **advanced()),
                number("elevation_deg", 0.0, (-89, 89, 0.1), **advanced()),
                number("strength", _DEFAULTS.strength, (0.01, 1, 0.01), **advanced()),
                number("sampling_steps", 50, (1, 1000), **advanced()),
                seed_input(0, **advanced()),
                number("memory_gb", 0.0, (0, 1024, 0.5), **advanced()),
                choice("field", ["planes", "canonical"], **advanced()),
                io.Model.Input("model", optional=True),
                io.ClipVision.Input("clip_vision", optional=True),
                io.Vae.Input("vae", optional=True),
                io.Image.Input("normals", optional=True),
                io.String.Input("crop", optional=True, force_input=True),
            ],
            outputs=outputs(scene=SceneType, fit=io.Image, report=io.String),
            **shows_a_picture(),
            **aliases("4d", "nerf", "gaussian splatting", "reconstruction", "views to 3d", "optimize"),
        )

    @classmethod
    def execute(
        cls,
        views: ViewGrid,
        steps: int,
        stages: str,
        size: int,
        trust: bool,
        elevation: str,
        elevation_deg: float,
        sampling_steps: int,
        seed: int,
        model: Any = None,
        clip_vision: Any = None,
        vae: Any = None,
        normals: Tensor | None = None,
        crop: str | None = None,
        **more: Any,
    ) -> io.NodeOutput:
        """Return scene, picture of the fit and report; ``more`` are further fields of `RefineConfig`."""
        n_stages = (1 if model is None else 2) if stages == AUTO else int(stages)
        second = None
        if n_stages == 2 and model is not None:
            sizes = sv4d2_model(model).config_for(views.n_views)
            second = _SecondStage(backend_of(model, clip_vision, vae, sizes), sampling_steps, seed)
        config = RefineConfig(**more, seed=seed, weight_by_trust=trust).with_steps(steps, n_stages)
        parsed = parsed_crop(crop)
        with gradients():
            given = copied(views)
            inputs = {
                "size": size or None,
                "input_elevation_deg": elevation_deg if elevation == GIVEN else None,
                "normals": None if normals is None else normals_of_images(normals.clone(), given),
            }
            fit = _Fit(given, config, second, inputs)
            scene = fit.run(None if parsed is None else CropPath.from_json(parsed))
            picture, lines = fit.report(scene)
        images = as_images(picture)
        return io.NodeOutput(scene, images, "\n".join(lines), ui=picture_preview(images, lines, cls))


def normals_of_images(images: Tensor, views: ViewGrid) -> Tensor:
    """Return normals [T, V + 1, H, W, 3] at the size of the views.

    ``images`` [(V + 1) * T, h, w, 3] are as `packed_normals` makes them, view by view.
    """
    n_views, size = views.n_views + 1, views.images.shape[2]
    if len(images) != n_views * views.n_frames or images.shape[-1] != 3:
        raise ValueError(
            f"Expected {n_views * views.n_frames} normal maps with 3 channels ({n_views} views x "
            f"{views.n_frames} frames, the input view first); got {len(images)} with {images.shape[-1]}. "
            "Estimate them from SV4D2 Views to Images, mode all views, include_input on."
        )
    normals = rearrange(unpacked_normals(images.float().cpu()), "(v t) h w c -> t v h w c", v=n_views)
    return resized_normals(normals, size)


@dataclass(frozen=True)
class _SecondStage:
    """The model that makes views anew in the second stage."""

    backend: HostBackend
    steps: int  # of the full denoising schedule
    seed: int

    def guidance(self) -> Tensor:
        """Return the scales [T, V] of one window."""
        return guidance_of(self.backend.patcher).table(self.backend.config)

    def resynthesizer(self, views: ViewGrid, callback: Callback) -> Callable[[ViewGrid, float], ViewGrid]:
        """Return what makes the pictures of a scene anew; the model is in memory only meanwhile."""
        made_anew = resynthesizer(
            self.backend, views, steps=self.steps, seed=self.seed, cfg=self.guidance(), callback=callback
        )

        def resynthesize(rendered: ViewGrid, strength: float) -> ViewGrid:
            with torch.inference_mode():  # the mode of the host's weights
                views = made_anew(rendered, strength)
                _release_models()
            return views

        return resynthesize

    def fingerprint(self, views: ViewGrid) -> list[Any]:
        """Return JSON values that stay the same while the model makes the same views."""
        tensors = [tensor_fingerprint(x) for x in (self.guidance(), views.images[:, 0])]
        return [self.backend.identity(), tensors, self.steps, self.seed]


def _release_models() -> None:
    """Move the host's models out of the fit's memory; the host loads them again when they are needed."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


class _Fit:
    """A fit with its progress bar, previews, cancelling and saved state.

    ``inputs`` are normals, size and input_elevation_deg of `refine_scene`.
    """

    def __init__(
        self, views: ViewGrid, config: RefineConfig, second: _SecondStage | None, inputs: dict[str, Any]
    ) -> None:
        self._views, self._config, self._second, self._inputs = views, config, second, inputs
        self._cache = FitCache(
            {
                **inputs,
                "normals": None,
                "fit": fit_fingerprint(views, config, inputs["normals"]),
                "second": None if second is None else second.fingerprint(views),
            }
        )
        self._state = self._cache.load()
        self._preview: ScenePreview | None = None
        self._latest: FitProgress | None = None
        self._bar, self._at = Progress(), (0, 1)
        self._saved = time.monotonic()
        self._seconds = 0.0

    def run(self, crop: CropPath | None) -> Scene4D:
        """Return the scene; the state is kept when the user cancels."""
        began = time.perf_counter()
        with torch.inference_mode():
            _release_models()
        second, size = self._second, self._inputs["size"] or self._views.images.shape[2]
        if second is not None and (caution := second.backend.config.caution):
            log.warning("SV4D2: stage 2: %s", caution)
        advice = f"Out of memory at {size} px. Lower size, or set memory_gb to what may be used."
        try:
            with memory_advice(advice):
                scene = refine_scene(
                    self._views,
                    self._config,
                    **self._inputs,
                    crop=crop,
                    resynthesize=None if second is None else second.resynthesizer(self._views, self._sampled),
                    callback=self._stepped,
                    device=comfy.model_management.get_torch_device(),
                    state=self._state,
                )
        except comfy.model_management.InterruptProcessingException:
            self._save()
            raise
        self._seconds = time.perf_counter() - began
        return scene

    def report(self, scene: Scene4D) -> tuple[Image.Image, list[str]]:
        """Return a picture of the fit and lines on it; until they are there, the state is kept."""
        fitted = self._latest
        assert fitted is not None
        views = fitted.views.resized(min(fitted.views.images.shape[2], _REPORT_SIZE))
        try:
            picture, residual = fit_report(centred(scene), views, fitted.losses, callback=check_cancelled)
            self._bar.show(*self._at, lambda: picture, full_size=True)  # else the last preview stays
        except BaseException:
            self._save()
            raise
        self._cache.clear()
        unexplained = f"It leaves {residual:.4f} of the views unexplained."
        return picture, [*self._lines(fitted.views), unexplained, *fitted.notes]

    def _lines(self, views: ViewGrid) -> list[str]:
        config = self._config
        resumed = "" if self._state is None else f", continued after step {self._state.step}"
        lines = [
            f"Fitted {views.n_frames} frames of {views.n_views + 1} views at {views.images.shape[2]} px with "
            f"{config.backend}: {config.total_steps} steps in {self._seconds:.0f} s{resumed}."
        ]
        if config.rounds and self._second is None:
            lines.append("Stage 2 had no model: it only weighed the views by visibility.")
        elif self._second is not None:
            model = self._second.backend.config
            lines.append(f"Stage 2 made the views anew {config.rounds} times with {model.variant}.")
            if model.caution:
                lines.append(model.caution)
        return lines

    def _stepped(self, step: int, total: int, progress: FitProgress) -> None:
        """Show where the fit is, keep its state now and then, and raise when the user cancels."""
        self._latest, self._at = progress, (step, total)
        preview = self._preview = self._preview or ScenePreview(progress.views)
        if time.monotonic() - self._saved > _SAVE_EVERY_S:
            self._save()
        self._bar.show(step, total, lambda: preview.picture(progress.scene))

    def _sampled(self, _step: int, _total: int, latents: Tensor | None) -> None:
        """Show the views that are being made anew; the bar stays where the fit is."""
        assert self._second is not None
        backend = self._second.backend
        latent_format, n_views = backend.patcher.model.latent_format, backend.config.n_views
        self._bar.show(*self._at, lambda: latent_picture(latents, n_views, latent_format))

    def _save(self) -> None:
        if self._latest is not None:
            self._cache.save(self._latest.state())
            self._saved = time.monotonic()
