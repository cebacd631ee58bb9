"""Nodes of views: folders, images and videos."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from comfy.cli_args import args
from comfy_api.latest import InputImpl, Types, io
from torch import Tensor

from ..sv4d2_core.cameras import Cameras
from ..sv4d2_core.data.clips import BY_FRAME, BY_VIEW, assemble_renders, assemble_views
from ..sv4d2_core.data.views_folder import CAMERAS_FILE, CONTACT_SHEET, RUN_FILE, read_views, write_views
from ..sv4d2_core.files import claimed
from ..sv4d2_core.shipped import versions
from ..sv4d2_core.stored import json_object, read_json_object
from ..sv4d2_core.video.foreground import near_white_masks
from ..sv4d2_core.video.pictures import view_mosaic
from ..sv4d2_core.views import ViewGrid
from .host import CamerasType, ViewsType, aliases, choice, described, number, outputs
from .host_model import sv4d2_model
from .output_folder import (
    fingerprint_of_files,
    found_inside,
    host,
    output_place,
    relative_to_output,
    shown_files,
)

_OF_WORKFLOWS = ("prompt", "extra_pnginfo")  # of the host, among the settings of saved views
_ONE_VIEW, _ONE_FRAME, _ALL_VIEWS = "one view", "one frame", "all views"


class SV4D2LoadViews(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2LoadViews",
            category="SV4D2/views",
            inputs=[io.String.Input("folder", default="sv4d2/views_00001")],
            outputs=outputs(views=ViewsType, crop=io.String, cameras=CamerasType),
            **aliases("stable video 4d", "novel view", "open views"),
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None) -> str:
        return fingerprint_of_files(folder, _find)

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        place = _find(folder)
        views = read_views(place)
        content = read_json_object(place / CAMERAS_FILE, "cameras")
        crop = json.dumps(content.object("crop")) if content.has("crop") else ""
        return io.NodeOutput(views, crop, views.cameras)


class SV4D2SaveViews(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2SaveViews",
            category="SV4D2/views",
            inputs=[
                ViewsType.Input("views"),
                io.String.Input("filename_prefix", default="sv4d2/views"),
                io.Boolean.Input("save_latents", default=False),
                io.String.Input("crop", optional=True, force_input=True),
            ],
            outputs=outputs(folder=io.String),
            is_output_node=True,
            **aliases("stable video 4d", "novel view", "export", "transforms.json", "nerfstudio"),
        )

    @classmethod
    def execute(
        cls, views: ViewGrid, filename_prefix: str, save_latents: bool, crop: str | None = None
    ) -> io.NodeOutput:
        path = parsed_crop(crop)
        # Those of a workflow that views were loaded from are not this one's.
        settings = {key: x for key, x in (views.settings or {}).items() if key not in _OF_WORKFLOWS}
        views = replace(views, settings=settings)
        run = {"settings": {"host": host(), **_workflow(cls)}, "versions": versions()}
        with claimed(*output_place(filename_prefix, views.images.shape[2])) as folder:
            write_views(folder, views, crop=path, run=run, save_latents=save_latents)
        return io.NodeOutput(relative_to_output(folder), ui=shown_files([folder / CONTACT_SHEET]))


def _find(folder: str) -> Path:
    return found_inside(folder, lambda path: (path / RUN_FILE).is_file(), "a folder of views")


def parsed_crop(crop: str | None) -> dict | None:
    """Return the crop that SV4D2 Prepare Clip wrote as text; None for none."""
    if not crop or not crop.strip():
        return None
    return dict(json_object(crop, "the crop output of SV4D2 Prepare Clip"))


def _workflow(cls: type[io.ComfyNode]) -> dict[str, Any]:
    """Return prompt and workflow as plain JSON values, or nothing where the user wants no metadata."""
    if args.disable_metadata or cls.hidden is None:
        return {}
    known = {name: getattr(cls.hidden, name) for name in _OF_WORKFLOWS}
    # The host keeps "not a number" in a prompt where a node must always run again; JSON has no such value.
    text = json.dumps({key: value for key, value in known.items() if value}, default=str)
    return json.loads(text, parse_constant=lambda _: None)


class SV4D2ViewsToImages(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2ViewsToImages",
            category="SV4D2/views",
            inputs=[
                ViewsType.Input("views"),
                choice("mode", [_ONE_VIEW, _ONE_FRAME, _ALL_VIEWS]),
                number("view", 1, (0, 1024)),
                number("frame", 0, (0, 10000)),
                io.Boolean.Input("include_input", default=True),
            ],
            outputs=outputs(images=io.Image, mask=io.Mask, fps=io.Float),
            **aliases("stable video 4d", "novel view", "unpack views", "turntable"),
        )

    @classmethod
    def execute(cls, views: ViewGrid, mode: str, view: int, frame: int, include_input: bool) -> io.NodeOutput:
        if mode == _ONE_VIEW:
            images, masks = views.one_view(view)
        elif mode == _ONE_FRAME:
            images, masks = views.one_frame(frame, include_input)
        else:
            images, masks = views.all_views(include_input)
        masks = near_white_masks(images) if masks is None else masks
        # Copies: nodes of other packs write into what they get, and the views stay in the host's cache.
        copies = (x.clone(memory_format=torch.contiguous_format) for x in (images, masks))
        return io.NodeOutput(*copies, views.fps)


class SV4D2ImagesToViews(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2ImagesToViews",
            category="SV4D2/views",
            inputs=[
                io.Image.Input("clip"),
                io.Image.Input("novel_views"),
                CamerasType.Input("cameras"),
                choice("order", [BY_FRAME, BY_VIEW]),
                number("fps", 8.0, (0.1, 1000, 0.01)),
                io.Mask.Input("clip_mask", optional=True),
                io.Model.Input("model", optional=True),
            ],
            outputs=outputs(views=ViewsType),
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
        views = assemble_views(clip, novel_views, cameras, order=order, fps=fps, clip_masks=clip_mask)
        if model is not None:
            config = sv4d2_model(model).config_for(cameras.n_views)
            views = replace(views, variant=config.label, trained=config.trained)
        return io.NodeOutput(views)


class SV4D2RendersToViews(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2RendersToViews",
            category="SV4D2/views",
            is_input_list=True,
            inputs=[
                io.Image.Input("images"),
                CamerasType.Input("cameras"),
                choice("order", [BY_VIEW, BY_FRAME]),
                number("fps", 8.0, (0.1, 1000, 0.01)),
                io.Mask.Input("masks", optional=True),
            ],
            outputs=outputs(views=ViewsType),
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
        pictures, joined = _joined("images", images), None if masks is None else _joined("masks", masks)
        views = assemble_renders(pictures, cameras[0], order=order[0], fps=fps[0], masks=joined)
        return io.NodeOutput(views)


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
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2ViewsGridVideo",
            category="SV4D2/views",
            inputs=[
                ViewsType.Input("views"),
                number("columns", 0, (0, 65)),
                io.Boolean.Input("labels", default=True),
                number("cell_size", 288, (0, 2048, 8)),
            ],
            outputs=outputs(images=io.Image, video=io.Video),
            **aliases("stable video 4d", "novel view", "mosaic", "contact sheet", "side by side"),
        )

    @classmethod
    def execute(cls, views: ViewGrid, columns: int, labels: bool, cell_size: int) -> io.NodeOutput:
        images = view_mosaic(views, columns=columns, labels=labels, cell_size=cell_size)
        rate = Fraction(views.fps).limit_denominator(1001)
        components = Types.VideoComponents(images=images.clone(), frame_rate=rate)
        return io.NodeOutput(images, InputImpl.VideoFromComponents(components))
