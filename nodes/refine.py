"""The node that turns views into a 4D scene."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..sv4d2_core.diffusion.config import ModelConfig
from ..sv4d2_core.diffusion.novel_views import resynthesizer
from ..sv4d2_core.diffusion.sampling import Callback
from ..sv4d2_core.diffusion.window_store import tensor_fingerprint
from ..sv4d2_core.export.report import fit_report
from ..sv4d2_core.scene.config import RefineConfig
from ..sv4d2_core.scene.fit import FitProgress
from ..sv4d2_core.scene.losses import resized_normals, unpacked_normals
from ..sv4d2_core.scene.refine import refine_scene
from ..sv4d2_core.scene.scene import Scene4D, centred
from ..sv4d2_core.scene.store import fit_fingerprint
from ..sv4d2_core.video.crop import CropPath
from ..sv4d2_core.views import ViewGrid
from .backend import HostBackend, backend_of, guidance_of
from .host import (
    FIXED,
    SceneType,
    ViewsType,
    advanced,
    aliases,
    copied,
    gradients,
    memory_advice,
    shows_a_picture,
)
from .host_model import sv4d2_model
from .preview import ScenePreview, check_cancelled, latent_picture, live_preview, picture_preview
from .resume import FitStore, identity, model_identity
from .views import parsed_crop


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


AUTO, GIVEN = "auto", "given"


def refine_inputs() -> list[io.Input]:
    """Return the inputs in the order that saved workflows rely on."""
    return [
        ViewsType.Input(
            "views", tooltip="The views to turn into 4D, from SV4D2 Sampler or SV4D2 Load Views."
        ),
        io.Combo.Input(
            "backend",
            options=["dynerf", "gaussians"],
            default="dynerf",
            tooltip="What the scene is made of. dynerf: a radiance field, smooth and steady. gaussians: "
            "moving 3D Gaussians, drawn without rays.",
        ),
        io.Int.Input(
            "steps",
            default=2500,
            min=4,
            max=100000,
            tooltip="Steps of all stages together. 2500 is the recipe, 600 gives a first look.",
        ),
        io.Combo.Input(
            "stages",
            options=[AUTO, "1", "2"],
            default=AUTO,
            tooltip="1: fit the views. 2: then make the views anew from the scene and fit again, which needs "
            "model, clip_vision and vae; without them stage 2 only weighs the views by visibility. auto: 2 "
            "with a model, else 1.",
        ),
        io.Int.Input(
            "size",
            default=0,
            min=0,
            max=2048,
            step=16,
            tooltip="Fit pictures of this side in pixels; 0: as given. Smaller is faster and takes less "
            "memory: try 128 on a processor, 256 to 512 on a graphics card.",
        ),
        io.Boolean.Input(
            "trust",
            default=True,
            tooltip="Views far from the input and rims of silhouettes count less, as a model's views "
            "deserve. Switch it off for views that were recorded or rendered.",
        ),
        io.Combo.Input(
            "elevation",
            options=[AUTO, GIVEN],
            default=AUTO,
            tooltip="The height of the input camera above the object's horizon. auto: what the cameras say, "
            "else estimated from the silhouettes. given: the number below.",
            **advanced(),
        ),
        io.Float.Input(
            "elevation_deg",
            default=0.0,
            min=-89.0,
            max=89.0,
            step=0.1,
            tooltip="Elevation of the input camera in degrees, positive from above; only for given.",
            **advanced(),
        ),
        io.Float.Input(
            "strength",
            default=0.35,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="Stage 2 with a model: how far the scene's pictures are noised before they are denoised "
            "again. 0.2 to 0.6 keep the layout.",
            **advanced(),
        ),
        io.Int.Input(
            "sampling_steps",
            default=50,
            min=1,
            max=1000,
            tooltip="Stage 2 with a model: steps of the full denoising schedule, of which strength takes its "
            "share.",
            **advanced(),
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=FIXED,
            tooltip="Seed of the fit and of the noise of stage 2. Keep the control after generate on fixed, "
            "so that a cancelled fit can continue.",
            **advanced(),
        ),
        io.Float.Input(
            "memory_gb",
            default=0.0,
            min=0.0,
            max=1024.0,
            step=0.5,
            tooltip="dynerf: work within about this much memory, GB; 0: no limit. The result stays the same, "
            "a step takes longer.",
            **advanced(),
        ),
        io.Combo.Input(
            "field",
            options=["planes", "canonical"],
            default="planes",
            tooltip="Only for dynerf. planes: over space and time. canonical: one still field that a "
            "deformation moves.",
            **advanced(),
        ),
        io.Model.Input("model", optional=True, tooltip="For stage 2: the Stable Video 4D 2.0 model."),
        io.ClipVision.Input(
            "clip_vision", optional=True, tooltip="For stage 2: the CLIP vision model of the same checkpoint."
        ),
        io.Vae.Input("vae", optional=True, tooltip="For stage 2: the VAE of the same checkpoint."),
        io.Image.Input(
            "normals",
            optional=True,
            tooltip="dynerf: normal maps of all views, the input first, view by view as SV4D2 Views to "
            "Images (all views) gives them; OpenGL colours (x right, y up, z towards the camera). Grey: not "
            "known.",
        ),
        io.String.Input(
            "crop",
            optional=True,
            force_input=True,
            tooltip="The crop of SV4D2 Prepare Clip or SV4D2 Load Views: where it followed the object, the "
            "object moves through the scene. Open: it stays in the middle.",
        ),
    ]


_SAVE_EVERY_S = 60.0


class RefineWatch:
    """The callbacks of a fit and of the model that makes views anew between its rounds.

    Args:
        n_views: V.
        store: where the state is kept every minute.
        latent_format: the host's description of the model's latents, or None without a model.

    """

    def __init__(self, n_views: int, store: FitStore, latent_format: Any = None) -> None:
        self._n_views, self._store, self._latent_format = n_views, store, latent_format
        self._preview: ScenePreview | None = None
        self._bar: comfy.utils.ProgressBar | None = None
        self._at = (0, 1)
        self._saved = time.monotonic()
        self._latest: FitProgress | None = None

    @property
    def progress(self) -> FitProgress:
        """What the fit said last."""
        if self._latest is None:
            raise RuntimeError("Expected a fit that has begun; it has said nothing yet.")
        return self._latest

    def __call__(self, step: int, total: int, progress: FitProgress) -> None:
        """Show where the fit is, keep its state now and then, and raise when the user cancels."""
        self._latest, self._at = progress, (step, total)
        preview = self._preview = self._preview or ScenePreview(progress.views)
        comfy.model_management.throw_exception_if_processing_interrupted()
        if time.monotonic() - self._saved > _SAVE_EVERY_S:
            self.save()
        self._show(lambda: preview.picture(progress.scene))

    def sampling(self, _step: int, _total: int, latents: Tensor | None) -> None:
        """Show the views that are being made anew; the bar stays where the fit is."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._show(lambda: latent_picture(latents, self._n_views, self._latent_format))

    def show_result(self, picture: Image.Image) -> None:
        """Replace the last preview, which the page would go on showing, by the picture of the fit."""
        self._show(lambda: picture, full_size=True)

    def save(self) -> None:
        """Keep the state, from which the fit goes on when it is queued again."""
        if self._latest is not None:
            self._store.save(self._latest.state())
            self._saved = time.monotonic()

    def _show(self, draw: Callable[[], Image.Image | None], full_size: bool = False) -> None:
        step, total = self._at
        bar = self._bar = self._bar or comfy.utils.ProgressBar(total)
        bar.update_absolute(step, total, live_preview(draw, full_size))


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


def normals_of_images(images: Tensor, views: ViewGrid) -> Tensor:
    """Return normals [T, V + 1, H, W, 3] at the size of the views, of images as `packed_normals` makes them.

    Args:
        images: [(V + 1) * T, h, w, 3] in 0..1, view by view.
        views: that they belong to.

    Raises:
        ValueError: another number of images, or not 3 channels.
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


class SV4D2Refine4D(io.ComfyNode):
    """One 4D scene out of the views."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2Refine4D",
            display_name="SV4D2 Refine 4D",
            category="SV4D2/scene",
            description=(
                "Turns views into one 4D scene that can be seen from anywhere at any time. Connect the views "
                "of SV4D2 Sampler or SV4D2 Load Views, and the scene to SV4D2 Render 4D and SV4D2 Save "
                "Scene. With the model connected it makes the views anew from the scene and fits again. When "
                "cancelled and queued again with the same settings it continues."
            ),
            inputs=refine_inputs(),
            outputs=[
                SceneType.Output(display_name="scene", tooltip="The scene, for SV4D2 Render 4D."),
                io.Image.Output(
                    display_name="fit",
                    tooltip="How the fit went: its losses, what it leaves unexplained of every view and "
                    "frame, and pictures of the scene below the views.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="The same in words; connect Preview as Text (Preview Any) to read it.",
                ),
            ],
            **shows_a_picture(),
            **aliases("4d", "nerf", "gaussian splatting", "reconstruction", "views to 3d", "optimize"),
        )

    @classmethod
    def execute(
        cls,
        views,
        backend,
        steps,
        stages,
        size,
        trust,
        elevation,
        elevation_deg,
        strength,
        sampling_steps,
        seed,
        memory_gb,
        field,
        model=None,
        clip_vision=None,
        vae=None,
        normals=None,
        crop=None,
    ) -> io.NodeOutput:
        """Return the scene, the picture of its fit and a report."""
        n_stages = (1 if model is None else 2) if stages == AUTO else int(stages)
        second = None
        if n_stages == 2 and model is not None:
            second = SecondStage.of(model, clip_vision, vae, views, steps=sampling_steps, seed=seed)
        config = RefineConfig(
            backend=backend,
            field=field,
            seed=seed,
            memory_gb=memory_gb,
            strength=strength,
            weight_by_trust=trust,
        ).with_steps(steps, n_stages)
        parsed = parsed_crop(crop)
        with gradients():
            given = copied(views)
            job = RefineJob(
                given,
                config,
                second,
                normals=None if normals is None else normals_of_images(normals.clone(), given),
                crop=None if parsed is None else CropPath.from_json(parsed),
                size=size or None,
                input_elevation_deg=elevation_deg if elevation == GIVEN else None,
            )
            scene = job.run()
            picture, lines = job.report(scene)
        image = torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)[None]
        return io.NodeOutput(scene, image, "\n".join(lines), ui=picture_preview(image, lines, cls))
