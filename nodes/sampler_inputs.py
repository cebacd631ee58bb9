"""The sockets and widgets of the sampling nodes."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ..sv4d2_core.diffusion.config import GUIDANCE_SHAPES
from .sockets import CamerasType, ViewsType, advanced

MODEL_DEFAULT = "model default"

# Newer hosts know a start value for the control; on others it starts with randomize.
FIXED = getattr(getattr(io, "ControlAfterGenerate", None), "fixed", True)


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
