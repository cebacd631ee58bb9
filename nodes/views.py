"""Views in folders, as images, as a video, and out of images."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import InputImpl, Types, io, ui
from torch import Tensor

from ..sv4d2_core.cameras import Cameras
from ..sv4d2_core.commands.common import versions
from ..sv4d2_core.data.reader import find_views, numbered_folder
from ..sv4d2_core.data.views_folder import CAMERAS_FILE, CONTACT_SHEET, read_views, write_views
from ..sv4d2_core.video.foreground import near_white_masks
from ..sv4d2_core.video.pictures import view_mosaic
from ..sv4d2_core.video.prepare import BY_FRAME, BY_VIEW, assemble_renders, assemble_views
from ..sv4d2_core.views import ViewGrid
from .host import CamerasType, ViewsType, aliases
from .host_model import sv4d2_model
from .output_folder import host, output_place, relative_to_output


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
            return max(path.stat().st_mtime_ns for path in find_views(folder, _roots()).rglob("*"))
        except (OSError, ValueError):
            # `execute` says what is wrong.
            return 0

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        """Return the views and the crop."""
        place = find_views(folder, _roots())
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
        with numbered_folder(*output_place(filename_prefix, size)) as folder:
            write_views(folder, views, crop=path, run=run, save_latents=save_latents)
        relative = relative_to_output(folder)
        sheet = ui.SavedResult(CONTACT_SHEET, relative, io.FolderType.output)
        return io.NodeOutput(relative, ui=ui.SavedImages([sheet]))


def _roots() -> list[Path]:
    return [Path(folder_paths.get_output_directory()), Path(folder_paths.get_input_directory())]


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


_ONE_VIEW, _ONE_FRAME, _ALL_VIEWS = "one view", "one frame", "all views"


class SV4D2ViewsToImages(io.ComfyNode):
    """Takes images out of views."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2ViewsToImages",
            display_name="SV4D2 Views to Images",
            category="SV4D2/views",
            description=(
                "Takes images and masks out of views for any other node: the clip of one view, all views of "
                "one moment (a turntable), or everything. Connect the views of SV4D2 Sampler or SV4D2 Load "
                "Views, and the images to Create Video, Save Image, an upscaler ..."
            ),
            inputs=[
                ViewsType.Input("views", tooltip="The views, from SV4D2 Sampler or SV4D2 Load Views."),
                io.Combo.Input(
                    "mode",
                    options=[_ONE_VIEW, _ONE_FRAME, _ALL_VIEWS],
                    default=_ONE_VIEW,
                    tooltip="one view: the clip seen from one camera. one frame: one moment seen from all "
                    "cameras. all views: the whole clip of one camera after the other.",
                ),
                io.Int.Input(
                    "view",
                    default=1,
                    min=0,
                    max=1024,
                    tooltip="For one view: which camera; 0 is the input clip, 1 the first novel view.",
                ),
                io.Int.Input(
                    "frame", default=0, min=0, max=10000, tooltip="For one frame: which one, counted from 0."
                ),
                io.Boolean.Input(
                    "include_input",
                    default=True,
                    tooltip="For one frame and all views: whether the input clip's own view comes first.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The chosen images, on white."),
                io.Mask.Output(display_name="mask", tooltip="The object in each image, white."),
                io.Float.Output(
                    display_name="fps", tooltip="Frames per second of the views; connect it to Create Video."
                ),
            ],
            **aliases("stable video 4d", "novel view", "unpack views", "turntable"),
        )

    @classmethod
    def execute(cls, views: ViewGrid, mode: str, view: int, frame: int, include_input: bool) -> io.NodeOutput:
        """Return the chosen images with their masks."""
        if mode == _ONE_VIEW:
            images, masks = views.one_view(view)
        elif mode == _ONE_FRAME:
            images, masks = views.one_frame(frame, include_input)
        else:
            images, masks = views.all_views(include_input)
        masks = near_white_masks(images) if masks is None else masks
        # Copies: nodes of other packs write into what they get, and the views stay in the host's cache.
        return io.NodeOutput(_copy(images), _copy(masks), views.fps)


def _copy(images: Tensor) -> Tensor:
    return images.clone(memory_format=torch.contiguous_format)


class SV4D2ImagesToViews(io.ComfyNode):
    """Makes views of images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2ImagesToViews",
            display_name="SV4D2 Images to Views",
            category="SV4D2/views",
            description=(
                "Packs images into views, so that they can be shown, saved and turned into 4D: the result "
                "of KSampler and VAE Decode, or views that another node has edited or upscaled. Connect the "
                "prepared clip, the novel views and the cameras they were made with. Clip and novel views "
                "must be squares of one size, on white."
            ),
            inputs=[
                io.Image.Input(
                    "clip", tooltip="The input view's frames, from SV4D2 Prepare Clip: square, on white."
                ),
                io.Image.Input(
                    "novel_views",
                    tooltip="All frames of all novel views without the input view: frames times views "
                    "images.",
                ),
                CamerasType.Input(
                    "cameras", tooltip="The cameras of the novel views, from SV4D2 Camera Orbit."
                ),
                io.Combo.Input(
                    "order",
                    options=[BY_FRAME, BY_VIEW],
                    default=BY_FRAME,
                    tooltip="How novel_views is sorted. frame by frame: all views of frame 0, then of frame "
                    "1 ... (what KSampler with SV4D2 Conditioning gives). view by view: all frames of view "
                    "1, then of view 2 ... (what SV4D2 Sampler and SV4D2 Views to Images give).",
                ),
                io.Float.Input(
                    "fps",
                    default=8.0,
                    min=0.1,
                    max=1000.0,
                    step=0.01,
                    tooltip="Frames per second; connect the fps of SV4D2 Prepare Clip.",
                ),
                io.Mask.Input(
                    "clip_mask",
                    optional=True,
                    tooltip="The object in the input view, white; the mask of SV4D2 Prepare Clip. Without "
                    "it, and in the novel views, all that is not nearly white is the object.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The SV4D 2.0 model that made the novel views, if one did: the views then carry "
                    "its name, and a label where its weights are untrained.",
                ),
            ],
            outputs=[ViewsType.Output(display_name="views", tooltip="Input view and novel views together.")],
            **aliases("stable video 4d", "novel view", "pack views", "ksampler"),
        )

    @classmethod
    def execute(
        cls,
        clip: Tensor,
        novel_views: Tensor,
        cameras: Cameras,
        order: str,
        fps: float,
        clip_mask: Tensor | None = None,
        model: Any = None,
    ) -> io.NodeOutput:
        """Return the views."""
        views = assemble_views(clip, novel_views, cameras, order=order, fps=fps, clip_masks=clip_mask)
        if model is not None:
            config = sv4d2_model(model).config_for(cameras.n_views)
            views = replace(views, variant=config.label, trained=config.trained)
        return io.NodeOutput(views)


class SV4D2RendersToViews(io.ComfyNode):
    """Makes views of pictures that another node has rendered from our cameras."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2RendersToViews",
            display_name="SV4D2 Renders to Views",
            category="SV4D2/views",
            description=(
                "Packs pictures that were rendered from all cameras, the input's first, into views: "
                "multi-view data from any 3D asset. Connect all_cameras of SV4D2 Cameras to Camera Info to "
                "Render Mesh or Render Splat with background #FFFFFF and equal width and height, their image "
                "and mask here, and the same cameras. The views go to SV4D2 Save Views, SV4D2 Export "
                "Dataset, SV4D2 Refine 4D or, as true views, to SV4D2 Metrics."
            ),
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="The pictures from all cameras, square and on white: one batch, or one for each "
                    "camera, as the renderers make them behind all_cameras.",
                ),
                CamerasType.Input(
                    "cameras",
                    tooltip="The cameras they were rendered from, from SV4D2 Camera Orbit or SV4D2 Camera "
                    "Info to Cameras.",
                ),
                io.Combo.Input(
                    "order",
                    options=[BY_VIEW, BY_FRAME],
                    default=BY_VIEW,
                    tooltip="How the pictures of several frames are sorted. view by view: all frames of the "
                    "first camera, then of the second ... (what Render Splat gives behind all_cameras). "
                    "frame by frame: all cameras of frame 0, then of frame 1 ...",
                ),
                io.Float.Input(
                    "fps",
                    default=8.0,
                    min=0.1,
                    max=1000.0,
                    step=0.01,
                    tooltip="Frames per second of the views, if they are several.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="The object in each picture, white, as the renderers give it. Without it all "
                    "that is not nearly white is the object.",
                ),
            ],
            outputs=[ViewsType.Output(display_name="views", tooltip="The pictures as views of the cameras.")],
            **aliases(
                "render mesh", "render splat", "multi-view", "3d to views", "camera list", "pack views"
            ),
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        cameras: list[Cameras],
        order: list[str],
        fps: list[float],
        masks: list[Tensor] | None = None,
    ) -> io.NodeOutput:
        """Return the views; every input is a list, as the host gives it to a node that takes lists."""
        joined = None if masks is None else _joined("masks", masks)
        return io.NodeOutput(
            assemble_renders(_joined("images", images), cameras[0], order=order[0], fps=fps[0], masks=joined)
        )


def _joined(name: str, batches: list[Tensor]) -> Tensor:
    """Return one batch of all; a renderer that runs once per camera gives one for each."""
    sizes = {tuple(batch.shape[1:]) for batch in batches}
    if len(sizes) > 1:
        raise ValueError(
            f"Expected {name} of one size from all cameras; got {sorted(sizes)}. Render them with one width "
            f"and height."
        )
    return torch.cat(batches)


class SV4D2ViewsGridVideo(io.ComfyNode):
    """Shows all views at once."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2ViewsGridVideo",
            display_name="SV4D2 Views Grid Video",
            category="SV4D2/views",
            description=(
                "Puts all views side by side, the input first, each with its number and angles: the quickest "
                "way to judge a result. Connect the views of SV4D2 Sampler or SV4D2 Load Views, and the "
                "video to Save Video or the images to Preview Image."
            ),
            inputs=[
                ViewsType.Input("views", tooltip="The views, from SV4D2 Sampler or SV4D2 Load Views."),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=65,
                    tooltip="Views in a row; 0 chooses a nearly square arrangement.",
                ),
                io.Boolean.Input(
                    "labels",
                    default=True,
                    tooltip="Write number, azimuth and elevation above each view.",
                ),
                io.Int.Input(
                    "cell_size",
                    default=288,
                    min=0,
                    max=2048,
                    step=8,
                    tooltip="Side of each view in pixels; 0 keeps the full size.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The frames with all views side by side."),
                io.Video.Output(
                    display_name="video", tooltip="The same as a video at the views' frame rate."
                ),
            ],
            **aliases("stable video 4d", "novel view", "mosaic", "contact sheet", "side by side"),
        )

    @classmethod
    def execute(cls, views: ViewGrid, columns: int, labels: bool, cell_size: int) -> io.NodeOutput:
        """Return the mosaic as images and as a video."""
        images = view_mosaic(views, columns=columns, labels=labels, cell_size=cell_size)
        rate = Fraction(views.fps).limit_denominator(1001)
        components = Types.VideoComponents(images=images, frame_rate=rate)
        return io.NodeOutput(images, InputImpl.VideoFromComponents(components))
