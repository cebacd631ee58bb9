"""The sockets and widgets of the refiner."""

from __future__ import annotations

from comfy_api.latest import io

from .sampler_inputs import FIXED
from .sockets import ViewsType, advanced

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
