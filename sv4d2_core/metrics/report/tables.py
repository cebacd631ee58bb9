"""The tables of the report, as cells of text: Markdown and the page show the same ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..catalogue import (
    CLIP_NAME,
    FHD_NAMES,
    FVD_NAMES,
    LPIPS_NAME,
    PAPER,
    RESIDUAL_NAME,
    WITH_REFERENCE,
    WITHOUT_REFERENCE,
    Metric,
)
from ..scores import SceneScores, Summary, mean_of, summarise
from .comparison import SceneComparison
from .pictures import REFERENCE
from .remarks import BEST, FEW_CLIPS, INCOMPLETE, NOT_FVD, missing_lines
from .written import NO_VALUE, written

METHOD, SCENE = "method", "scene"
# The columns of the table of every scene: Frechet distances of one scene's few clips say too little.
_PER_SCENE = (
    *(LPIPS_NAME, CLIP_NAME, "PSNR fg", "SSIM fg", "mask IoU"),
    *("flicker", "warping", "tangency", "epipolar", RESIDUAL_NAME),
)


@dataclass(frozen=True)
class Cell:
    """One cell: its text, whether it is the best of its column, whether it rests on incomplete data."""

    text: str
    best: bool = False
    incomplete: bool = False


@dataclass(frozen=True)
class Table:
    """A table with what has to be said about it.

    Args:
        title: above it.
        heads: name and meaning of every column.
        rows: cells, as many as heads.
        remarks: sentences below it.
    """

    title: str
    heads: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]
    remarks: tuple[str, ...] = ()


def report_tables(comparisons: Sequence[SceneComparison], summaries: Sequence[Summary]) -> list[Table]:
    """Return all tables of the report.

    Args:
        comparisons: the scenes.
        summaries: of the true views and the methods over all scenes (`summaries_of`).
    """
    methods = [s for s in summaries if s.method != REFERENCE]
    tables = []
    if len(methods) < len(summaries):
        tables.append(
            _methods_table(
                "The columns of the SV4D papers", PAPER, comparisons, methods, missing_lines(comparisons)
            )
        )
        tables.append(
            _methods_table("Against the true views", WITH_REFERENCE, comparisons, methods, (NOT_FVD,))
        )
    alone = [m for m in WITHOUT_REFERENCE if m.name != RESIDUAL_NAME or _anyone_has(m, summaries)]
    remarks = () if len(methods) < len(summaries) else missing_lines(comparisons)
    tables.append(_methods_table("Without true views", alone, comparisons, summaries, remarks))
    if any(s.distances for s in methods):
        tables.append(_distances_table(methods))
    if len(comparisons) > 1:
        tables.append(_scenes_table(comparisons, summaries))
    return tables


def _anyone_has(metric: Metric, summaries: Sequence[Summary]) -> bool:
    return any(not math.isnan(s.value(metric.name)) for s in summaries)


def _methods_table(
    title: str,
    metrics: Sequence[Metric],
    comparisons: Sequence[SceneComparison],
    summaries: Sequence[Summary],
    remarks: Sequence[str],
) -> Table:
    """Return a table of one row per method."""
    rows = [[Cell(s.method)] for s in summaries]
    for metric in metrics:
        column = [_cell(metric, s, comparisons) for s in summaries]
        for row, cell in zip(rows, _marked(metric, column, [s.method for s in summaries]), strict=True):
            row.append(cell)
    return _finished(title, (METHOD,), metrics, rows, remarks)


def _scenes_table(comparisons: Sequence[SceneComparison], summaries: Sequence[Summary]) -> Table:
    """Return a table of one row per scene and method."""
    # In the order of _PER_SCENE, which is that of the tables above.
    known = {m.name: m for m in (*PAPER, *WITH_REFERENCE, *WITHOUT_REFERENCE)}
    metrics = [known[name] for name in _PER_SCENE if _anyone_has(known[name], summaries)]
    rows = []
    for scene in comparisons:
        own = [summarise([replace(score, features={}, clip_lengths={})]) for score in scene.scores]
        columns = [_marked(m, [_cell(m, s, [scene]) for s in own], [s.method for s in own]) for m in metrics]
        rows += [
            [Cell(scene.scene), Cell(s.method), *(column[i] for column in columns)] for i, s in enumerate(own)
        ]
    return _finished("Every scene", (SCENE, METHOD), metrics, rows, ())


def _cell(metric: Metric, summary: Summary, comparisons: Sequence[SceneComparison]) -> Cell:
    value = summary.value(metric.name)
    text = written(value, metric.digits)
    return Cell(text, incomplete=text != NO_VALUE and lacks_data(metric.name, summary.method, comparisons))


def lacks_data(name: str, method: str, comparisons: Sequence[SceneComparison]) -> bool:
    """Return whether a method's value of a metric leaves out images or scenes that others are judged by."""
    for scene in comparisons:
        having = {score.method for score in scene.of_methods if _has(score, name)}
        if having and method != REFERENCE and (method in scene.incomplete or method not in having):
            return True
    return False


def _has(score: SceneScores, name: str) -> bool:
    return name in score.features or (name in score.values and not math.isnan(mean_of(score.values[name])))


def _marked(metric: Metric, column: Sequence[Cell], methods: Sequence[str]) -> list[Cell]:
    """Return a column with its best cells marked, by the digits that are printed."""
    rivals = [
        float(cell.text.replace("∞", "inf"))
        if method != REFERENCE and not cell.incomplete and cell.text != NO_VALUE
        else math.nan
        for cell, method in zip(column, methods, strict=True)
    ]
    values = [x for x in rivals if not math.isnan(x)]
    if len(values) < 2:
        return list(column)
    best = max(values) if metric.higher_is_better else min(values)
    return [replace(cell, best=x == best) for cell, x in zip(column, rivals, strict=True)]


def _finished(
    title: str,
    labels: Sequence[str],
    metrics: Sequence[Metric],
    rows: Sequence[Sequence[Cell]],
    remarks: Sequence[str],
) -> Table:
    """Return the table with the explanation of the marks that occur in it."""
    cells = [cell for row in rows for cell in row]
    marks = [(BEST, any(cell.best for cell in cells)), (INCOMPLETE, any(cell.incomplete for cell in cells))]
    heads = (*((label, "") for label in labels), *((m.title, m.meaning) for m in metrics))
    explained = (*(text for text, occurs in marks if occurs), *remarks)
    return Table(title, heads, tuple(map(tuple, rows)), explained)


def _distances_table(summaries: Sequence[Summary]) -> Table:
    """Return what the Frechet distances rest on; distances and methods of equal numbers share a row."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in (*FVD_NAMES.values(), *FHD_NAMES.values()):
        for facts, methods in _methods_by_facts(name, summaries).items():
            whom = "all" if len(methods) == len(summaries) else ", ".join(methods)
            groups.setdefault((*facts, whom), []).append(name)
    heads = (
        ("distances", ""),
        ("n", "number of clips of the method, over all scenes"),
        ("n reference", "number of clips of the true views, over all scenes"),
        ("T", "images in a clip, in the scene where they are fewest"),
        ("features", "length of the description of a clip"),
        ("shrinkage", "share of each covariance that is replaced by a multiple of the identity"),
        ("methods", ""),
    )
    rows = tuple(tuple(map(Cell, (", ".join(names), *facts))) for facts, names in groups.items())
    deficient = any(d.rank_deficient for s in summaries for d in s.distances.values())
    return Table("What the Frechet distances rest on", heads, rows, (FEW_CLIPS,) if deficient else ())


def _methods_by_facts(name: str, summaries: Sequence[Summary]) -> dict[tuple[str, ...], list[str]]:
    """Return which methods' values of a distance rest on which numbers."""
    whom: dict[tuple[str, ...], list[str]] = {}
    for summary in summaries:
        if name in summary.distances:
            d = summary.distances[name]
            counts = (d.n_samples, d.n_reference_samples, summary.clip_lengths[name], d.n_features)
            whom.setdefault((*map(str, counts), f"{d.shrinkage:g}"), []).append(summary.method)
    return whom
