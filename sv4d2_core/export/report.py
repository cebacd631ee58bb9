"""Writes the evaluation report: ``report.json``, ``report.md`` and ``report.html``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from ..files import all_or_nothing, recover
from ..metrics.consistency import fit_residuals
from ..metrics.evaluate import DEFAULT_SHRINKAGE
from ..metrics.report.page import report_json, report_page
from ..metrics.report.tables import SceneComparison, markdown_report, summaries_of
from ..scene.scene import Scene4D
from ..video.pictures import pick_frames
from ..views import ViewGrid
from .plots import fit_picture

REPORT_FILE, MARKDOWN_FILE, PAGE_FILE = "report.json", "report.md", "report.html"
_NAMES = (REPORT_FILE, MARKDOWN_FILE, PAGE_FILE)
# Says in report.json that this program wrote it, and the other files with it.
_KIND = "sv4d2 evaluation report"


def write_report(
    folder: Path,
    comparisons: Sequence[SceneComparison],
    *,
    run: dict | None = None,
    shrinkage: float = DEFAULT_SHRINKAGE,
    overwrite: bool = False,
) -> Path:
    """Write the report of all scenes and return the path of its page.

    All or nothing: after any failure ``folder`` is as it was.

    Args:
        folder: made if missing; files of other names in it are left alone.
        comparisons: the scenes, each with its own name.
        run: how the report was made, JSON values by name.
        shrinkage: of the Frechet distances' covariances, 0 to 1.
        overwrite: replace a report that is there; files of other origin are never touched.

    Raises:
        FileExistsError: ``folder`` holds a report already and ``overwrite`` is off, or it holds files of
            these names that `write_report` did not make.
        ValueError: no scene, two of one name, a shrinkage out of range, values JSON cannot hold.
        OSError: the disk is full or read-only; the text says which folder and what to do.
    """
    folder = Path(folder)
    recover(folder)
    existing = refuse_report(folder, overwrite)
    summaries = summaries_of(comparisons, shrinkage)
    try:
        run_text = json.dumps(run or {}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected plain JSON values in run; {error}. Convert them first.") from error
    record = {"kind": _KIND, "run": json.loads(run_text), **report_json(comparisons, summaries)}
    texts = {
        REPORT_FILE: json.dumps(record, allow_nan=False) + "\n",
        MARKDOWN_FILE: markdown_report(comparisons, summaries),
        PAGE_FILE: report_page(comparisons, summaries, run),
    }
    contents = {name: text.encode("utf-8") for name, text in texts.items()}
    with all_or_nothing(folder, existing, REPORT_FILE, sum(map(len, contents.values()))) as staging:
        for name, content in contents.items():
            (staging / name).write_bytes(content)
    return folder / PAGE_FILE


def is_report(folder: Path) -> bool:
    """Return whether `write_report` wrote the ``report.json`` of ``folder``."""
    try:
        record = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("kind") == _KIND


def refuse_report(folder: Path, overwrite: bool) -> list[str]:
    """Return which files of ``folder`` a report would replace.

    Raises:
        FileExistsError: it may not, as `write_report` says.
    """
    existing = [name for name in _NAMES if (folder / name).exists()]
    if existing and not is_report(folder):
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


# Pairs of pictures.
_SHOWN = 6


def fit_report(
    scene: Scene4D,
    views: ViewGrid,
    losses: Sequence[float],
    callback: Callable[[int, int, None], None] | None = None,
) -> tuple[Image.Image, float]:
    """Return the picture of a fit, and the mean residual over the novel views (`fit_residuals`).

    Args:
        scene: fitted, before its object's path is given back.
        views: what it was fitted to, with masks.
        losses: of every step.
        callback: called with (pictures done, all pictures, None); may raise to cancel.
    """
    size = views.images.shape[2]
    rendered = scene.render(views.cameras, views.frame_times(), size, callback=callback)
    shown = replace(views, images=rendered.rgb, masks=rendered.alpha)
    residuals = fit_residuals(shown, views, include_input=True)
    frames = pick_frames(views.n_frames, _SHOWN)
    places = [(t, i % (views.n_views + 1)) for i, t in enumerate(frames)]
    pairs = [torch.stack([grid.images[t, v] for t, v in places]) for grid in (shown, views)]
    steps = list(enumerate(losses, start=1))
    picture = fit_picture(steps, residuals, views.cameras, rendered=pairs[0], views=pairs[1])
    return picture, float(residuals[:, 1:].nanmean())
