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

from ..sv4d2_core.cameras import Cameras
from ..sv4d2_core.data.reader import numbered_file, numbered_folder
from ..sv4d2_core.export.mesh import Mesh, MeshAnimation, srgb_to_linear
from ..sv4d2_core.export.scene_export import (
    VIEWS_FORMATS,
    Exported,
    ExportSettings,
    as_gaussians,
    export_scene,
    export_views,
    surfaces,
)
from ..sv4d2_core.export.splats import SH_0, gaussians_at, in_splat_frame
from ..sv4d2_core.export.surface import welded_normals
from ..sv4d2_core.export.texture import Texture, bake_texture
from ..sv4d2_core.export.track import track
from ..sv4d2_core.scene.scene import Scene4D, even_times
from ..sv4d2_core.views import ViewGrid
from .host import CamerasType, SceneType, ViewsType, aliases, gradients
from .output_folder import output_place, relative_to_output, shown_files
from .preview import counted_progress
from .views import parsed_crop


def faces_input() -> io.Input:
    """Return the widget for the number of triangles."""
    return io.Int.Input(
        "faces",
        default=ExportSettings().faces,
        min=4,
        max=1000000,
        step=1000,
        tooltip="Triangles of a mesh at most.",
    )


def resolution_input() -> io.Input:
    """Return the widget for the grid."""
    return io.Int.Input(
        "resolution",
        default=ExportSettings().resolution,
        min=16,
        max=512,
        step=16,
        tooltip="Steps of the grid that the surface is found on, along the object. More is finer and slower: "
        "twice as many take eight times as long.",
    )


def smoothing_input() -> io.Input:
    """Return the widget for the filter. It is optional: prompts that were saved before it existed run."""
    return io.Int.Input(
        "smoothing",
        default=ExportSettings().smoothing,
        min=0,
        max=1000,
        optional=True,
        tooltip="Times that each mesh is smoothed, by a filter that does not shrink it; 0: none.",
    )


# What the widget offers: the core's format, and the end of the file's name; none is a folder.
_FORMATS = {
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
    """An output of newer hosts, whose nodes take a 3D file rather than its name.

    Args:
        socket: its type in the host's `io`.
        name: of the output.
        formats: that have such a file.
        tooltip: of the output.
    """

    socket: str
    name: str
    formats: tuple[str, ...]
    tooltip: str


_FILE_OUTPUTS = [
    output
    for output in (
        _FileOutput(
            "File3DAny",
            "model_3d",
            ("glb", "glb-sequence", "obj", "ply", "usd", "splat-glb"),
            "The file, of a sequence the first, for Preview 3D (Advanced), Save 3D (Advanced) and the like. "
            "glb, glb-sequence, obj, ply, usd and splat-glb have one.",
        ),
        _FileOutput(
            "File3DSplatAny",
            "splat_3d",
            ("splat-ply", "splat"),
            "The file of the first frame, for Preview Splat, Save Splat and the like. splat-ply and splat "
            "have one.",
        ),
    )
    if hasattr(io, output.socket)
]


class SV4D2Export4D(io.ComfyNode):
    """A scene as files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2Export4D",
            display_name="SV4D2 Export 4D",
            category="SV4D2/export",
            description=(
                "Writes a 4D scene as files that other programs open: an animated GLB for Blender, Unity and "
                "browsers, meshes or Gaussians frame by frame, USD, data sets with cameras, turntables. "
                "Connect the scene of SV4D2 Refine 4D or SV4D2 Load Scene. To see a GLB connect file to "
                "Preview 3D or, in newer versions of ComfyUI, model_3d to Preview 3D (Advanced). Nothing is "
                "ever overwritten."
            ),
            inputs=[
                SceneType.Input("scene", tooltip="The scene, from SV4D2 Refine 4D or SV4D2 Load Scene."),
                io.Combo.Input(
                    "format",
                    options=list(_FORMATS),
                    default="glb",
                    tooltip="glb: one mesh that moves. glb-sequence, obj, ply: a mesh per frame. usd: meshes "
                    "over time (needs usd-core). splat-ply, splat, splat-glb, npz: Gaussians, of scenes made "
                    "of them. dataset, colmap: pictures with masks, times and cameras. turntable: a video.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="sv4d2/export",
                    tooltip="Name below ComfyUI's output folder; a number is added: sv4d2/export_00001.glb. "
                    "Knows %year%, %month%, %day% and the like.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="This many evenly spread times; 0: the scene's own. Of a turntable: pictures; 0: "
                    "96.",
                ),
                faces_input(),
                resolution_input(),
                io.Int.Input(
                    "texture",
                    default=0,
                    min=0,
                    max=8192,
                    step=256,
                    tooltip="glb: width of a baked texture in pixels (needs xatlas); 0: colours at vertices.",
                ),
                io.Int.Input(
                    "size",
                    default=512,
                    min=16,
                    max=4096,
                    step=16,
                    tooltip="dataset, colmap, turntable: side of the pictures in pixels.",
                ),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=1.0,
                    tooltip="Frames per second at which the result is played; 0: the scene's own pace.",
                ),
                CamerasType.Input(
                    "cameras",
                    optional=True,
                    tooltip="dataset, colmap: where to see the scene from, from SV4D2 Camera Orbit. Open: "
                    "the cameras it was fitted to.",
                ),
                smoothing_input(),
            ],
            outputs=[
                io.String.Output(
                    display_name="file",
                    tooltip="The new file or folder relative to the output folder; Preview 3D takes a GLB.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="What was written, its size, how well the mesh follows and how evenly.",
                ),
                *(
                    getattr(io, one.socket).Output(display_name=one.name, tooltip=one.tooltip)
                    for one in _FILE_OUTPUTS
                ),
            ],
            is_output_node=True,
            **aliases("glb", "gltf", "blender", "unity", "usd", "obj", "ply", "gaussian splatting", "colmap"),
        )

    @classmethod
    def execute(
        cls,
        scene: Scene4D,
        format: str,
        filename_prefix: str,
        frames: int,
        faces: int,
        resolution: int,
        texture: int,
        size: int,
        fps: float,
        cameras: Cameras | None = None,
        smoothing: int = ExportSettings().smoothing,
    ) -> io.NodeOutput:
        """Write the files and say what was written."""
        kind, suffix = _FORMATS[format]
        around = kind == "turntable"
        settings = ExportSettings(
            times=None if frames == 0 or around else even_times(frames),
            frames=frames if frames and around else ExportSettings().frames,
            faces=faces,
            resolution=resolution,
            smoothing=smoothing,
            texture=texture,
            size=size,
            cameras=cameras,
            fps=fps or None,
            # The place is new and empty.
            overwrite=True,
        )
        place, made = _written(scene, kind, suffix, filename_prefix, settings)
        name = relative_to_output(place)
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


def _written(
    scene: Scene4D, kind: str, suffix: str, prefix: str, settings: ExportSettings
) -> tuple[Path, Exported]:
    """Return the new file or folder and what was made."""
    parent, name = output_place(prefix, settings.size)
    with gradients():
        if not suffix:
            with numbered_folder(parent, name) as folder:
                return folder, export_scene(scene, folder, kind, settings, counted_progress())
        place = numbered_file(parent, name, suffix)
        try:
            made = export_scene(scene, place, kind, settings, counted_progress())
        finally:
            # A cancelled export leaves the empty file that kept its name; so does a sequence in its place.
            if place.stat().st_size == 0:
                place.unlink()
    return place if place.exists() else made.paths[0].parent, made


class SV4D2ExportDataset(io.ComfyNode):
    """Views as a data set."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2ExportDataset",
            display_name="SV4D2 Export Dataset",
            category="SV4D2/export",
            description=(
                "Writes views as a data set that reconstruction programs train on: D-NeRF and nerfstudio "
                "(transforms_train, val and test, RGBA pictures, masks, times, cameras.json, videos) or "
                "COLMAP text. Connect the views of SV4D2 Sampler or SV4D2 Render 4D. Nothing is ever "
                "overwritten."
            ),
            inputs=[
                ViewsType.Input(
                    "views", tooltip="The views to write, from SV4D2 Sampler or SV4D2 Render 4D."
                ),
                io.Combo.Input(
                    "format",
                    options=list(VIEWS_FORMATS),
                    default=VIEWS_FORMATS[0],
                    tooltip="dataset: for D-NeRF, nerfstudio, 4D Gaussian splatting and their like. colmap: "
                    "one COLMAP model per frame.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="sv4d2/dataset",
                    tooltip="Name of the folder below ComfyUI's output folder; a number is added: "
                    "sv4d2/dataset_00001. Knows %year%, %month%, %day% and the like.",
                ),
                io.String.Input(
                    "crop",
                    optional=True,
                    force_input=True,
                    tooltip="The crop of SV4D2 Prepare Clip, kept in cameras.json: it says where the views "
                    "belong in the source clip.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="folder", tooltip="The new folder relative to the output folder."
                ),
            ],
            is_output_node=True,
            **aliases("transforms.json", "nerfstudio", "d-nerf", "colmap", "nerf", "export"),
        )

    @classmethod
    def execute(
        cls, views: ViewGrid, format: str, filename_prefix: str, crop: str | None = None
    ) -> io.NodeOutput:
        """Write the folder and return its name."""
        path = parsed_crop(crop)
        with numbered_folder(*output_place(filename_prefix, views.images.shape[2])) as folder:
            made = export_views(views, folder, format, crop=path)
        name = relative_to_output(folder)
        report = f"{name}: {made.n_bytes() / 1e6:.2f} MB"
        return io.NodeOutput(name, ui={**shown_files(made.paths), "text": [report]})


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
