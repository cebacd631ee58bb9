"""The report of a curation: what was kept, what was rejected and why, as JSON and as one HTML page."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from PIL import Image

from ...metrics.report.page_style import STYLE
from .limits import CurationLimits
from .verdict import Check, Verdict

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
