"""The node that turns a prepared clip into all its views."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io
from einops import rearrange
from torch import Tensor

from ..sv4d2_core.cameras import Cameras
from ..sv4d2_core.diffusion.novel_views import WindowStore, sample_views
from ..sv4d2_core.diffusion.window_store import tensor_fingerprint
from ..sv4d2_core.views import ViewGrid
from .backend import HostBackend, backend_of
from .guidance import Guidance, guidance_of
from .host_model import sv4d2_model
from .live_preview import progress_with_preview
from .out_of_memory import memory_advice
from .sampler_inputs import MODEL_DEFAULT, sampler_inputs
from .sockets import ViewsType, aliases
from .window_cache import identity, model_identity, window_store

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
