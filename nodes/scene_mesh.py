"""The node that gives a scene's surface to the host's mesh nodes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from comfy_api import latest
from comfy_api.latest import io
from torch import Tensor

from ..sv4d2_core.export.mesh import Mesh, MeshAnimation, Texture, bake_texture, srgb_to_linear
from ..sv4d2_core.export.scene_export import ExportSettings, surfaces
from ..sv4d2_core.export.surface import welded_normals
from ..sv4d2_core.export.track import track
from ..sv4d2_core.scene.scene import Scene4D, even_times
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
                "frame. Connect mesh to Save 3D Model (SaveGLB), which writes a file per frame; for one "
                "animated file use SV4D2 Export 4D."
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
                io.Int.Input(
                    "texture",
                    default=0,
                    min=0,
                    max=8192,
                    step=256,
                    optional=True,
                    tooltip="Width of a baked texture in pixels (needs xatlas, and a newer ComfyUI, whose "
                    "meshes have textures); 0: colours at vertices. With one_topology all frames share it.",
                ),
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
        texture: int = 0,
    ) -> io.NodeOutput:
        """Return the batch."""
        times = None if frames == 0 else even_times(frames)
        settings = ExportSettings(
            times=times, faces=faces, resolution=resolution, smoothing=smoothing, texture=texture
        )
        if texture and "texture" not in _host_fields():
            raise ValueError(
                f"Expected a ComfyUI whose meshes have textures to bake one of {texture} pixels; those of "
                f"this version have none. Set texture to 0, or let SV4D2 Export 4D bake it into a GLB."
            )
        with gradients():
            meshes, textures = _meshes(scene, settings, one_topology)
        return io.NodeOutput(batched(meshes, textures), settings.rate(scene))


def _meshes(
    scene: Scene4D, settings: ExportSettings, one_topology: bool
) -> tuple[Sequence[Mesh], Sequence[Texture]]:
    """Return a mesh per time and, where they are asked for, its texture, which may be one for all.

    Raises:
        ValueError: one topology is wanted and cannot follow the surface.
    """
    progress = counted_progress()
    if not one_topology:
        meshes = [*surfaces(scene, settings, progress)]
        still = [MeshAnimation(mesh.vertices[None], mesh.faces, mesh.colours, (0.0,), 1.0) for mesh in meshes]
        return _textured(still, settings.texture, 0)
    times = settings.times_of(scene)
    tracked = track(
        scene, times, settings.resolution, settings.faces, smoothing=settings.smoothing, callback=progress
    )
    if not tracked.follows:
        raise ValueError(
            f"Expected a surface that one mesh can follow; it is off by {100 * max(tracked.deviation):.1f} % "
            f"of the object's size at worst. Switch one_topology off."
        )
    return _textured([tracked.animation], settings.texture, tracked.anchor)


def _textured(
    animations: Sequence[MeshAnimation], size: int, frame: int
) -> tuple[Sequence[Mesh], Sequence[Texture]]:
    """Return the meshes of all frames and, where the size is not 0, the texture of each."""
    meshes: list[Mesh] = []
    textures: list[Texture] = []
    for animation in animations:
        if size:
            animation, texture = bake_texture(animation, size, frame=frame)
            textures += [texture] * len(animation.positions)
        meshes += [animation.at(t) for t in range(len(animation.positions))]
    return meshes, textures


def batched(meshes: Sequence[Mesh], textures: Sequence[Texture] = ()) -> Any:
    """Return the host's mesh of a batch; shorter ones are filled with what shows nothing.

    Newer hosts also take how long each one is, normals, and colours, as linear values. Where there are
    textures these replace them, as values of pictures; one that all meshes share is there once.
    """
    vertices = _filled([mesh.vertices for mesh in meshes])
    faces = _filled([mesh.faces for mesh in meshes])
    known = _host_fields()
    if not known:
        from comfy_extras.nodes_hunyuan3d import MESH

        return MESH(vertices, faces)
    fields: dict[str, Any] = {
        "vertex_counts": torch.tensor([len(mesh.vertices) for mesh in meshes]),
        "face_counts": torch.tensor([len(mesh.faces) for mesh in meshes]),
        "normals": _filled([welded_normals(mesh.vertices, mesh.faces) for mesh in meshes]),
        "unlit": True,
    }
    if textures:
        different = textures[:1] if textures[0] is textures[-1] else textures
        pixels = torch.stack([texture.pixels for texture in different]).float() / 255
        fields["uvs"] = _filled([texture.uvs for texture in textures])
        fields["texture"] = pixels.expand(len(meshes), -1, -1, -1)
    else:
        linear = [torch.from_numpy(srgb_to_linear(mesh.colours.numpy())).float() for mesh in meshes]
        fields["vertex_colors"] = _filled(linear)
    return latest.Types.MESH(vertices, faces, **{name: fields[name] for name in fields if name in known})


def _host_fields() -> set[str]:
    """Return what the host's own meshes consist of, vertices and faces at least; nothing on older hosts."""
    kind = getattr(getattr(latest, "Types", None), "MESH", None)
    return set() if kind is None else set(inspect.signature(kind).parameters)


def _filled(rows: Sequence[Tensor]) -> Tensor:
    """Return tensors [N, C] of different N as one [B, N, C], zeros at the end: faces without an area."""
    return torch.nn.utils.rnn.pad_sequence([*rows], batch_first=True)
