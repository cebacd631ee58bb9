"""The node that puts guidance per frame and view on a MODEL."""

from __future__ import annotations

from comfy_api.latest import io

from ..sv4d2_core.diffusion.config import GUIDANCE_SHAPES
from .guidance import OFFICIAL, Guidance, with_guidance
from .host_model import sv4d2_model
from .sampler_inputs import cfg_inputs
from .sockets import aliases


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
