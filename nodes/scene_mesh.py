"""The node that gives a scene's surface to the host's mesh nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api import latest
from comfy_api.latest import io
from torch import Tensor

from ..sv4d2_core.export.export_settings import ExportSettings
from ..sv4d2_core.export.formats.linear_colour import srgb_to_linear
from ..sv4d2_core.export.mesh.mesh import Mesh
from ..sv4d2_core.export.mesh.tracking import track
from ..sv4d2_core.export.scene_meshes import surfaces
from ..sv4d2_core.fourd.scene import Scene4D, even_times
from .gradients import gradients
from .mesh_inputs import faces_input, resolution_input, smoothing_input
from .progress import counted_progress
from .sockets import SceneType, aliases


class SV4D2SceneToMesh(io.ComfyNode):
    """A scene as a batch of meshes over time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2SceneToMesh",
            display_name="SV4D2 Scene to Mesh",
            category="SV4D2/export",
            description=(
                "Gives the surface of a 4D scene to ComfyUI's mesh nodes, as a batch with one mesh per "
                "frame. Connect mesh to SaveGLB, which writes a file per frame; for one animated file use "
                "SV4D2 Export 4D."
            ),
            inputs=[
                SceneType.Input("scene", tooltip="The scene, from SV4D2 Refine 4D or SV4D2 Load Scene."),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="This many evenly spread times; 0: the scene's own.",
                ),
                faces_input(),
                resolution_input(),
                io.Boolean.Input(
                    "one_topology",
                    default=True,
                    tooltip="On: one mesh that moves, the same triangles in every frame. Off: each frame its "
                    "own mesh, nearer to the scene.",
                ),
                smoothing_input(),
            ],
            outputs=[
                io.Mesh.Output(display_name="mesh", tooltip="The meshes, one per frame."),
                io.Float.Output(display_name="fps", tooltip="Frames per second at which to play them."),
            ],
            **aliases("mesh", "marching cubes", "3d model", "geometry"),
        )

    @classmethod
    def execute(
        cls,
        scene: Scene4D,
        frames: int,
        faces: int,
        resolution: int,
        one_topology: bool,
        smoothing: int = ExportSettings().smoothing,
    ) -> io.NodeOutput:
        """Return the batch."""
        times = None if frames == 0 else even_times(frames)
        settings = ExportSettings(times=times, faces=faces, resolution=resolution, smoothing=smoothing)
        with gradients():
            meshes = _meshes(scene, settings, one_topology)
        return io.NodeOutput(batched(meshes), settings.rate(scene))


def _meshes(scene: Scene4D, settings: ExportSettings, one_topology: bool) -> Sequence[Mesh]:
    """Return a mesh per time.

    Raises:
        ValueError: one topology is wanted and cannot follow the surface.
    """
    progress = counted_progress()
    if not one_topology:
        return [*surfaces(scene, settings, progress)]
    times = settings.times_of(scene)
    tracked = track(
        scene, times, settings.resolution, settings.faces, smoothing=settings.smoothing, callback=progress
    )
    if not tracked.follows:
        raise ValueError(
            f"Expected a surface that one mesh can follow; it is off by {100 * max(tracked.deviation):.1f} % "
            f"of the object's size at worst. Switch one_topology off."
        )
    return [tracked.animation.at(t) for t in range(len(times))]


def batched(meshes: Sequence[Mesh]) -> Any:
    """Return the host's mesh of a batch; shorter ones are filled with what shows nothing.

    Newer hosts know how long each one is, and colours, which they take as linear values.
    """
    vertices = _filled([mesh.vertices for mesh in meshes])
    faces = _filled([mesh.faces for mesh in meshes])
    kind = getattr(getattr(latest, "Types", None), "MESH", None)
    if kind is None:
        from comfy_extras.nodes_hunyuan3d import MESH

        return MESH(vertices, faces)
    linear = [torch.from_numpy(srgb_to_linear(mesh.colours.numpy())).float() for mesh in meshes]
    return kind(
        vertices,
        faces,
        vertex_colors=_filled(linear),
        vertex_counts=torch.tensor([len(mesh.vertices) for mesh in meshes]),
        face_counts=torch.tensor([len(mesh.faces) for mesh in meshes]),
        unlit=True,
    )


def _filled(rows: Sequence[Tensor]) -> Tensor:
    """Return tensors [N, 3] of different N as one [B, N, 3], zeros at the end: faces without an area."""
    return torch.nn.utils.rnn.pad_sequence([*rows], batch_first=True)
