"""The node that prepares one window for ComfyUI's own KSampler."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..sv4d2_core.diffusion.novel_views import window_conditioning, window_frames
from .backend import backend_of
from .host_model import sv4d2_model
from .sampler_inputs import model_and_clip_inputs
from .sockets import CamerasType, aliases
from .window_conds import WindowConds


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
