"""The node that gives a scene's Gaussians to the host's splat nodes; for hosts that have `io.Splat`."""

from __future__ import annotations

import torch
from comfy_api import latest
from comfy_api.latest import io

from ..sv4d2_core.export.scene_export import as_gaussians
from ..sv4d2_core.export.splats import SH_0, gaussians_at, in_splat_frame
from ..sv4d2_core.scene.scene import Scene4D, even_times
from .sockets import SceneType, aliases


class SV4D2SceneToSplat(io.ComfyNode):
    """A scene of Gaussians as a batch over time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2SceneToSplat",
            display_name="SV4D2 Scene to Splat",
            category="SV4D2/export",
            description=(
                "Gives the Gaussians of a 4D scene to ComfyUI's splat nodes, as a batch with one set per "
                "frame. The scene must have been fitted with the backend gaussians."
            ),
            inputs=[
                SceneType.Input("scene", tooltip="A scene made of Gaussians, from SV4D2 Refine 4D."),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="This many evenly spread times; 0: the scene's own.",
                ),
            ],
            outputs=[io.Splat.Output(display_name="splat", tooltip="The Gaussians, one set per frame.")],
            **aliases("gaussian splatting", "3dgs", "splat", "ply"),
        )

    @classmethod
    def execute(cls, scene: Scene4D, frames: int) -> io.NodeOutput:
        """Return the batch, in the axes of 3DGS files (+y down) as the host's splats are."""
        gaussians = as_gaussians(scene)
        times = tuple(scene.times) if frames == 0 else even_times(frames)
        seen = [in_splat_frame(gaussians_at(gaussians, time)) for time in times]
        means, quats, scales, opacities, colours = (torch.stack(parts) for parts in zip(*seen, strict=True))
        harmonics = ((colours - 0.5) / SH_0)[:, :, None]
        return io.NodeOutput(latest.Types.SPLAT(means, scales, quats, opacities[..., None], harmonics))
