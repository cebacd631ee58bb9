"""Metrics of views: the node, and the host's folder for their networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ..sv4d2_core.export.plots import score_picture
from ..sv4d2_core.export.report import write_report
from ..sv4d2_core.files import claimed
from ..sv4d2_core.metrics.evaluate import NO_VALUE, Networks, Summary
from ..sv4d2_core.metrics.i3d import I3D, I3D_HELP
from ..sv4d2_core.metrics.image import LPIPS, LPIPS_HELP
from ..sv4d2_core.metrics.report.tables import (
    SceneComparison,
    compare,
    markdown_report,
    notes,
    report_tables,
    summaries_of,
    untrained_warning,
)
from ..sv4d2_core.shipped import versions
from ..sv4d2_core.views import ViewGrid
from .host import ViewsType, aliases, batches, choice, described, outputs
from .output_folder import host, listed_model, output_place, relative_to_output
from .preview import Progress, as_images, picture_preview

NONE = "none"

_FOLDER = "sv4d2_metrics"
_WEIGHTS = ".safetensors"
_PROGRAM = ".pt"  # I3D as TorchScript, which saved workflows may name: refused, with what to do
_ROOM = 2 * 2**30  # bytes, what networks and activations take at most on large images


class SV4D2Metrics(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2Metrics",
            category="SV4D2/views",
            inputs=[
                ViewsType.Input("views"),
                choice("lpips", choices(_WEIGHTS)),
                choice("i3d", choices(_WEIGHTS, _PROGRAM)),
                io.String.Input("method", default="predicted"),
                io.String.Input("filename_prefix", default="sv4d2/metrics"),
                ViewsType.Input("reference", optional=True),
                io.ClipVision.Input("clip_vision", optional=True),
            ],
            outputs=outputs(table=io.String, picture=io.Image, folder=io.String),
            is_output_node=True,
            **aliases("metrics", "PSNR", "SSIM", "LPIPS", "FVD", "evaluate"),
        )

    @classmethod
    def execute(
        cls,
        views: ViewGrid,
        lpips: str,
        i3d: str,
        method: str,
        filename_prefix: str,
        reference: ViewGrid | None = None,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        place = output_place(filename_prefix, views.images.shape[2]) if str(filename_prefix).strip() else None
        networks = None if reference is None else _networks(lpips, i3d, clip_vision)
        scene = compare("", {method.strip(): views}, reference, networks, callback=Progress())
        summaries = summaries_of([scene])
        folder, lines = "", list(_lines(scene, summaries, method.strip()))
        if place is not None:
            run = {"host": host(), "lpips": lpips, "i3d": i3d, "versions": versions()}
            with claimed(*place) as path:
                write_report(path, [scene], run=run)
            folder = relative_to_output(path)
            lines.append(f"Saved in {folder}: report.html, report.md, report.json")
        images = as_images(score_picture(scene))
        table = markdown_report([scene], summaries)
        return io.NodeOutput(table, images, folder, ui=picture_preview(images, lines, cls))


def _lines(scene: SceneComparison, summaries: tuple[Summary, ...], method: str) -> Iterator[str]:
    """Return the method's values, a line per table, and what has to be known about them."""
    if warning := untrained_warning([scene]):
        yield warning
    for table in report_tables([scene], summaries):
        for name, *cells in table.rows:
            values = [
                f"{head} {cell.text}{' †' if cell.incomplete else ''}"
                for (head, _), cell in zip(table.heads[1:], cells, strict=True)
                if cell.text != NO_VALUE
            ]
            if name.text == method and values:
                yield ", ".join(values)
    yield from notes([scene], summaries)


def register_folder() -> None:
    """Tell the host about models/sv4d2_metrics; doing so again changes nothing."""
    folder_paths.add_model_folder_path(_FOLDER, str(Path(folder_paths.models_dir) / _FOLDER))
    # A folder that extra_model_paths.yaml or the line above has named first knows no extensions.
    places, _ = folder_paths.folder_names_and_paths[_FOLDER]
    folder_paths.folder_names_and_paths[_FOLDER] = (places, {_WEIGHTS, _PROGRAM})


def choices(*suffixes: str) -> list[str]:
    """Return "none", and the files of the model folder whose names end so."""
    files = folder_paths.get_filename_list(_FOLDER)
    return [NONE, *(name for name in files if Path(name).suffix.lower() in suffixes)]


def _networks(lpips: str, i3d: str, clip_vision: Any) -> Networks:
    device = comfy.model_management.get_torch_device()
    if (lpips, i3d) != (NONE, NONE):
        comfy.model_management.free_memory(_ROOM, device)
    return Networks(
        lpips=None if lpips == NONE else _in_batches(LPIPS(listed_model(_FOLDER, lpips, LPIPS_HELP), device)),
        clip=None if clip_vision is None else _in_batches(_embedder(clip_vision)),
        i3d=None if i3d == NONE else _in_batches(I3D(listed_model(_FOLDER, i3d, I3D_HELP), device)),
    )


def _embedder(clip_vision: Any) -> Callable[[Tensor], Tensor]:
    """Return what makes embeddings [N, D] of images [N, H, W, 3], prepared by the host's own rules."""
    if not hasattr(clip_vision.model, "visual_projection"):
        raise ValueError(
            f"Expected a CLIP vision model for CLIP-S; got {type(clip_vision.model).__name__}, whose "
            f"embeddings are no CLIP's. Connect clip_vision of SV4D2 Load Checkpoint or of Load CLIP Vision."
        )
    return lambda images: clip_vision.encode_image(images).image_embeds.float()


def _in_batches(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a network that takes few images or clips at once and lets the user cancel in between."""

    @torch.no_grad()
    def call(*inputs: Tensor) -> Tensor:
        return torch.cat([network(*few).cpu() for few in zip(*map(batches, inputs), strict=True)])

    return call
