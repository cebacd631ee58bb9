"""Nodes that sample: whole clips, one window for the host's KSampler, guidance for both."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy_api.latest import io
from einops import rearrange
from torch import Tensor

from ..sv4d2_core.cameras import Cameras
from ..sv4d2_core.diffusion.config import GUIDANCE_SHAPES
from ..sv4d2_core.diffusion.novel_views import WindowStore, sample_views, window_conditioning, window_frames
from ..sv4d2_core.diffusion.window_store import tensor_fingerprint
from ..sv4d2_core.views import ViewGrid
from .backend import OFFICIAL, Guidance, HostBackend, backend_of, guidance_of, with_guidance
from .host import FIXED, CamerasType, ViewsType, advanced, aliases, memory_advice
from .host_model import WindowConds, sv4d2_model
from .preview import progress_with_preview
from .resume import identity, model_identity, window_store

MODEL_DEFAULT = "model default"


def model_and_clip_inputs() -> list[io.Input]:
    """Return the sockets that every sampling node begins with."""
    return [
        io.Model.Input("model", tooltip="A Stable Video 4D 2.0 model."),
        io.ClipVision.Input("clip_vision", tooltip="The CLIP vision model of the same checkpoint."),
        io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
        io.Image.Input("clip", tooltip="Prepared frames, square and on white, from SV4D2 Prepare Clip."),
    ]


def cfg_inputs(default: str, **options: Any) -> list[io.Input]:
    """Return the range of a guidance shape; ``default`` is the choice that needs none."""
    return [
        io.Float.Input(
            "cfg_min",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip=f"Lowest guidance scale. Not used by {default} and constant.",
            **options,
        ),
        io.Float.Input(
            "cfg_max",
            default=2.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip=f"Highest guidance scale. Not used by {default}.",
            **options,
        ),
    ]


def sampler_inputs() -> list[io.Input]:
    """Return the inputs in the order that saved workflows rely on."""
    return [
        *model_and_clip_inputs(),
        CamerasType.Input(
            "cameras",
            tooltip="From where to see the object: 4 views for sv4d2, 8 for sv4d2_8views, or a multiple of "
            "that for several passes.",
        ),
        io.Int.Input(
            "seed",
            default=23,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=FIXED,
            tooltip="Window k of the clip starts from noise seeded with seed + k. Keep the control after "
            "generate on fixed, so that a cancelled job can continue.",
        ),
        io.Int.Input(
            "steps",
            default=50,
            min=1,
            max=1000,
            tooltip="Denoising steps of every window. 50 is official, 20 is a good draft.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.KSampler.SAMPLERS,
            default="euler",
            tooltip="euler is official.",
        ),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.KSampler.SCHEDULERS,
            default="karras",
            tooltip="karras is official.",
            **advanced(),
        ),
        io.Combo.Input(
            "guidance",
            options=[MODEL_DEFAULT, *GUIDANCE_SHAPES],
            default=MODEL_DEFAULT,
            tooltip="model default: what SV4D2 Guidance set, else the authors' values. The others use "
            "cfg_min and cfg_max below.",
        ),
        *cfg_inputs(MODEL_DEFAULT, **advanced()),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="Below 1 sampling starts from init_views and keeps more of them the lower it is: the "
            "last share of the full schedule is run.",
        ),
        io.Float.Input(
            "fps",
            default=8.0,
            min=0.1,
            max=1000.0,
            step=0.1,
            tooltip="Frame rate of the views; connect fps of SV4D2 Prepare Clip.",
            **advanced(),
        ),
        io.Image.Input(
            "reference_views",
            optional=True,
            tooltip="Images of the first frame from the novel cameras, one per camera, when you have them.",
        ),
        ViewsType.Input(
            "init_views",
            optional=True,
            tooltip="Views to start from when denoise is below 1; same frames, cameras and size.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Mask of the prepared frames from SV4D2 Prepare Clip, kept for the input view. Open: all "
            "that is not near white.",
        ),
    ]


log = logging.getLogger(__name__)

# Copies of all views that are alive at once while the result is put together.
_COPIES = 4


class SV4D2Sampler(io.ComfyNode):
    """A whole clip from all cameras."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2Sampler",
            display_name="SV4D2 Sampler",
            category="SV4D2/sampling",
            description=(
                "Makes novel-view videos of a prepared clip of any length, window after window. Connect "
                "SV4D2 Load Checkpoint, SV4D2 Prepare Clip and SV4D2 Camera Orbit. When cancelled and queued "
                "again with the same settings it continues after the last finished window."
            ),
            inputs=sampler_inputs(),
            outputs=[
                ViewsType.Output(
                    display_name="views", tooltip="Input and novel views over time with their cameras."
                ),
                io.Image.Output(
                    display_name="images",
                    tooltip="All frames of the novel views, view by view: the whole clip of view 1 first.",
                ),
                io.Latent.Output(display_name="latent", tooltip="The latents of images, in the same order."),
            ],
            **aliases("stable video 4d", "sv4d", "novel view", "multi-view video", "video to 4d", "orbit"),
        )

    @classmethod
    def execute(
        cls,
        model,
        clip_vision,
        vae,
        clip,
        cameras,
        seed,
        steps,
        sampler_name,
        scheduler,
        guidance,
        cfg_min,
        cfg_max,
        denoise,
        fps,
        reference_views=None,
        init_views=None,
        mask=None,
    ) -> io.NodeOutput:
        """Return views, their images and their latents."""
        host_model = sv4d2_model(model)
        config = host_model.config_for(cameras.n_views)
        wanted = guidance_of(model) if guidance == MODEL_DEFAULT else Guidance(guidance, cfg_min, cfg_max)
        backend = backend_of(model, clip_vision, vae, config, sampler=sampler_name, scheduler=scheduler)
        _check_clip(clip, cameras, mask)
        if init_views is not None and denoise < 1:
            _check_cameras(init_views.cameras, cameras)
        arguments: dict[str, Any] = {
            "cfg": wanted.table(config),
            "reference_views": reference_views,
            "init_views": None if init_views is None or denoise == 1 else init_views.images[:, 1:],
            "strength": denoise,
            "steps": steps,
            "seed": seed,
        }
        with memory_advice(
            f"Out of memory at {clip.shape[1]} px. Prepare the clip with a smaller size, or load the model "
            f"with weight_dtype fp8_e4m3fn."
        ):
            views = sample_views(
                backend,
                clip,
                cameras,
                fps=fps,
                store=_store(backend, clip, cameras, arguments),
                callback=progress_with_preview(host_model.latent_format, config.n_views),
                **arguments,
            )
        if not config.trained:
            log.warning("SV4D2: UNTRAINED WEIGHTS: the novel views are noise.")
        if mask is not None and views.masks is not None:
            views = replace(views, masks=torch.cat([mask[:, None].float().cpu(), views.masks[:, 1:]], dim=1))
        settings = {
            "sampler": [sampler_name, scheduler],
            "guidance": [wanted.shape, wanted.cfg_min, wanted.cfg_max],
            "strength": denoise,
            "reference_views": None if reference_views is None else tensor_fingerprint(reference_views),
            "weights": str(host_model.get_dtype()).removeprefix("torch."),
        }
        views = replace(views, settings=settings)
        return io.NodeOutput(views, *_images_and_latents(views, config.scale_factor))


def _images_and_latents(views: ViewGrid, scale_factor: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the novel views as the host's IMAGE and LATENT, view by view."""
    assert views.latents is not None
    latents = rearrange(views.latents, "t v c h w -> (v t) c h w") / scale_factor
    return rearrange(views.images[:, 1:], "t v h w c -> (v t) h w c"), {"samples": latents}


def _check_clip(clip: Tensor, cameras: Cameras, mask: Tensor | None) -> None:
    """Raise ValueError for what only a graph can get wrong: channels, memory, a mask of other frames."""
    frames, height, width, channels = clip.shape
    if channels != 3:
        raise ValueError(
            f"Expected frames with 3 channels on white; got {channels}. Connect SV4D2 Prepare Clip, which "
            f"uses the transparency."
        )
    if mask is not None and tuple(mask.shape) != (frames, height, width):
        raise ValueError(
            f"Expected a mask [{frames}, {height}, {width}] like the clip; got {list(mask.shape)}. Connect "
            f"the mask of the same SV4D2 Prepare Clip."
        )
    needed = _COPIES * clip.numel() * clip.element_size() * (cameras.n_views + 1)
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    if needed > free:
        raise ValueError(
            f"{frames} frames of {width} x {height} from {cameras.n_views} views need about "
            f"{needed / 2**30:.1f} GiB of main memory; {free / 2**30:.1f} GiB are free. Lower frames or "
            f"size, or raise every, in SV4D2 Prepare Clip."
        )


def _check_cameras(given: Cameras, wanted: Cameras) -> None:
    """Raise ValueError when views to start from were seen by other cameras."""
    for name in ("azimuths_deg", "elevations_deg"):
        if getattr(given, name) != getattr(wanted, name):
            raise ValueError(
                f"Expected init_views from the cameras of this job ({name} "
                f"{_angles(getattr(wanted, name))}); got {_angles(getattr(given, name))}. Connect the "
                f"cameras that the views were made with: SV4D2 Load Views gives them."
            )


def _angles(angles: tuple[float, ...]) -> str:
    return ", ".join(f"{angle:g}" for angle in angles)


def _store(backend: HostBackend, clip: Tensor, cameras: Cameras, arguments: dict[str, Any]) -> WindowStore:
    """Return where this job's finished windows are kept."""
    encoders = [backend.vae, getattr(backend.vae, "sv4d2_views", None)]
    settings = {
        "model": model_identity(backend.patcher),
        "encoders": [None if x is None else identity(x.first_stage_model) for x in encoders],
        "clip_vision": identity(backend.clip_vision.model),
        "variant": backend.config.variant,
        "sampler": [backend.sampler, backend.scheduler],
        "azimuths_deg": cameras.azimuths_deg,
        "elevations_deg": cameras.elevations_deg,
        "clip": tensor_fingerprint(clip),
        **{
            key: tensor_fingerprint(value) if isinstance(value, Tensor) else value
            for key, value in arguments.items()
        },
    }
    return window_store(settings)


class SV4D2Conditioning(io.ComfyNode):
    """Frames and cameras of one window as conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2Conditioning",
            display_name="SV4D2 Conditioning",
            category="SV4D2/sampling",
            description=(
                "Encodes one window of a prepared clip (12 frames x 4 views, or 5 x 8) for a KSampler. "
                "Connect positive, negative and latent to the KSampler, and the model through SV4D2 "
                "Guidance. For whole clips SV4D2 Sampler does all windows by itself."
            ),
            inputs=[
                *model_and_clip_inputs(),
                CamerasType.Input(
                    "cameras", tooltip="The cameras of this window, as many as the model makes views."
                ),
                io.Int.Input(
                    "window_start",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="First frame of the window, counted from 0. A clip shorter than the window is "
                    "played back and forth.",
                ),
                io.Image.Input(
                    "reference_views",
                    optional=True,
                    tooltip="Images of the window's first frame from the novel cameras, one per camera, as "
                    "an earlier window made them. Leave open for the first window.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="To the KSampler's positive."),
                io.Conditioning.Output(display_name="negative", tooltip="To the KSampler's negative."),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="Empty latents of the window, frame by frame with all views of a frame together.",
                ),
                io.Image.Output(
                    display_name="window",
                    tooltip="The frames of this window, in a short clip those played back, too: the clip for "
                    "SV4D2 Images to Views.",
                ),
            ],
            **aliases("stable video 4d", "novel view", "multi-view", "sv4d conditioning"),
        )

    @classmethod
    def execute(
        cls, model, clip_vision, vae, clip, cameras, window_start, reference_views=None
    ) -> io.NodeOutput:
        """Return positive, negative, empty latents and the window's frames."""
        config = sv4d2_model(model).config_for(cameras.n_views)
        backend = backend_of(model, clip_vision, vae, config)
        frames = window_frames(config, clip, window_start)
        window = window_conditioning(backend, frames, cameras, reference_views)
        cond = WindowConds.of(window, config.unet.view_mixing)
        uncond = WindowConds.of(window.unconditional(), config.unet.view_mixing)
        latent = {"samples": torch.zeros(cond.latent_shape)}
        return io.NodeOutput(cond.to_host(), uncond.to_host(), latent, frames)


class SV4D2Guidance(io.ComfyNode):
    """Guidance that differs per frame and view."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2Guidance",
            display_name="SV4D2 Guidance",
            category="SV4D2/sampling",
            description=(
                "Gives every frame and view of a window its own guidance scale, as the model was made to be "
                "used. Put it between the loader and a KSampler (or SV4D2 Sampler); the KSampler's cfg then "
                "has no effect."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A Stable Video 4D 2.0 model."),
                io.Combo.Input(
                    "shape",
                    options=[OFFICIAL, *GUIDANCE_SHAPES],
                    default=OFFICIAL,
                    tooltip="official: what the authors use (sv4d2: linear 1 to 2, sv4d2_8views: "
                    "spatiotemporal 1.5 to 2.5). linear rises over frames and views, spatiotemporal over "
                    "frames and towards the views opposite the input, triangle towards the opposite views "
                    "only, constant is cfg_max everywhere.",
                ),
                *cfg_inputs(OFFICIAL),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with this guidance.")],
            **aliases("stable video 4d", "cfg", "guidance scale", "linear cfg", "triangle cfg"),
        )

    @classmethod
    def execute(cls, model, shape, cfg_min, cfg_max) -> io.NodeOutput:
        """Return the patched model."""
        guidance = Guidance(shape, cfg_min, cfg_max)
        # A wrong range shall be reported here, not in the sampler.
        guidance.table(sv4d2_model(model).sv4d2_config)
        return io.NodeOutput(with_guidance(model, guidance))
