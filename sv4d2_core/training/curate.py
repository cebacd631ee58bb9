"""Curates folders of multi-view clips: measures, rejects, rectifies and writes what is kept."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from ..data.reader import read_any_views
from ..data.views_folder import write_views
from ..files import all_or_nothing
from ..metrics.report.page import STYLE
from ..video.pictures import pick_frames, to_bytes
from ..views import ViewGrid
from .curation import Check, CurationLimits, Verdict, judge, pictured, rectify, small_grid

TITLE = "Curation of clips"
_MORE_STYLE = """
.kept { color: #1b7a3d; font-weight: 600; } .rejected { color: #b8430b; font-weight: 600; }
td.rejected { background: #fdeee6; } img { max-width: 100%; }
"""


@dataclass(frozen=True)
class SceneRecord:
    """What the report says of one clip.

    Args:
        name: of the scene, and of its folder where it is kept.
        source: where it was read.
        verdict: what came of it.
        strip: pictures of it, JPEG, or nothing where it could not be read.
    """

    name: str
    source: str
    verdict: Verdict
    strip: bytes = b""


def as_jpeg(picture: Image.Image) -> bytes:
    """Return a picture as the bytes of a JPEG file."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


def report_json(records: Sequence[SceneRecord]) -> list[dict[str, Any]]:
    """Return what is in ``report.json`` of every scene: verdict, reasons, measures and rectification."""
    return [
        {
            "name": record.name,
            "source": record.source,
            "kept": record.verdict.kept,
            "reasons": record.verdict.reasons,
            "checks": {check.name: _check_json(check) for check in record.verdict.checks},
            "rectification": rectification_json(record.verdict),
        }
        for record in records
    ]


def rectification_json(verdict: Verdict) -> dict[str, Any] | None:
    """Return how a clip is rectified, JSON values."""
    plan = verdict.plan
    return plan and {"centre": list(plan.centre), "offset": plan.offset, "zoom": plan.zoom}


def report_page(records: Sequence[SceneRecord], limits: CurationLimits, run: Mapping[str, Any]) -> str:
    """Return the page: totals, a table of all scenes, then every scene with its reasons and pictures."""
    kept = sum(record.verdict.kept for record in records)
    checks = [check for record in records for check in record.verdict.checks]
    broken = Counter(check.name for check in checks if not check.passed)
    broken["unreadable or contradictory"] = sum(bool(record.verdict.faults) for record in records)
    said = ", ".join(f"{name} {count}" for name, count in broken.items() if count) or "nothing"
    parts = [
        f"<h1>{TITLE}</h1><p>{kept} of {len(records)} clips are kept. Rejected because of: ",
        f"{escape(said)}. A clip may break several limits.</p>",
        _overview(records, {check.name: check for check in checks}),
        *(_section(i, record) for i, record in enumerate(records)),
        f"<footer><h3>How this report was made</h3><p>{escape(str(limits))}</p>",
        f"<p>{escape(json.dumps(run))}</p></footer>",
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{TITLE}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}{_MORE_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _overview(records: Sequence[SceneRecord], columns: Mapping[str, Check]) -> str:
    """Return the table of all scenes; ``columns`` are checks, of any scene, by their names."""
    rows = []
    for i, record in enumerate(records):
        checks = {check.name: check for check in record.verdict.checks}
        cells = "".join(_cell(checks.get(name)) for name in columns)
        offset = "–" if record.verdict.plan is None else f"{100 * record.verdict.plan.offset:.1f} %"
        rows.append(
            f'<tr><td class="name"><a href="#scene-{i}">{escape(record.name)}</a></td>'
            f"<td>{_word(record.verdict)}</td>{cells}<td>{offset}</td></tr>"
        )
    heads = "".join(
        f"<th>{escape(name)}<br><small>{'≥' if check.is_least else '≤'} {check.limit:.3g}</small></th>"
        for name, check in columns.items()
    )
    return (
        '<div class="scroll"><table class="numbers"><thead><tr><th class="name">scene</th><th></th>'
        f"{heads}<th>off centre by</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _section(index: int, record: SceneRecord) -> str:
    verdict = record.verdict
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons)
    plan = verdict.plan
    rectified = (
        ""
        if plan is None
        else (
            f"<p>The static centre was {100 * plan.offset:.1f} % of the picture's side off the middle (blue "
            f"cross); upper row as it came, lower row turned to it and zoomed {plan.zoom:.2f} times.</p>"
        )
    )
    data = base64.b64encode(record.strip).decode("ascii")
    strip = f'<img alt="pictures of {escape(record.name)}" src="data:image/jpeg;base64,{data}">'
    return (
        f'<section id="scene-{index}"><h2>{escape(record.name)}: {_word(verdict)}</h2>'
        f'<p class="remark">{escape(record.source)}</p><ul>{reasons}</ul>{rectified}'
        f"{strip if record.strip else ''}</section>"
    )


def _word(verdict: Verdict) -> str:
    word = "kept" if verdict.kept else "rejected"
    return f'<span class="{word}">{word}</span>'


def _cell(check: Check | None) -> str:
    if check is None:
        return "<td>–</td>"
    kind = "" if check.passed else ' class="rejected"'
    return f'<td{kind} title="{escape(check.sentence)}">{check.found.value:.3g}</td>'


def _check_json(check: Check) -> dict[str, Any]:
    return {
        "value": check.found.value,
        "limit": check.limit,
        "limit_name": check.limit_name,
        "passed": check.passed,
        "frame": check.found.frame,
        "view": check.found.view,
    }


_CELL, _GAP, _TEXT = 112, 4, 12
_FRAMES = 4
_CENTRE, _WORST, _LINE = (0, 120, 200), (213, 60, 0), (222, 222, 222)


def picture_strip(grid: ViewGrid, verdict: Verdict) -> Image.Image:
    """Return two rows of pictures: the clip as it came, and rectified where that is possible.

    Frames of the input view and of the middle novel view, then, framed, the pictures that broke a limit. A
    cross marks the static centre.
    """
    small = small_grid(grid)
    pictures = [(t, v) for v in (0, (small.n_views + 1) // 2) for t in pick_frames(small.n_frames, _FRAMES)]
    broken = [check.found for check in verdict.checks if not check.passed and check.found.frame is not None]
    worst = [(found.frame or 0, found.view or 0) for found in broken]
    plan = verdict.plan
    after = None if plan is None else rectify(small, plan, small.images.shape[2])
    origin = torch.zeros(1, 3)
    rows = [(small, None if plan is None else pictured(origin + torch.tensor(plan.centre), small.cameras))]
    if after is not None:
        rows.append((after, pictured(origin, after.cameras)))
    cells = [*pictures, *dict.fromkeys(worst)]
    step = _CELL + _GAP
    page = Image.new("RGB", (len(cells) * step, len(rows) * step + _TEXT + _GAP), "white")
    draw = ImageDraw.Draw(page)
    for column, (t, v) in enumerate(cells):
        left, is_worst = column * step, column >= len(pictures)
        name = f"frame {t}, view {v}"
        draw.text((left, 0), name, _WORST if is_worst else "black", ImageFont.load_default(_TEXT))
        for row, (shown, centres) in enumerate(rows):
            top = _TEXT + _GAP + row * step
            cell = Image.fromarray(to_bytes(shown.images[t, v])).resize(
                (_CELL, _CELL), Image.Resampling.LANCZOS
            )
            page.paste(cell, (left, top))
            if centres is not None:
                _cross(draw, left, top, *centres[v, 0].tolist())
            framed = is_worst and row == 0
            draw.rectangle(
                (left, top, left + _CELL - 1, top + _CELL - 1),
                outline=_WORST if framed else _LINE,
                width=2 if framed else 1,
            )
    return page


def _cross(draw: ImageDraw.ImageDraw, left: int, top: int, x: float, y: float) -> None:
    """Draw a cross at a position of -1..1 in a picture."""
    column, row, arm = left + (x + 1) / 2 * _CELL, top + (y + 1) / 2 * _CELL, 5
    draw.line((column - arm, row, column + arm, row), _CENTRE, 1)
    draw.line((column, row - arm, column, row + arm), _CENTRE, 1)


REPORT_FILE, PAGE_FILE = "report.json", "report.html"
_FILES = (REPORT_FILE, PAGE_FILE)
# Says in report.json that this program wrote it.
_KIND = "sv4d2 curation report"


def curate(
    scenes: Mapping[str, Path],
    out: Path,
    limits: CurationLimits,
    *,
    size: int | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    run: Mapping[str, Any] | None = None,
    on_scene: Callable[[SceneRecord], object] | None = None,
) -> list[SceneRecord]:
    """Write the clips that are fit to be learnt from, rectified, and a report of all; return its records.

    ``out``/NAME holds each kept scene as a folder of views and D-NeRF style data set; ``report.html`` and
    ``report.json`` say what became of every scene. All or nothing: after any failure ``out`` is as it was.
    The sources are only read.

    Args:
        scenes: the place of each clip by its name; only one is in memory at a time.
        out: made if missing; files of other origin in it are left alone.
        limits: what is rejected.
        size: of the pictures that are written; None: that of the source, less 1 where it is odd.
        dry_run: write the report only.
        overwrite: replace what an earlier curation wrote to ``out``.
        run: how the report was made, JSON values by name.
        on_scene: called after each clip.

    Raises:
        FileExistsError: what `refuse_out` says.
        OSError: the disk is full or read-only.
    """
    existing = refuse_out(out, scenes, overwrite=overwrite, dry_run=dry_run)
    records = []
    with all_or_nothing(out, existing, REPORT_FILE, _bytes_of(scenes.values())) as staging:
        for name, source in scenes.items():
            grid, verdict = _read_and_judge(source, limits)
            strip = b"" if grid is None else as_jpeg(picture_strip(grid, verdict))
            records.append(SceneRecord(name, str(source), verdict, strip))
            if grid is not None and verdict.kept and not dry_run:
                _write(staging / name, grid, verdict, source, size)
            if on_scene is not None:
                on_scene(records[-1])
        content = {
            "kind": _KIND,
            "dry_run": dry_run,
            "limits": asdict(limits),
            "scenes": report_json(records),
            "run": dict(run or {}),
        }
        (staging / PAGE_FILE).write_text(report_page(records, limits, run or {}), encoding="utf-8")
        (staging / REPORT_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return records


def refuse_out(out: Path, names: Iterable[str], *, overwrite: bool, dry_run: bool) -> list[str]:
    """Return which entries of ``out`` a curation of scenes with these names would replace.

    Raises:
        FileExistsError: it may not: they are of other origin, or ``overwrite`` is off, or a dry run would
            remove scenes.
    """
    report = _read_report(out)
    kept = [] if report.get("dry_run") else [s["name"] for s in report.get("scenes", []) if s["kept"]]
    ours = [*_FILES, *kept] if report else []
    wanted = _FILES if dry_run else (*_FILES, *names)
    if foreign := [name for name in wanted if (out / name).exists() and name not in ours]:
        raise FileExistsError(
            f"{out} holds {', '.join(foreign[:3])}{' ...' if len(foreign) > 3 else ''}, which no curation "
            f"wrote and none replaces. Choose another folder or move them away."
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


def _read_report(out: Path) -> dict[str, Any]:
    """Return what an earlier curation left in ``report.json``, or nothing."""
    try:
        report = json.loads((out / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) and report.get("kind") == _KIND else {}


def _bytes_of(sources: Iterable[Path]) -> int:
    """Return the size of all files at the sources: about what their rectified pictures will take."""
    folders = (source if source.is_dir() else source.parent for source in sources)
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def _read_and_judge(source: Path, limits: CurationLimits) -> tuple[ViewGrid | None, Verdict]:
    """Return a clip and its verdict; a clip that cannot be read is one more that is rejected."""
    try:
        grid = read_any_views(source)
    except (ValueError, OSError) as error:
        return None, Verdict(faults=(f"cannot be read: {error}",))
    return grid, judge(grid, limits)


def _write(folder: Path, grid: ViewGrid, verdict: Verdict, source: Path, size: int | None) -> None:
    if verdict.plan is None:
        raise ValueError("Expected a plan for a scene that is kept.")
    side = size or grid.images.shape[2] // 2 * 2
    settings = {"curated_from": str(source), "rectification": rectification_json(verdict)}
    write_views(folder, rectify(grid, verdict.plan, side), run={"settings": settings})
