"""The report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..scores import Summary
from .comparison import SceneComparison
from .remarks import notes, untrained_warning, what_was_compared
from .tables import Cell, Table, report_tables

# What Markdown, or HTML inside it, would take for more than a letter.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#&])")


def markdown_report(comparisons: Sequence[SceneComparison], summaries: Sequence[Summary]) -> str:
    """Return the tables, in the order of the papers' columns, what is to be said about them, and the notes.

    Args:
        comparisons: the scenes.
        summaries: of the true views and the methods over all scenes (`summaries_of`).
    """
    parts = ["# Evaluation of novel views", _what(comparisons)]
    if warning := untrained_warning(comparisons):
        parts.append(f"**{_escaped(warning)}**")
    parts += [part for table in report_tables(comparisons, summaries) for part in _table(table)]
    if lines := notes(comparisons, summaries):
        parts += ["## Notes", "\n".join(f"- {_escaped(line)}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def markdown_tables(comparisons: Sequence[SceneComparison], summaries: Sequence[Summary]) -> str:
    """Return the tables alone."""
    tables = report_tables(comparisons, summaries)
    return "\n\n".join("\n\n".join(_table(table)[:2]) for table in tables) + "\n"


def _what(comparisons: Sequence[SceneComparison]) -> str:
    return "\n".join(f"- {head}: {_escaped(text)}" for head, text in what_was_compared(comparisons).items())


def _table(table: Table) -> list[str]:
    """Return title, table and remarks; names stand left, numbers right."""
    rule = ["---:" if meaning else "---" for _, meaning in table.heads]
    lines = [
        [_escaped(head) for head, _ in table.heads],
        rule,
        *([_cell(cell) for cell in row] for row in table.rows),
    ]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return [f"## {table.title}", rows, *map(_escaped, table.remarks)]


def _cell(cell: Cell) -> str:
    text = _escaped(cell.text)
    return f"**{text}**" if cell.best else f"{text} †" if cell.incomplete else text


def _escaped(text: str) -> str:
    """Return the text on one line, every letter for itself."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
