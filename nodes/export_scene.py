"""The node that writes a scene as files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from comfy_api import latest
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..sv4d2_core.cameras import Cameras
from ..sv4d2_core.export.scene_export import Exported, ExportSettings, export_scene
from ..sv4d2_core.files import claimed
from ..sv4d2_core.scene.scene import Scene4D, even_times
from .gradients import gradients
from .mesh_inputs import faces_input, resolution_input, smoothing_input
from .output_folder import output_place, relative_to_output, shown_files
from .progress import counted_progress
from .sockets import CamerasType, SceneType, aliases

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
    with gradients(), claimed(*output_place(prefix, settings.size), suffix) as place:
        made = export_scene(scene, place, kind, settings, counted_progress())
    return place if place.exists() else made.paths[0].parent, made
