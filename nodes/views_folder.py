"""Views in folders: saved below ComfyUI's output folder, loaded from there or from the input folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comfy.cli_args import args
from comfy_api.latest import io, ui

from ..sv4d2_core.data.views_folder import CAMERAS_FILE, CONTACT_SHEET, RUN_FILE, read_views, write_views
from ..sv4d2_core.files import claimed
from ..sv4d2_core.shipped import versions
from ..sv4d2_core.views import ViewGrid
from .output_folder import found_inside, host, output_place, relative_to_output
from .sockets import CamerasType, ViewsType, aliases


class SV4D2LoadViews(io.ComfyNode):
    """Loads views that were saved earlier."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2LoadViews",
            display_name="SV4D2 Load Views",
            category="SV4D2/views",
            description=(
                "Loads views that SV4D2 Save Views or the command line wrote, so that later steps need no "
                "sampling. Give the folder's name; nothing needs to be connected. Connect the views to any "
                "SV4D2 node that takes views."
            ),
            inputs=[
                io.String.Input(
                    "folder",
                    default="sv4d2/views_00001",
                    tooltip="The folder with run.json and view_00.mp4, relative to ComfyUI's output folder "
                    "(looked at first) or input folder, such as sv4d2/views_00001. Or connect the folder "
                    "output of SV4D2 Save Views.",
                ),
            ],
            outputs=[
                ViewsType.Output(display_name="views", tooltip="The views with cameras, masks and settings."),
                io.String.Output(
                    display_name="crop",
                    tooltip="Where the clip was cut out of its source, as JSON text; blank when not known.",
                ),
                CamerasType.Output(display_name="cameras", tooltip="The cameras of the views."),
            ],
            **aliases("stable video 4d", "novel view", "open views"),
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None) -> int:
        """Return when a file of the views last changed, so that they are read again then."""
        if folder is None:
            # The name comes through a link and is not known yet.
            return 0
        try:
            return max(path.stat().st_mtime_ns for path in _found(folder).rglob("*"))
        except (OSError, ValueError):
            # `execute` says what is wrong.
            return 0

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        """Return the views and the crop."""
        place = _found(folder)
        views = read_views(place)
        crop = json.loads((place / CAMERAS_FILE).read_text()).get("crop")
        return io.NodeOutput(views, "" if crop is None else json.dumps(crop), views.cameras)


class SV4D2SaveViews(io.ComfyNode):
    """Saves views as videos, pictures and camera files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2SaveViews",
            display_name="SV4D2 Save Views",
            category="SV4D2/views",
            description=(
                "Writes views into a new folder: a video per view, frames and masks as PNG, a contact "
                "sheet, camera files for reconstruction programs (cameras.json, transforms.json) and all "
                "settings (run.json). Connect the views of SV4D2 Sampler, and the crop of SV4D2 Prepare "
                "Clip. Nothing is ever overwritten."
            ),
            inputs=[
                ViewsType.Input("views", tooltip="The views to save, from SV4D2 Sampler."),
                io.String.Input(
                    "filename_prefix",
                    default="sv4d2/views",
                    tooltip="Name of the folder below ComfyUI's output folder; a number is added: "
                    "sv4d2/views_00001. Knows %year%, %month%, %day% and the like.",
                ),
                io.Boolean.Input(
                    "save_latents",
                    default=False,
                    tooltip="Also save the sampled latents (what the VAE decodes), to decode or refine them "
                    "later.",
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
                    display_name="folder",
                    tooltip="The new folder relative to the output folder, as SV4D2 Load Views takes it.",
                ),
            ],
            is_output_node=True,
            **aliases("stable video 4d", "novel view", "export", "transforms.json", "nerfstudio"),
        )

    @classmethod
    def execute(
        cls, views: ViewGrid, filename_prefix: str, save_latents: bool, crop: str | None = None
    ) -> io.NodeOutput:
        """Write the folder, show its contact sheet and return its name."""
        path = parsed_crop(crop)
        size = views.images.shape[2]
        run = {"settings": {"host": host(), **_workflow(cls)}, "versions": versions()}
        with claimed(*output_place(filename_prefix, size)) as folder:
            write_views(folder, views, crop=path, run=run, save_latents=save_latents)
        relative = relative_to_output(folder)
        sheet = ui.SavedResult(CONTACT_SHEET, relative, io.FolderType.output)
        return io.NodeOutput(relative, ui=ui.SavedImages([sheet]))


def _found(name: str) -> Path:
    """Return the folder of views that has this name."""
    return found_inside(name, lambda path: (path / RUN_FILE).is_file(), "a folder of views")


def parsed_crop(crop: str | None) -> dict | None:
    """Return the crop that SV4D2 Prepare Clip wrote as text; None for none."""
    if not crop or not crop.strip():
        return None
    try:
        parsed = json.loads(crop)
    except ValueError as error:
        raise ValueError(f"{_wrong_crop(crop)} ({error}).") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{_wrong_crop(crop)}.")
    return parsed


def _wrong_crop(crop: str) -> str:
    shown = crop if len(crop) <= 60 else f"{crop[:57]}..."
    return f"Expected the crop output of SV4D2 Prepare Clip (JSON text of an object); got {shown!r}"


def _workflow(cls: type[io.ComfyNode]) -> dict[str, Any]:
    """Return prompt and workflow as plain JSON values, or nothing where the user wants no metadata."""
    if args.disable_metadata or cls.hidden is None:
        return {}
    known = {"prompt": cls.hidden.prompt, "extra_pnginfo": cls.hidden.extra_pnginfo}
    # The host keeps "not a number" in a prompt where a node must always run again; JSON has no such value.
    text = json.dumps({key: value for key, value in known.items() if value}, default=str)
    return json.loads(text, parse_constant=lambda _: None)
