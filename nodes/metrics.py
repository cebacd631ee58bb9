"""How good views are, in numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io

from ..sv4d2_core.export.plots import score_picture
from ..sv4d2_core.export.report import write_report
from ..sv4d2_core.files import claimed
from ..sv4d2_core.metrics.evaluate import NO_VALUE, Summary
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
from .metrics_networks import NONE, host_networks, i3d_choices, lpips_choices
from .output_folder import host, output_place, relative_to_output
from .preview import picture_preview
from .sockets import ViewsType, aliases


class SV4D2Metrics(io.ComfyNode):
    """Scores views, against true views where there are some."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2Metrics",
            display_name="SV4D2 Metrics",
            category="SV4D2/views",
            description=(
                "Says in numbers how good views are: how steady they are over time and how well they fit "
                "together, and with true views as reference also PSNR, SSIM and mask IoU; with files of "
                "your own LPIPS, CLIP-S and FVD. Connect the views of SV4D2 Sampler or SV4D2 Load Views. "
                "Writes a report with heat maps and plots. Nothing is downloaded."
            ),
            inputs=[
                ViewsType.Input(
                    "views", tooltip="The views to score, from SV4D2 Sampler or SV4D2 Load Views."
                ),
                io.Combo.Input(
                    "lpips",
                    options=lpips_choices(),
                    default=NONE,
                    tooltip="Weights for LPIPS: a .safetensors file in models/sv4d2_metrics. none: no LPIPS. "
                    "The node's help page says how to make the file. Needs a reference.",
                ),
                io.Combo.Input(
                    "i3d",
                    options=i3d_choices(),
                    default=NONE,
                    tooltip="The network for FVD: i3d_torchscript.pt in models/sv4d2_metrics. none: no FVD. "
                    "Needs a reference and 9 frames at least (FVD-V: 9 views).",
                ),
                io.String.Input(
                    "method",
                    default="predicted",
                    tooltip="The name of these views in the table, such as the model or its settings.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="sv4d2/metrics",
                    tooltip="Name of the report's folder below ComfyUI's output folder; a number is added: "
                    "sv4d2/metrics_00001. Blank: nothing is saved. Knows %year%, %month%, %day% and so on.",
                ),
                ViewsType.Input(
                    "reference",
                    optional=True,
                    tooltip="True views of the same frames, cameras and size, for example a recording or a "
                    "rendering from SV4D2 Load Views. Open: only what needs no truth is measured.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="A CLIP vision model for CLIP-S, from SV4D2 Load Checkpoint or Load CLIP Vision. "
                    "Needs a reference.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="table",
                    tooltip="All numbers and what they rest on, as Markdown text; connect Preview as Text "
                    "(Preview Any) to read it.",
                ),
                io.Image.Output(
                    display_name="picture",
                    tooltip="Views of the middle frame beside the true ones, and their errors.",
                ),
                io.String.Output(
                    display_name="folder",
                    tooltip="The folder with report.html, report.md and report.json, relative to the output "
                    "folder; blank when nothing was saved.",
                ),
            ],
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
        """Score the views, show the numbers and write the report."""
        place = output_place(filename_prefix, views.images.shape[2]) if filename_prefix.strip() else None
        networks = None if reference is None else host_networks(lpips, i3d, clip_vision)
        scene = compare("", {method.strip(): views}, reference, networks, callback=_progress())
        summaries = summaries_of([scene])
        folder, lines = "", list(_lines(scene, summaries, method.strip()))
        if place is not None:
            run = {"host": host(), "lpips": lpips, "i3d": i3d, "versions": versions()}
            with claimed(*place) as path:
                write_report(path, [scene], run=run)
            folder = relative_to_output(path)
            lines.append(f"Saved in {folder}: report.html, report.md, report.json")
        picture = score_picture(scene)
        image = torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)[None]
        table = markdown_report([scene], summaries)
        return io.NodeOutput(table, image, folder, ui=picture_preview(image, lines, cls))


def _progress() -> Callable[[int, int], None]:
    """Return what moves the bar on the node and stops the job when the user cancels it."""
    bars: list[comfy.utils.ProgressBar] = []

    def step(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not bars:
            bars.append(comfy.utils.ProgressBar(total))
        bars[0].update_absolute(done, total)

    return step


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
