"""The node that turns views into a 4D scene."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io

from ..sv4d2_core.scene.config import RefineConfig
from ..sv4d2_core.video.crop import CropPath
from .geometry_images import normals_of_images
from .gradients import copied, gradients
from .preview import picture_preview
from .refine_inputs import AUTO, GIVEN, refine_inputs
from .refine_job import RefineJob
from .second_stage import SecondStage
from .sockets import SceneType, aliases, shows_a_picture
from .views_folder import parsed_crop


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
