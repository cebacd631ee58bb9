"""How good views are, in numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor

from ..sv4d2_core.commands.common import versions
from ..sv4d2_core.data.reader import numbered_folder
from ..sv4d2_core.export.plots import score_picture
from ..sv4d2_core.export.report import write_report
from ..sv4d2_core.metrics.evaluate import NO_VALUE, Networks, Summary
from ..sv4d2_core.metrics.frechet import I3D, I3D_HELP
from ..sv4d2_core.metrics.lpips import LPIPS, LPIPS_HELP
from ..sv4d2_core.metrics.report.tables import (
    SceneComparison,
    compare,
    markdown_report,
    notes,
    report_tables,
    summaries_of,
    untrained_warning,
)
from ..sv4d2_core.views import ViewGrid
from .host import ViewsType, aliases
from .output_folder import host, output_place, relative_to_output
from .preview import picture_preview

NONE = "none"

_FOLDER = "sv4d2_metrics"
_LPIPS, _I3D = ".safetensors", ".pt"
# Images per call of a network: a job can be cancelled between two calls.
_BATCH = 4
# What the networks and their activations take at most on large images, bytes.
_ROOM = 2 * 2**30


def register_folder() -> None:
    """Tell the host about models/sv4d2_metrics; doing so again changes nothing."""
    folder_paths.add_model_folder_path(_FOLDER, str(Path(folder_paths.models_dir) / _FOLDER))
    # A folder that extra_model_paths.yaml or the line above has named first knows no extensions.
    places, _ = folder_paths.folder_names_and_paths[_FOLDER]
    folder_paths.folder_names_and_paths[_FOLDER] = (places, {_LPIPS, _I3D})


def lpips_choices() -> list[str]:
    """Return the files that may hold LPIPS weights, and before them "none"."""
    return _choices(_LPIPS)


def i3d_choices() -> list[str]:
    """Return the files that may hold the I3D network, and before them "none"."""
    return _choices(_I3D)


def host_networks(lpips: str, i3d: str, clip_vision: Any) -> Networks:
    """Return the networks that were chosen, on the host's device.

    Args:
        lpips, i3d: names of files in the model folder, or "none".
        clip_vision: CLIP_VISION, or None.

    Raises:
        FileNotFoundError: there is no such file in the model folder.
        ValueError: a file or a model of another kind.
    """
    device = comfy.model_management.get_torch_device()
    if (lpips, i3d) != (NONE, NONE):
        comfy.model_management.free_memory(_ROOM, device)
    return Networks(
        lpips=None if lpips == NONE else _in_batches(LPIPS(_file(lpips, LPIPS_HELP), device)),
        clip=None if clip_vision is None else _in_batches(_embedder(clip_vision)),
        i3d=None if i3d == NONE else _in_batches(I3D(_file(i3d, I3D_HELP), device)),
    )


def _choices(suffix: str) -> list[str]:
    files = folder_paths.get_filename_list(_FOLDER)
    return [NONE, *(name for name in files if Path(name).suffix.lower() == suffix)]


def _file(name: str, help_text: str) -> Path:
    path = folder_paths.get_full_path(_FOLDER, name)
    if path is None:
        places = " or ".join(folder_paths.get_folder_paths(_FOLDER))
        raise FileNotFoundError(
            f"Expected {name} in the model folder models/{_FOLDER} ({places}); it is not there. Put it there "
            f"and press R, or choose {NONE}. {help_text}"
        )
    return Path(path)


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
        outputs = []
        for batch in zip(*(tensor.split(_BATCH) for tensor in inputs), strict=True):
            comfy.model_management.throw_exception_if_processing_interrupted()
            outputs.append(network(*batch).cpu())
        return torch.cat(outputs)

    return call


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
            with numbered_folder(*place) as path:
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
