"""Nodes that write a scene as files, and give it to the host's own mesh and splat nodes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from comfy_api import latest
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..sv4d2_core.export.scene_export import (
    VIEWS_FORMATS,
    ExportSettings,
    as_gaussians,
    export_scene,
    export_views,
    surfaces,
)
from ..sv4d2_core.export.splats import SH_0, gaussians_at, in_splat_frame
from ..sv4d2_core.files import claimed
from ..sv4d2_core.scene.scene import Scene4D, even_times
from ..sv4d2_core.scene.tracking.mesh import (
    Mesh,
    MeshAnimation,
    Texture,
    atlas_package,
    bake_texture,
    srgb_to_linear,
)
from ..sv4d2_core.scene.tracking.surface import welded_normals
from ..sv4d2_core.scene.tracking.track import track
from ..sv4d2_core.views import ViewGrid
from .host import CamerasType, SceneType, ViewsType, aliases, choice, described, gradients, number, outputs
from .output_folder import output_place, relative_to_output, shown_files
from .preview import Progress
from .views import parsed_crop

_DEFAULTS = ExportSettings()

_FORMATS = {  # the widget's word: the core's format, and the suffix; none is a folder
    "glb": ("glb", ".glb"),
    "glb-sequence": ("glb-sequence", ""),
    "obj": ("obj", ""),
    "ply": ("ply", ""),
    "usd": ("usd", ".usdc"),
    "splat-ply": ("splat-ply", ""),
    "splat": ("splat", ""),
    "npz": ("npz", ".npz"),
    "dataset": ("dataset", ""),
    "colmap": ("colmap", ""),
    "turntable-mp4": ("turntable", ".mp4"),
    "turntable-webm": ("turntable", ".webm"),
    "turntable-gif": ("turntable", ".gif"),
    "splat-glb": ("splat-glb", ""),
}


class _FileOutput(NamedTuple):
    """An output of newer hosts, whose nodes take a 3D file rather than its name."""

    socket: str  # its type in the host's `io`
    name: str
    formats: tuple[str, ...]  # that have such a file


_FILE_OUTPUTS = [
    output
    for output in (
        _FileOutput("File3DAny", "model_3d", ("glb", "glb-sequence", "obj", "ply", "usd", "splat-glb")),
        _FileOutput("File3DSplatAny", "splat_3d", ("splat-ply", "splat")),
    )
    if hasattr(io, output.socket)
]


class SV4D2Export4D(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2Export4D",
            category="SV4D2/export",
            inputs=[
                SceneType.Input("scene"),
                choice("format", _FORMATS),
                io.String.Input("filename_prefix", default="sv4d2/export"),
                number("frames", 0, (0, 10000)),
                number("faces", _DEFAULTS.faces, (4, 1000000, 1000)),
                number("resolution", _DEFAULTS.resolution, (16, 512, 16)),
                number("texture", 0, (0, 8192, 256)),
                number("size", 512, (16, 4096, 16)),
                number("fps", 0.0, (0, 240, 1)),
                CamerasType.Input("cameras", optional=True),
                number("smoothing", _DEFAULTS.smoothing, (0, 1000), optional=True),
                number("sh_degree", _DEFAULTS.sh_degree, (0, 3), optional=True),
            ],
            outputs=[
                io.String.Output(display_name="file"),
                io.String.Output(display_name="report"),
                *(getattr(io, one.socket).Output(display_name=one.name) for one in _FILE_OUTPUTS),
            ],
            is_output_node=True,
            **aliases("glb", "gltf", "blender", "unity", "usd", "obj", "ply", "gaussian splatting", "colmap"),
        )

    @classmethod
    def execute(
        cls, scene: Scene4D, format: str, filename_prefix: str, frames: int, fps: float, **more: Any
    ) -> io.NodeOutput:
        """Write the files; ``more`` are further `ExportSettings`, as their widgets and socket are called."""
        kind, suffix = _FORMATS[format]
        if kind == "turntable":
            more["frames"] = frames or _DEFAULTS.frames
        elif frames:
            more["times"] = even_times(frames)
        settings = ExportSettings(**more, fps=fps or None, overwrite=True)  # the place is new and empty
        with gradients(), claimed(*output_place(filename_prefix, settings.size), suffix) as place:
            made = export_scene(scene, place, kind, settings, Progress())
        name = relative_to_output(place if place.exists() else made.paths[0].parent)
        report = [f"{name}: {made.n_bytes() / 1e6:.2f} MB", *made.notes]
        return io.NodeOutput(
            name,
            "\n".join(report),
            *(_handed_on(one, format, made.paths[0]) for one in _FILE_OUTPUTS),
            ui={**shown_files(made.paths), "text": report},
        )


def _handed_on(output: _FileOutput, format: str, file: Path) -> Any:
    """Return the host's file for an output, or what stops the nodes that wait for it."""
    if format in output.formats:
        return latest.Types.File3D(str(file))
    return ExecutionBlocker(
        f"{output.name} of SV4D2 Export 4D has a file in the formats {', '.join(output.formats)} only; got "
        f"{format}. Set format to one of them, or connect another output."
    )


class SV4D2ExportDataset(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2ExportDataset",
            category="SV4D2/export",
            inputs=[
                ViewsType.Input("views"),
                choice("format", VIEWS_FORMATS),
                io.String.Input("filename_prefix", default="sv4d2/dataset"),
                io.String.Input("crop", optional=True, force_input=True),
            ],
            outputs=outputs(folder=io.String),
            is_output_node=True,
            **aliases("transforms.json", "nerfstudio", "d-nerf", "colmap", "nerf", "export"),
        )

    @classmethod
    def execute(
        cls, views: ViewGrid, format: str, filename_prefix: str, crop: str | None = None
    ) -> io.NodeOutput:
        path = parsed_crop(crop)
        with claimed(*output_place(filename_prefix, views.images.shape[2])) as folder:
            made = export_views(views, folder, format, crop=path)
        name = relative_to_output(folder)
        report = [f"{name}: {made.n_bytes() / 1e6:.2f} MB", *made.notes]
        return io.NodeOutput(name, ui={**shown_files(made.paths), "text": report})


class SV4D2SceneToMesh(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2SceneToMesh",
            category="SV4D2/export",
            inputs=[
                SceneType.Input("scene"),
                number("frames", 0, (0, 10000)),
                number("faces", _DEFAULTS.faces, (4, 1000000, 1000)),
                number("resolution", _DEFAULTS.resolution, (16, 512, 16)),
                io.Boolean.Input("one_topology", default=True),
                number("smoothing", _DEFAULTS.smoothing, (0, 1000), optional=True),
                number("texture", 0, (0, 8192, 256), optional=True),
            ],
            outputs=outputs(mesh=io.Mesh, fps=io.Float),
            **aliases("mesh", "marching cubes", "3d model", "geometry"),
        )

    @classmethod
    def execute(cls, scene: Scene4D, frames: int, one_topology: bool, **more: Any) -> io.NodeOutput:
        """Return the batch; ``more`` are further `ExportSettings`, as their widgets are called."""
        settings = ExportSettings(times=even_times(frames) if frames else None, **more)
        if settings.texture and "texture" not in _host_fields():
            raise ValueError(
                f"Expected a ComfyUI whose meshes have textures to bake {settings.texture} pixels; this "
                f"version's have none. Set texture to 0, or let SV4D2 Export 4D bake it into a GLB."
            )
        with gradients():
            meshes, textures = _meshes(scene, settings, one_topology)
        return io.NodeOutput(batched(meshes, textures), settings.rate(scene))


def _meshes(
    scene: Scene4D, settings: ExportSettings, one_topology: bool
) -> tuple[Sequence[Mesh], Sequence[Texture]]:
    """Return a mesh per time and, where they are asked for, its texture, which may be one for all."""
    progress = Progress()
    if settings.texture:
        atlas_package(settings.texture)  # what is missing is told of before the work
    if one_topology:
        tracked = track(
            scene,
            settings.times_of(scene),
            settings.resolution,
            settings.faces,
            smoothing=settings.smoothing,
            callback=progress,
        )
        if not tracked.follows:
            worst = 100 * max(tracked.deviation)
            raise ValueError(
                f"Expected a surface that one mesh can follow; it is off by {worst:.1f} % of the object's "
                f"size at worst. Switch one_topology off."
            )
        animations, frame = [tracked.animation], tracked.anchor
    else:
        animations = [
            MeshAnimation(mesh.vertices[None], mesh.faces, mesh.colours, (0.0,), 1.0)
            for mesh in surfaces(scene, settings, progress)
        ]
        frame = 0
    meshes: list[Mesh] = []
    textures: list[Texture] = []
    for animation in animations:
        if settings.texture:
            animation, texture = bake_texture(animation, settings.texture, frame=frame)
            textures += [texture] * len(animation.positions)
        meshes += [animation.at(t) for t in range(len(animation.positions))]
    return meshes, textures


def batched(meshes: Sequence[Mesh], textures: Sequence[Texture] = ()) -> Any:
    """Return the host's mesh of a batch, padded with zeros.

    Newer hosts also take lengths, normals and linear colours, or textures as values of pictures instead.
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
    """Return tensors [N, ...] of different N as one [B, N, ...], zeros at the end: they show nothing."""
    return torch.nn.utils.rnn.pad_sequence([*rows], batch_first=True)


class SV4D2SceneToSplat(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2SceneToSplat",
            category="SV4D2/export",
            inputs=[SceneType.Input("scene"), number("frames", 0, (0, 10000))],
            outputs=outputs(splat=io.Splat),
            **aliases("gaussian splatting", "3dgs", "splat", "ply"),
        )

    @classmethod
    def execute(cls, scene: Scene4D, frames: int) -> io.NodeOutput:
        """Return the batch, in the axes of 3DGS files (+y down) as the host's splats are."""
        gaussians = as_gaussians(scene)
        times = tuple(scene.times) if frames == 0 else even_times(frames)
        with gradients():
            gaussians.learn_motion(times, Progress())
            seen = [in_splat_frame(gaussians_at(gaussians, time)) for time in times]
        # Between frames there are those of both.
        counts = torch.tensor([len(one.means) for one in seen])
        means, quats, scales, opacities, colours = (_filled(parts) for parts in zip(*seen, strict=True))
        harmonics = ((colours - 0.5) / SH_0)[:, :, None]
        splat = means, scales, quats, opacities[..., None], harmonics
        return io.NodeOutput(latest.Types.SPLAT(*splat, counts if counts.unique().numel() > 1 else None))
