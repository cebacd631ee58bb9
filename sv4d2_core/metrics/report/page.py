"""The report as one self-contained HTML page: no script, nothing that is loaded from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..scores import Summary
from .comparison import SceneComparison, method_names
from .page_style import STYLE
from .pictures import REFERENCE
from .plots import Series, sample
from .remarks import notes, untrained_warning, what_was_compared
from .scene_section import scene_section
from .tables import METHOD, SCENE, Cell, Table, report_tables

TITLE = "Evaluation of novel views"


def report_page(
    comparisons: Sequence[SceneComparison],
    summaries: Sequence[Summary],
    run: Mapping[str, Any] | None = None,
) -> str:
    """Return the page: what was compared, the tables, the notes, and every scene's pictures and plots.

    Args:
        comparisons: the scenes.
        summaries: of the true views and the methods over all scenes (`summaries_of`).
        run: how the report was made, JSON values.
    """
    numbers = {REFERENCE: -1, **{name: i for i, name in enumerate(method_names(comparisons))}}
    parts = [f"<h1>{TITLE}</h1>", _facts(what_was_compared(comparisons))]
    if warning := untrained_warning(comparisons):
        parts.append(f'<p class="warning">{escape(warning)}</p>')
    if len(comparisons) > 1:
        links = (f'<a href="#scene-{i}">{escape(s.scene)}</a>' for i, s in enumerate(comparisons))
        parts.append(f"<nav>Scenes: {''.join(links)}</nav>")
    parts += [_table(table, numbers) for table in report_tables(comparisons, summaries)]
    if lines := notes(comparisons, summaries):
        parts.append(f"<h2>Notes</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>")
    for i, scene in enumerate(comparisons):
        head = escape(f"Scene {scene.scene}" if scene.scene else "The scene")
        parts.append(
            f'<section class="scene" id="scene-{i}"><h2>{head}</h2>{scene_section(scene, numbers)}</section>'
        )
    if run:
        parts.append(f"<footer><h3>How this report was made</h3>{_facts(run)}</footer>")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{TITLE}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _facts(facts: Mapping[str, Any]) -> str:
    rows = (
        f"<dt>{escape(name)}</dt><dd>{escape(fact if isinstance(fact, str) else json.dumps(fact))}</dd>"
        for name, fact in facts.items()
    )
    return f"<dl>{''.join(rows)}</dl>"


def _table(table: Table, numbers: Mapping[str, int]) -> str:
    """Return title, table and remarks; the meaning of a column is its head's tooltip.

    Names of scenes are no column here, but stand above their rows.
    """
    by_scene = table.heads[0][0] == SCENE
    heads = table.heads[1:] if by_scene else table.heads
    rows, scene = [], None
    for cells in table.rows:
        if by_scene and cells[0].text != scene:
            scene = cells[0].text
            rows.append(
                f'<tr class="first"><td class="name" colspan="{len(heads)}">{escape(scene)}</td></tr>'
            )
        shown = zip(cells[1:] if by_scene else cells, heads, strict=True)
        rows.append(f"<tr>{''.join(_cell(cell, *head, numbers) for cell, head in shown)}</tr>")
    remarks = "".join(f'<p class="remark">{escape(remark)}</p>' for remark in table.remarks)
    return (
        f'<h2>{escape(table.title)}</h2><div class="scroll"><table class="numbers"><thead><tr>'
        f"{''.join(_head(*head) for head in heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"{remarks}"
    )


def _head(name: str, meaning: str) -> str:
    if not meaning:
        return f'<th class="name" scope="col">{escape(name)}</th>'
    return f'<th scope="col" title="{escape(meaning)}">{escape(name)}</th>'


def _cell(cell: Cell, column: str, meaning: str, numbers: Mapping[str, int]) -> str:
    text = escape(cell.text) + (" †" if cell.incomplete else "")
    if column == METHOD:
        text = sample(Series(cell.text, numbers[cell.text], ())) + text
    kind = "best" if cell.best else "gap" if cell.incomplete else "" if meaning else "name"
    return f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>"
