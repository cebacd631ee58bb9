"""Scenes in files: saved below ComfyUI's output folder, loaded from there or from the input folder."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
from comfy_api.latest import io

from ..sv4d2_core.files import claimed
from ..sv4d2_core.scene.scene import Scene4D
from ..sv4d2_core.scene.store import load_scene
from .gradients import gradients
from .output_folder import found_inside, output_place, relative_to_output, shown_files
from .preview import picture_preview
from .scene_preview import scene_strip
from .sockets import CamerasType, SceneType, aliases

_SUFFIX = ".safetensors"


class SV4D2LoadScene(io.ComfyNode):
    """Loads a scene that was saved earlier."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2LoadScene",
            display_name="SV4D2 Load Scene",
            category="SV4D2/scene",
            description=(
                "Loads a 4D scene that SV4D2 Save Scene or the command line wrote, so that it need not be "
                "fitted again. Give the file's name; nothing needs to be connected. Connect the scene to "
                "SV4D2 Render 4D."
            ),
            inputs=[
                io.String.Input(
                    "file",
                    default="sv4d2/scene_00001.safetensors",
                    tooltip="The file, relative to ComfyUI's output folder (looked at first) or input "
                    "folder, such as sv4d2/scene_00001.safetensors. Or connect the file output of SV4D2 "
                    "Save Scene.",
                ),
            ],
            outputs=[
                SceneType.Output(display_name="scene", tooltip="The scene, for SV4D2 Render 4D."),
                CamerasType.Output(
                    display_name="cameras", tooltip="The cameras of the views that it was fitted to."
                ),
            ],
            **aliases("4d", "nerf", "gaussian splatting", "open scene"),
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> int:
        """Return when the file last changed, so that it is read again then."""
        if file is None:
            # The name comes through a link and is not known yet.
            return 0
        try:
            return _found(file).stat().st_mtime_ns
        except (OSError, ValueError):
            # `execute` says what is wrong.
            return 0

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """Return the scene and its cameras."""
        with gradients():
            scene = load_scene(_found(file), comfy.model_management.get_torch_device())
        return io.NodeOutput(scene, scene.cameras)


class SV4D2SaveScene(io.ComfyNode):
    """Saves a scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2SaveScene",
            display_name="SV4D2 Save Scene",
            category="SV4D2/scene",
            description=(
                "Writes a 4D scene into one new file, which SV4D2 Load Scene and the command line (sv4d2 "
                "render) read. Connect the scene of SV4D2 Refine 4D. Nothing is ever overwritten."
            ),
            inputs=[
                SceneType.Input("scene", tooltip="The scene to save, from SV4D2 Refine 4D."),
                io.String.Input(
                    "filename_prefix",
                    default="sv4d2/scene",
                    tooltip="Name of the file below ComfyUI's output folder; a number is added: "
                    "sv4d2/scene_00001.safetensors. Knows %year%, %month%, %day% and the like.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="file",
                    tooltip="The new file relative to the output folder, as SV4D2 Load Scene takes it.",
                ),
            ],
            is_output_node=True,
            **aliases("4d", "nerf", "gaussian splatting", "export scene"),
        )

    @classmethod
    def execute(cls, scene: Scene4D, filename_prefix: str) -> io.NodeOutput:
        """Write the file, show the scene and its name."""
        with claimed(*output_place(filename_prefix, 0), _SUFFIX) as place:
            scene.save(place)
        relative = relative_to_output(place)
        size = place.stat().st_size / 2**20
        lines = [f"Saved {relative}: {scene.backend}, {scene.n_frames} frames, {size:.1f} MB"]
        with gradients():
            strip = scene_strip(scene)
        shown = {**picture_preview(strip, lines, cls), **shown_files([place])}
        return io.NodeOutput(relative, ui=shown)


def _found(name: str) -> Path:
    """Return the file of a scene that has this name."""
    return found_inside(name, lambda path: path.suffix == _SUFFIX and path.is_file(), "the file of a scene")
