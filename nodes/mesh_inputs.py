"""The widgets of nodes that make meshes of a scene."""

from __future__ import annotations

from comfy_api.latest import io

from ..sv4d2_core.export.scene_export import ExportSettings


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
