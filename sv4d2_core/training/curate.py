"""Curates folders of multi-view clips: measures, rejects, rectifies and writes what is kept."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data.reader import read_any_views
from ..data.views_folder import entries_of, read_run, write_views
from ..files import all_or_nothing, json_in, plain_names
from ..messages import listed
from ..metrics.report.page import STYLE, templates
from ..stored import Fields
from ..video.pictures import pick_frames, to_bytes
from ..views import ViewGrid
from .curation import CurationLimits, Verdict, judge, pictured, rectify, small_grid
from .scenes import LOOKED_AT

REPORT_FILE, PAGE_FILE = "report.json", "report.html"
# Says in report.json that this program wrote it.
_KIND = "sv4d2 curation report"


@dataclass(frozen=True)
class SceneRecord:
    """What the report says of one clip."""

    name: str
    source: str
    verdict: Verdict
    strip: str = ""  # pictures, JPEG in base64; nothing where the clip could not be read


def curate(
    scenes: Mapping[str, Path],
    out: Path,
    limits: CurationLimits,
    *,
    size: int | None = None,  # None: that of the source, less 1 where it is odd
    dry_run: bool = False,  # write the report only
    overwrite: bool = False,  # replace what an earlier curation wrote
    run: Mapping[str, Any] | None = None,  # how the report was made, JSON values
    on_scene: Callable[[SceneRecord], object] | None = None,
) -> list[SceneRecord]:
    """Write the clips that are fit to be learnt from, rectified, and a report of all; return its records.

    ``out``/NAME holds each kept scene as a folder of views and D-NeRF style data set. After any failure
    ``out`` is as it was; files of other origin are left alone. FileExistsError: these hold a name, an earlier
    curation and no ``overwrite``, a dry run that would take its report. OSError: disk full or read-only.
    """
    folders = (source if source.is_dir() else source.parent for source in scenes.values())
    # About what the rectified pictures will take.
    files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
    size_of_sources = sum(file.stat().st_size for file in files)
    records = []
    replaced = partial(_replaced, out, scenes, overwrite, dry_run)
    with all_or_nothing(out, replaced, REPORT_FILE, size_of_sources) as staging:
        for name, source in scenes.items():
            folder = None if dry_run else staging / name
            records.append(_curated(name, source, limits, folder, size))
            if on_scene is not None:
                on_scene(records[-1])
        content = {
            "kind": _KIND,
            "dry_run": dry_run,
            "limits": asdict(limits),
            "scenes": [_record_json(record) for record in records],
            "run": dict(run or {}),
        }
        # A folder's name need not be text.
        page = report_page(records, limits, run or {}).encode("utf-8", "replace")
        (staging / PAGE_FILE).write_bytes(page)
        (staging / REPORT_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return records


def _curated(
    name: str, source: Path, limits: CurationLimits, folder: Path | None, size: int | None
) -> SceneRecord:
    """Return the record of a clip, and write it, where it is kept, rectified into a folder."""
    try:
        grid = read_any_views(source)
    except (ValueError, OSError) as error:
        # One more that is rejected.
        return SceneRecord(name, str(source), Verdict(faults=(f"cannot be read: {error}",)))
    verdict = judge(grid, limits)
    if folder is not None and verdict.plan is not None and verdict.kept:
        settings = {"curated_from": str(source), "rectification": _rectification_json(verdict)}
        rectified = rectify(grid, verdict.plan, size or grid.images.shape[2] // 2 * 2)
        write_views(folder, rectified, run={"settings": settings})
    file = io.BytesIO()
    picture_strip(grid, verdict).save(file, "JPEG", quality=85)
    return SceneRecord(name, str(source), verdict, base64.b64encode(file.getvalue()).decode("ascii"))


def _replaced(out: Path, names: Iterable[str], overwrite: bool, dry_run: bool) -> list[str]:
    """Return which entries of ``out`` a curation of scenes with these names replaces, if it may."""
    found = json_in(out / REPORT_FILE)
    is_ours = isinstance(found, dict) and found.get("kind") == _KIND
    report = Fields(found if is_ours else {}, out / REPORT_FILE)
    is_whole = bool(report.get("scenes")) and not report.get("dry_run")
    scenes = report.objects("scenes") if is_whole else []
    kept = plain_names([scene.text("name") for scene in scenes if scene.flag("kept")])
    ours = [REPORT_FILE, PAGE_FILE, *kept] if report else []
    wanted = [REPORT_FILE, PAGE_FILE, *(() if dry_run else names)]
    if foreign := [name for name in wanted if (out / name).exists() and name not in ours]:
        raise FileExistsError(
            f"{out} holds {listed(foreign)}, which no curation wrote and none replaces. Choose another "
            f"folder or move them away."
        )
    written = ((name, entries_of(read_run(out / name))) for name in kept if (out / name).is_dir())
    beside = [
        f"{name}/{entry.name}"
        for name, entries in written
        for entry in (out / name).iterdir()
        if entry.name not in (*entries, *LOOKED_AT)
    ]
    if beside and overwrite:
        raise FileExistsError(
            f"{out} holds {listed(beside)}, which no curation wrote and none replaces. Move them away."
        )
    if report and not overwrite:
        raise FileExistsError(
            f"Expected a folder without a curation; {out / REPORT_FILE} exists already. Choose another "
            f"folder or overwrite it (--overwrite)."
        )
    if kept and dry_run:
        raise FileExistsError(
            f"{out} holds {len(kept)} curated scenes, which a dry run would take the report from. Choose "
            f"another folder for the dry run."
        )
    return [name for name in ours if (out / name).exists()]


def _record_json(record: SceneRecord) -> dict[str, Any]:
    checks = {
        check.name: {
            **check.found._asdict(),
            "limit": check.limit,
            "limit_name": check.limit_name,
            "passed": check.passed,
        }
        for check in record.verdict.checks
    }
    return {
        "name": record.name,
        "source": record.source,
        "kept": record.verdict.kept,
        "reasons": record.verdict.reasons,
        "checks": checks,
        "rectification": _rectification_json(record.verdict),
    }


def _rectification_json(verdict: Verdict) -> dict[str, Any] | None:
    plan = verdict.plan
    return plan and {"centre": list(plan.centre), "offset": plan.offset, "zoom": plan.zoom}


def report_page(records: Sequence[SceneRecord], limits: CurationLimits, run: Mapping[str, Any]) -> str:
    """Return the page: totals, a table of all scenes, then every scene with its reasons and pictures."""
    checks = [check for record in records for check in record.verdict.checks]
    broken = Counter(check.name for check in checks if not check.passed)
    if unreadable := sum(bool(record.verdict.faults) for record in records):
        broken["unreadable or contradictory"] = unreadable
    columns = {check.name: check for check in checks}
    page = templates(Path(__file__).parent).get_template("curation.html.jinja")
    return page.render(
        style=STYLE, records=records, broken=broken, columns=columns, limits=str(limits), run=dict(run)
    )


_CELL, _GAP, _TEXT = 112, 4, 12
_FRAMES = 4
_CENTRE, _WORST, _LINE = (0, 120, 200), (213, 60, 0), (222, 222, 222)


def picture_strip(grid: ViewGrid, verdict: Verdict) -> Image.Image:
    """Return the clip's pictures, rectified below, those beyond a limit framed; a cross marks the centre."""
    small, plan = small_grid(grid), verdict.plan
    pictures = [(t, v) for v in (0, (small.n_views + 1) // 2) for t in pick_frames(small.n_frames, _FRAMES)]
    broken = [check.found for check in verdict.checks if not check.passed and check.found.frame is not None]
    cells = [*pictures, *dict.fromkeys((found.frame or 0, found.view or 0) for found in broken)]
    # Each row's views, and where they show the centre, [V + 1, 1, 2].
    rows: list[tuple[ViewGrid, Tensor | None]] = [(small, None)]
    if plan is not None:
        after, origin = rectify(small, plan, small.images.shape[2]), torch.zeros(1, 3)
        rows = [
            (small, pictured(origin + torch.tensor(plan.centre), small.cameras)),
            (after, pictured(origin, after.cameras)),
        ]
    step, top = _CELL + _GAP, _TEXT + _GAP
    page = Image.new("RGB", (len(cells) * step, len(rows) * step + top), "white")
    draw = ImageDraw.Draw(page)
    for column, (t, v) in enumerate(cells):
        left, is_worst = column * step, column >= len(pictures)
        colour = _WORST if is_worst else "black"
        draw.text((left, 0), f"frame {t}, view {v}", colour, ImageFont.load_default(_TEXT))
        for row, (shown, centres) in enumerate(rows):
            y = top + row * step
            cell = Image.fromarray(to_bytes(shown.images[t, v]))
            page.paste(cell.resize((_CELL, _CELL), Image.Resampling.LANCZOS), (left, y))
            if centres is not None:
                _cross(draw, left, y, *centres[v, 0].tolist())
            edge, width = (_WORST, 2) if is_worst and row == 0 else (_LINE, 1)
            draw.rectangle((left, y, left + _CELL - 1, y + _CELL - 1), outline=edge, width=width)
    return page


def _cross(draw: ImageDraw.ImageDraw, left: int, top: int, x: float, y: float) -> None:
    """Draw a cross at a position of -1..1 in a picture."""
    column, row, arm = left + (x + 1) / 2 * _CELL, top + (y + 1) / 2 * _CELL, 5
    draw.line((column - arm, row, column + arm, row), _CENTRE, 1)
    draw.line((column, row - arm, column, row + arm), _CENTRE, 1)
