"""Nodes for one window through ComfyUI's own KSampler."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..sv4d2_core.diffusion.config import GUIDANCE_SHAPES
from ..sv4d2_core.diffusion.novel_views import window_conditioning
from .backend import backend_of
from .guidance import OFFICIAL, Guidance, with_guidance
from .host_model import sv4d2_model
from .sampler_inputs import cfg_inputs, model_and_clip_inputs
from .sockets import CamerasType, aliases
from .window_conds import both_halves


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
            ],
            **aliases("stable video 4d", "novel view", "multi-view", "sv4d conditioning"),
        )

    @classmethod
    def execute(
        cls, model, clip_vision, vae, clip, cameras, window_start, reference_views=None
    ) -> io.NodeOutput:
        """Return positive, negative and empty latents."""
        config = sv4d2_model(model).config_for(cameras.n_views)
        backend = backend_of(model, clip_vision, vae, config)
        window = window_conditioning(backend, clip, cameras, window_start, reference_views)
        cond, uncond = both_halves(window, config.unet.view_mixing)
        return io.NodeOutput(cond.to_host(), uncond.to_host(), {"samples": torch.zeros(cond.latent_shape)})


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
