"""The tables of the report, as cells of text: Markdown and the page show the same ones."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ...views import ViewGrid
from ..evaluate import (
    CLIP_NAME,
    DEFAULT_SHRINKAGE,
    FHD_NAMES,
    FVD_NAMES,
    LPIPS_NAME,
    NO_VALUE,
    PAPER,
    REFERENCE,
    RESIDUAL_NAME,
    WITH_REFERENCE,
    WITHOUT_REFERENCE,
    Metric,
    Networks,
    SceneScores,
    Summary,
    evaluate,
    steps_of,
    summarise,
    written,
)
from ..frechet import I3D_HELP
from ..lpips import LPIPS_HELP
from .plots import Strip, scene_pictures


@dataclass(frozen=True)
class SceneComparison:
    """What several methods scored on one scene. Holds no full-size image.

    Args:
        scene: name.
        scores: the true views' own first where there are some, then the methods in their order.
        pictures: strips of small pictures.
        sizes: widths and heights of the views in pixels, one where all are alike.
        incomplete: methods that lack views, or images of which hold NaN or infinite values.
        untrained: methods whose views come from weights that were never trained.
        networks: which of "lpips", "clip" and "i3d" were at hand.
    """

    scene: str
    scores: tuple[SceneScores, ...]
    pictures: tuple[Strip, ...]
    sizes: tuple[tuple[int, int], ...]
    incomplete: frozenset[str] = frozenset()
    untrained: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()

    @property
    def has_reference(self) -> bool:
        """Whether there are true views."""
        return self.scores[0].method == REFERENCE

    @property
    def of_methods(self) -> tuple[SceneScores, ...]:
        """The scores of the methods alone."""
        return self.scores[1:] if self.has_reference else self.scores


def compare(
    scene: str,
    predictions: Mapping[str, ViewGrid],
    reference: ViewGrid | None,
    networks: Networks | None = None,
    *,
    residuals: Mapping[str, Tensor] | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> SceneComparison:
    """Return the scores of all methods on one scene, and of the true views by what needs no truth.

    Args:
        scene: name.
        predictions: the views of every method, by its name.
        reference: true views, or None.
        networks: for LPIPS, CLIP-S and FVD.
        residuals: per method [T, V] what a fitted 4D scene leaves unexplained (`fit_residuals`).
        callback: called with (steps done, all steps); may raise to cancel.

    Raises:
        ValueError: no method, a method without a name or with the name of the true views, residuals of no
            method, or views that do not fit the reference's.
    """
    _check_names(predictions, residuals or {})
    total = sum(steps_of(grid, reference) for grid in predictions.values())
    total += 0 if reference is None else steps_of(reference)
    counter = itertools.count(1)

    def step(_done: int, _steps: int) -> None:
        if callback is not None:
            callback(next(counter), total)

    scores = []
    if reference is not None:
        scores.append(evaluate(reference, method=REFERENCE, scene=scene, callback=step))
    for name, grid in predictions.items():
        found = (residuals or {}).get(name)
        options = {"method": name, "scene": scene, "residuals": found, "callback": step}
        scores.append(evaluate(grid, reference, networks, **options))
    sizes = dict.fromkeys((grid.images.shape[3], grid.images.shape[2]) for grid in predictions.values())
    given = networks or Networks()
    return SceneComparison(
        scene,
        tuple(scores),
        scene_pictures(predictions, reference, scores),
        tuple(sizes),
        frozenset(s.method for s in scores if s.missing or _has_gaps(predictions.get(s.method))),
        frozenset(name for name, grid in predictions.items() if not grid.trained),
        frozenset(name for name in ("lpips", "clip", "i3d") if getattr(given, name) is not None),
    )


def method_names(comparisons: Sequence[SceneComparison]) -> list[str]:
    """Return the methods of all scenes in their order, without the true views."""
    return list(dict.fromkeys(score.method for scene in comparisons for score in scene.of_methods))


def summaries_of(
    comparisons: Sequence[SceneComparison], shrinkage: float = DEFAULT_SHRINKAGE
) -> tuple[Summary, ...]:
    """Return the summary over all scenes of the true views, where there are some, and of every method.

    Raises:
        ValueError: no scene, or two scenes of one name.
    """
    names = [scene.scene for scene in comparisons]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"Expected at least one scene, each with its own name; got {', '.join(names) or 'none'}. Rename "
            f"or leave out what is there twice."
        )
    scores = [score for scene in comparisons for score in scene.scores]
    with_reference = any(scene.has_reference for scene in comparisons)
    methods = [*([REFERENCE] if with_reference else []), *method_names(comparisons)]
    return tuple(summarise([s for s in scores if s.method == m], shrinkage) for m in methods)


def _check_names(predictions: Mapping[str, ViewGrid], residuals: Mapping[str, Tensor]) -> None:
    if not predictions:
        raise ValueError("Expected the views of at least one method; got none. Give some.")
    for name in predictions:
        if not name.strip() or name.strip().lower() == REFERENCE:
            raise ValueError(
                f"Expected a method's name; got {name!r}, and {REFERENCE!r} is what the true views are "
                f"called. Choose another name."
            )
    if unknown := [name for name in residuals if name not in predictions]:
        raise ValueError(
            f"Expected residuals of {', '.join(predictions)}; got some of {unknown[0]!r}. Use the methods' "
            f"names."
        )


def _has_gaps(grid: ViewGrid | None) -> bool:
    return grid is not None and not bool(grid.images[:, 1:].isfinite().all())


BEST = "Bold: the best of at least two methods, by the digits that are printed."
INCOMPLETE = (
    "† The value leaves out views, images or scenes that the others are judged by (see the notes); it is "
    "never marked as the best."
)
NOT_FVD = (
    "FHD-F, FHD-V, FHD-Diag and FH4D watch the same clips as FVD-F, FVD-V, FVD-Diag and FV4D, but describe "
    "them by HOG3D (directions of edges and motion) and colours instead of the I3D network. They need no "
    "file, are not FVD, and cannot be compared with any FVD."
)
FEW_CLIPS = (
    "Where clips are not more than features, a covariance has no full rank: such distances compare only with "
    "each other, at equal n, T and shrinkage, never with published ones."
)
_NO_REFERENCE = (
    "There are no true views, so only what needs none was measured. LPIPS, CLIP-S, FVD, PSNR, SSIM and mask "
    "IoU need them: give REFERENCE on the command line, or connect reference of SV4D2 Metrics in ComfyUI."
)
_MISSING = {
    "lpips": f"{LPIPS_NAME} is missing: give its weights with --lpips FILE. {LPIPS_HELP}",
    "clip": f"{CLIP_NAME} is missing: give an image encoder of CLIP with --clip FILE.",
    "i3d": f"{', '.join(FVD_NAMES.values())} are missing: give the I3D network with --i3d FILE. {I3D_HELP}",
}
_NODE = (
    "In ComfyUI put the files of LPIPS and I3D into models/sv4d2_metrics and choose them in SV4D2 Metrics; "
    "for CLIP-S connect its clip_vision. Nothing is ever downloaded."
)
_NAMED_AT_MOST = 4


def what_was_compared(comparisons: Sequence[SceneComparison]) -> dict[str, str]:
    """Return methods, scenes and sizes in words."""
    scores = [score for scene in comparisons for score in scene.scores]
    with_truth = sum(scene.has_reference for scene in comparisons)
    sizes = dict.fromkeys(f"{width} x {height} pixels" for s in comparisons for width, height in s.sizes)
    return {
        "Methods": ", ".join(method_names(comparisons)),
        "Scenes": ", ".join(scene.scene or "one without a name" for scene in comparisons),
        "Frames": _range([score.n_frames for score in scores]),
        "Novel views": _range([score.cameras.n_views for score in scores]),
        "Size": ", ".join(sizes),
        "True views": {0: "none", len(comparisons): "yes"}.get(
            with_truth, f"of {with_truth} of {len(comparisons)} scenes"
        ),
    }


def untrained_warning(comparisons: Sequence[SceneComparison]) -> str:
    """Return a warning where views come from weights that were never trained, else nothing."""
    untrained = frozenset[str]().union(*(scene.untrained for scene in comparisons))
    names = [name for name in method_names(comparisons) if name in untrained]
    return f"{', '.join(names)}: UNTRAINED WEIGHTS, noise is expected" if names else ""


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def missing_lines(comparisons: Sequence[SceneComparison]) -> tuple[str, ...]:
    """Return what was not given, and so what could not be measured: a line for each."""
    if not any(scene.has_reference for scene in comparisons):
        return (_NO_REFERENCE,)
    given = frozenset[str]().union(*(scene.networks for scene in comparisons))
    lines = tuple(line for name, line in _MISSING.items() if name not in given)
    return (*lines, _NODE) if lines else ()


def notes(comparisons: Sequence[SceneComparison], summaries: Sequence[Summary]) -> list[str]:
    """Return the notes of all methods and scenes, equal ones as one, with whom they concern."""
    scenes: dict[tuple[str, str], list[str]] = {}
    for scene in comparisons:
        for score in scene.scores:
            for note in score.notes:
                scenes.setdefault((note, score.method), []).append(scene.scene)
    for summary in summaries:
        for note in summary.notes:
            scenes.setdefault((note, summary.method), [])
    methods: dict[tuple[str, str], list[str]] = {}
    for (note, method), places in scenes.items():
        everywhere = len(comparisons) == 1 or not places or len(places) == len(comparisons)
        methods.setdefault((note, "" if everywhere else f" in {_listed(places)}"), []).append(method)
    everyone = method_names(comparisons)
    lines = [f"{_whom(names, everyone)}{where}: {note}" for (note, where), names in methods.items()]
    absent = [
        f"{s.method}: {s.n_scenes} of {len(comparisons)} scenes."
        for s in summaries
        if s.method != REFERENCE and s.n_scenes < len(comparisons)
    ]
    return [*absent, *lines]


def _whom(names: Sequence[str], everyone: Sequence[str]) -> str:
    return "All methods" if len(everyone) > 1 and set(everyone) <= set(names) else _listed(names)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED_AT_MOST])
    return f"{shown} and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else shown


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
        having = {score.method for score in scene.of_methods if score.has(name)}
        if having and method != REFERENCE and (method in scene.incomplete or method not in having):
            return True
    return False


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
        *([_cell_markdown(cell) for cell in row] for row in table.rows),
    ]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return [f"## {table.title}", rows, *map(_escaped, table.remarks)]


def _cell_markdown(cell: Cell) -> str:
    text = _escaped(cell.text)
    return f"**{text}**" if cell.best else f"{text} †" if cell.incomplete else text


def _escaped(text: str) -> str:
    """Return the text on one line, every letter for itself."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
