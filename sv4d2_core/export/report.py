"""The evaluation report: ``report.json``, ``report.md`` and ``report.html``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from ..files import all_or_nothing, exclusive, json_in
from ..metrics.consistency import fit_residuals
from ..metrics.evaluate import DEFAULT_SHRINKAGE
from ..metrics.report.page import report_json, report_page
from ..metrics.report.tables import SceneComparison, markdown_report, summaries_of
from ..scene.scene import Scene4D
from ..video.pictures import pick_frames
from ..views import ViewGrid
from .plots import fit_picture

_NAMES = ("report.json", "report.md", "report.html")
_KIND = "sv4d2 evaluation report"  # in report.json: this program wrote it and the other files


def write_report(
    folder: Path,
    comparisons: Sequence[SceneComparison],  # each with its own name
    *,
    run: dict | None = None,  # how the report was made, JSON values by name
    shrinkage: float = DEFAULT_SHRINKAGE,  # of the Frechet distances' covariances, 0 to 1
    overwrite: bool = False,
) -> Path:
    """Write the report of all scenes and return the path of its page; all or nothing.

    Raises FileExistsError as `refuse_report`, ValueError (no scene, equal names, a shrinkage out of range),
    OSError.
    """
    with exclusive(folder):  # before the work
        refuse_report(folder, overwrite)
    summaries = summaries_of(comparisons, shrinkage)
    record = {"kind": _KIND, "run": run or {}, **report_json(comparisons, summaries)}
    texts = (
        json.dumps(record, allow_nan=False) + "\n",
        markdown_report(comparisons, summaries),
        report_page(comparisons, summaries, run),
    )
    contents = [text.encode("utf-8", "replace") for text in texts]  # a folder's name need not be text
    replaced = partial(refuse_report, folder, overwrite)
    with all_or_nothing(folder, replaced, _NAMES[0], sum(map(len, contents))) as staging:
        for name, content in zip(_NAMES, contents, strict=True):
            (staging / name).write_bytes(content)
    return folder / _NAMES[-1]


def refuse_report(folder: Path, overwrite: bool) -> list[str]:
    """Return which files of a folder a report would replace; FileExistsError where it may not."""
    existing = [name for name in _NAMES if (folder / name).exists()]
    record = json_in(folder / _NAMES[0])
    if existing and not (isinstance(record, dict) and record.get("kind") == _KIND):
        raise FileExistsError(
            f"{folder} holds {', '.join(existing)}, which this program did not write and never replaces. "
            f"Choose another folder or move them away."
        )
    if existing and not overwrite:
        raise FileExistsError(
            f"Expected a folder without a report; {folder / existing[0]} exists already. Choose another "
            f"folder or overwrite it (--overwrite)."
        )
    return existing


_PAIRS = 6  # of pictures in the picture of a fit


def fit_report(
    scene: Scene4D,  # before its object's path is given back
    views: ViewGrid,  # what it was fitted to, with masks
    losses: Sequence[float],  # of every step
    callback: Callable[[int, int, None], None] | None = None,  # of pictures done, all; may raise to cancel
) -> tuple[Image.Image, float]:
    """Return the picture of a fit, and the mean residual over the novel views (`fit_residuals`)."""
    size = views.images.shape[2]
    rendered = scene.render(views.cameras, views.frame_times(), size, normals=False, callback=callback)
    shown = replace(views, images=rendered.rgb, masks=rendered.alpha)
    residuals = fit_residuals(shown, views)
    frames = pick_frames(views.n_frames, _PAIRS)
    places = [(t, i % (views.n_views + 1)) for i, t in enumerate(frames)]
    pairs = [torch.stack([grid.images[t, v] for t, v in places]) for grid in (shown, views)]
    steps = list(enumerate(losses, start=1))
    picture = fit_picture(steps, residuals, views.cameras, *pairs)
    return picture, float(residuals[:, 1:].nanmean())
