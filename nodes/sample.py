"""Nodes that sample: whole clips, one window for the host's KSampler, guidance for both."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io
from einops import rearrange
from torch import Tensor

from ..sv4d2_core.cameras import Cameras
from ..sv4d2_core.diffusion.config import GUIDANCE_SHAPES
from ..sv4d2_core.diffusion.novel_views import WINDOWS, sample_views, window_conditioning, window_frames
from ..sv4d2_core.diffusion.window_store import WindowFolder, tensor_fingerprint
from ..sv4d2_core.video.colour import check_unit
from ..sv4d2_core.views import ViewGrid
from .backend import OFFICIAL, Guidance, HostBackend, backend_of, guidance_of, with_guidance
from .host import (
    CamerasType,
    ViewsType,
    advanced,
    aliases,
    check_main_memory,
    choice,
    described,
    memory_advice,
    number,
    outputs,
    seed_input,
)
from .host_model import WindowConds, sv4d2_model
from .preview import Progress, latent_picture
from .resume import window_cache

log = logging.getLogger(__name__)

MODEL_DEFAULT = "model default"

_COPIES = 4  # of all views, alive at once while the result is put together


def _model_and_clip_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model"),
        io.ClipVision.Input("clip_vision"),
        io.Vae.Input("vae"),
        io.Image.Input("clip"),
        CamerasType.Input("cameras"),
    ]


class SV4D2Sampler(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2Sampler",
            category="SV4D2/sampling",
            inputs=[
                *_model_and_clip_inputs(),
                seed_input(23),
                number("steps", 50, (1, 1000)),
                choice("sampler_name", comfy.samplers.KSampler.SAMPLERS, default="euler"),
                choice("scheduler", comfy.samplers.KSampler.SCHEDULERS, default="karras", **advanced()),
                choice("guidance", [MODEL_DEFAULT, *GUIDANCE_SHAPES]),
                number("cfg_min", 1.0, (0, 100, 0.1), **advanced()),
                number("cfg_max", 2.0, (0, 100, 0.1), **advanced()),
                number("denoise", 1.0, (0.01, 1, 0.01)),
                number("fps", 8.0, (0.1, 1000, 0.1), **advanced()),
                io.Image.Input("reference_views", optional=True),
                ViewsType.Input("init_views", optional=True),
                io.Mask.Input("mask", optional=True),
                choice("windows", WINDOWS, optional=True, **advanced()),
            ],
            outputs=outputs(views=ViewsType, images=io.Image, latent=io.Latent),
            **aliases("stable video 4d", "sv4d", "novel view", "multi-view video", "video to 4d", "orbit"),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip_vision: Any,
        vae: Any,
        clip: Tensor,
        cameras: Cameras,
        seed: int,
        steps: int,
        sampler_name: str,
        scheduler: str,
        guidance: str,
        cfg_min: float,
        cfg_max: float,
        denoise: float,
        fps: float,
        reference_views: Tensor | None = None,
        init_views: ViewGrid | None = None,
        mask: Tensor | None = None,
        windows: str = "official",
    ) -> io.NodeOutput:
        """Return views, and their novel ones as images and latents, view by view."""
        host_model = sv4d2_model(model)
        config = host_model.config_for(cameras.n_views)
        wanted = guidance_of(model) if guidance == MODEL_DEFAULT else Guidance(guidance, cfg_min, cfg_max)
        backend = backend_of(model, clip_vision, vae, config, sampler=sampler_name, scheduler=scheduler)
        _check_clip(clip, cameras, mask)
        arguments: dict[str, Any] = {
            "cfg": wanted.table(config),
            "reference_views": reference_views,
            "init_views": None if denoise == 1 else _start(init_views, cameras),
            "strength": denoise,
            "windows": windows,
            "steps": steps,
            "seed": seed,
        }
        if config.caution:
            log.warning("SV4D2: %s", config.caution)
        bar = Progress()

        def progress(step: int, total: int, latents: Tensor | None) -> None:
            bar.show(step, total, lambda: latent_picture(latents, config.n_views, host_model.latent_format))

        with memory_advice(
            f"Out of memory at {clip.shape[1]} px. Prepare the clip with a smaller size, or load the model "
            f"with weight_dtype fp8_e4m3fn."
        ):
            store = _store(backend, clip, cameras, arguments)
            views = sample_views(backend, clip, cameras, fps=fps, store=store, callback=progress, **arguments)
        if mask is not None and views.masks is not None:
            given = mask[:, None].float().cpu().clamp(0, 1)
            views = replace(views, masks=torch.cat([given, views.masks[:, 1:]], dim=1))
        settings = {
            "sampler": [sampler_name, scheduler],
            "guidance": [*wanted.chosen(config)],
            "strength": denoise,
            "reference_views": None if reference_views is None else tensor_fingerprint(reference_views),
            **({} if windows == "official" else {"windows": windows}),
            "weights": str(host_model.get_dtype()).removeprefix("torch."),
        }
        views = replace(views, settings=settings)
        # A copy: nodes of other packs write into what they get, and the views stay in the host's cache.
        images = views.images[:, 1:].transpose(0, 1).clone(memory_format=torch.contiguous_format)
        assert views.latents is not None
        latents = rearrange(views.latents, "t v c h w -> (v t) c h w") / config.scale_factor
        return io.NodeOutput(views, images.flatten(0, 1), {"samples": latents})


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
    if mask is not None:
        check_unit(mask.detach().float().cpu().numpy(), "the mask")
    check_main_memory(
        _COPIES * clip.numel() * clip.element_size() * (cameras.n_views + 1),
        f"{frames} frames of {width} x {height} from {cameras.n_views} views need",
        "Lower frames or size, or raise every, in SV4D2 Prepare Clip.",
    )


def _start(views: ViewGrid | None, cameras: Cameras) -> Tensor | None:
    """Return the novel views to start from, or None. Raises ValueError where other cameras saw them."""
    if views is None:
        return None
    for name in ("azimuths_deg", "elevations_deg"):
        given, wanted = getattr(views.cameras, name), getattr(cameras, name)
        if given != wanted:
            raise ValueError(
                f"Expected init_views from the cameras of this job ({name} {_angles(wanted)}); got "
                f"{_angles(given)}. Connect the cameras that the views were made with: SV4D2 Load Views "
                f"gives them."
            )
    return views.images[:, 1:]


def _angles(angles: tuple[float, ...]) -> str:
    return ", ".join(f"{angle:g}" for angle in angles)


def _store(backend: HostBackend, clip: Tensor, cameras: Cameras, arguments: dict[str, Any]) -> WindowFolder:
    values = {**arguments, "clip": clip}
    settings = {
        "backend": backend.identity(),
        "azimuths_deg": cameras.azimuths_deg,
        "elevations_deg": cameras.elevations_deg,
        **{key: tensor_fingerprint(x) if isinstance(x, Tensor) else x for key, x in values.items()},
    }
    return window_cache(settings)


class SV4D2Conditioning(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2Conditioning",
            category="SV4D2/sampling",
            inputs=[
                *_model_and_clip_inputs(),
                number("window_start", 0, (0, 10000)),
                io.Image.Input("reference_views", optional=True),
            ],
            outputs=outputs(
                positive=io.Conditioning, negative=io.Conditioning, latent=io.Latent, window=io.Image
            ),
            **aliases("stable video 4d", "novel view", "multi-view", "sv4d conditioning"),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip_vision: Any,
        vae: Any,
        clip: Tensor,
        cameras: Cameras,
        window_start: int,
        reference_views: Tensor | None = None,
    ) -> io.NodeOutput:
        config = sv4d2_model(model).config_for(cameras.n_views)
        backend = backend_of(model, clip_vision, vae, config)
        frames = window_frames(config, clip, window_start)
        window = window_conditioning(backend, frames, cameras, reference_views)
        cond = WindowConds.of(window, config.unet.view_mixing)
        uncond = WindowConds.of(window.unconditional(), config.unet.view_mixing)
        latent = {"samples": torch.zeros(cond.latent_shape)}
        return io.NodeOutput(cond.to_host(), uncond.to_host(), latent, frames)


class SV4D2Guidance(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2Guidance",
            category="SV4D2/sampling",
            inputs=[
                io.Model.Input("model"),
                choice("shape", [OFFICIAL, *GUIDANCE_SHAPES]),
                number("cfg_min", 1.0, (0, 100, 0.1)),
                number("cfg_max", 2.0, (0, 100, 0.1)),
            ],
            outputs=outputs(model=io.Model),
            **aliases("stable video 4d", "cfg", "guidance scale", "linear cfg", "triangle cfg"),
        )

    @classmethod
    def execute(cls, model: Any, shape: str, cfg_min: float, cfg_max: float) -> io.NodeOutput:
        guidance = Guidance(shape, cfg_min, cfg_max)
        guidance.table(sv4d2_model(model).sv4d2_config)  # a wrong range is reported here, not in the sampler
        return io.NodeOutput(with_guidance(model, guidance))
