"""The tables of the report, as cells of text: Markdown and the page show the same ones."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...messages import listed
from ...views import ViewGrid
from ..evaluate import (
    DEFAULT_SHRINKAGE,
    FHD_NAMES,
    FVD_NAMES,
    METRICS,
    NO_VALUE,
    PAPER,
    REFERENCE,
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
from ..i3d import I3D_HELP
from ..image import LPIPS_HELP
from .plots import Strip, scene_pictures


@dataclass(frozen=True)
class SceneComparison:
    """What several methods scored on one scene. Holds no full-size image."""

    scene: str
    scores: tuple[SceneScores, ...]  # the true views' own first where there are some, then the methods'
    pictures: tuple[Strip, ...]
    sizes: tuple[tuple[int, int], ...]  # widths and heights of the views in pixels, one where all are alike
    incomplete: frozenset[str] = frozenset()  # methods that lack views, or images of which hold no numbers
    untrained: frozenset[str] = frozenset()  # methods whose weights were never trained
    networks: frozenset[str] = frozenset()  # which of "lpips", "clip" and "i3d" were given

    @property
    def has_reference(self) -> bool:
        return self.scores[0].method == REFERENCE

    @property
    def of_methods(self) -> tuple[SceneScores, ...]:
        return self.scores[1:] if self.has_reference else self.scores


def compare(
    scene: str,
    predictions: Mapping[str, ViewGrid],  # by the methods' names
    reference: ViewGrid | None,
    networks: Networks | None = None,
    *,
    callback: Callable[[int, int], None] | None = None,  # takes (steps done, all steps), may raise to cancel
) -> SceneComparison:
    """Return the scores of all methods on one scene, and of the true views by what needs no truth.

    Raises ValueError for no method, names that do not fit, or views unlike the reference's.
    """
    networks = networks or Networks()
    _check_names(predictions)
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
        scores.append(evaluate(grid, reference, networks, method=name, scene=scene, callback=step))
    holes = [name for name, grid in predictions.items() if not grid.images[:, 1:].isfinite().all()]
    return SceneComparison(
        scene,
        tuple(scores),
        scene_pictures(predictions, reference, scores),
        sizes=tuple(dict.fromkeys((g.images.shape[3], g.images.shape[2]) for g in predictions.values())),
        incomplete=frozenset([*holes, *(score.method for score in scores if score.missing)]),
        untrained=frozenset(name for name, grid in predictions.items() if not grid.trained),
        networks=frozenset(name for name in _MISSING if getattr(networks, name) is not None),
    )


def _check_names(predictions: Mapping[str, ViewGrid]) -> None:
    if not predictions:
        raise ValueError("Expected the views of at least one method; got none. Give some.")
    for name in predictions:
        if not name.strip() or name.strip().lower() == REFERENCE:
            raise ValueError(
                f"Expected a method's name; got {name!r}, and {REFERENCE!r} is what the true views are "
                f"called. Choose another name."
            )


def method_names(comparisons: Sequence[SceneComparison]) -> list[str]:
    """Return the methods of all scenes in their order, without the true views."""
    return list(dict.fromkeys(score.method for scene in comparisons for score in scene.of_methods))


def summaries_of(
    comparisons: Sequence[SceneComparison], shrinkage: float = DEFAULT_SHRINKAGE
) -> tuple[Summary, ...]:
    """Return summaries of true views and every method; ValueError for no scene, or two of one name."""
    names = [scene.scene for scene in comparisons]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"Expected at least one scene, each with its own name; got {listed(names)}. Rename or "
            f"leave out what is there twice."
        )
    by_method: dict[str, list[SceneScores]] = {REFERENCE: []}
    for score in (score for scene in comparisons for score in scene.scores):
        by_method.setdefault(score.method, []).append(score)
    return tuple(summarise(scores, shrinkage) for scores in by_method.values() if scores)


_BEST = "Bold: the best of at least two methods, by the digits that are printed."
_INCOMPLETE = (
    "† The value leaves out views, images or scenes that the others are judged by (see the notes); it is "
    "never marked as the best."
)
_NOT_FVD = (
    "FHD-F, FHD-V, FHD-Diag and FH4D watch the same clips as FVD-F, FVD-V, FVD-Diag and FV4D, but describe "
    "them by HOG3D (directions of edges and motion) and colours instead of the I3D network. They need no "
    "file, are not FVD, and cannot be compared with any FVD."
)
_FEW_CLIPS = (
    "Where covariances are shrunk, or clips are not more than features, distances compare only with each "
    "other, at equal n, T and shrinkage, never with published ones: these need many clips and no shrinkage."
)
_NO_REFERENCE = (
    "There are no true views, so only what needs none was measured. LPIPS, CLIP-S, FVD, PSNR, SSIM and mask "
    "IoU need them: give REFERENCE on the command line, or connect reference of SV4D2 Metrics in ComfyUI."
)
# Of each network, how to get what it measures.
_MISSING = {
    "lpips": f"LPIPS is missing: give its weights with --lpips FILE. {LPIPS_HELP}",
    "clip": "CLIP-S is missing: give an image encoder of CLIP with --clip FILE.",
    "i3d": f"{', '.join(FVD_NAMES.values())} are missing: give the I3D network with --i3d FILE. {I3D_HELP}",
}
_NODE = (
    "In ComfyUI put the files of LPIPS and I3D into models/sv4d2_metrics and choose them in SV4D2 Metrics; "
    "for CLIP-S connect its clip_vision. Nothing is ever downloaded."
)


def what_was_compared(comparisons: Sequence[SceneComparison]) -> dict[str, str]:
    """Return methods, scenes and sizes in words."""

    def span(counts: list[int]) -> str:
        return " to ".join(map(str, sorted({min(counts), max(counts)})))

    scores = [score for scene in comparisons for score in scene.scores]
    with_truth = sum(scene.has_reference for scene in comparisons)
    truth = {0: "none", len(comparisons): "yes"}
    sizes = dict.fromkeys(f"{width} x {height} pixels" for s in comparisons for width, height in s.sizes)
    return {
        "Methods": ", ".join(method_names(comparisons)),
        "Scenes": ", ".join(scene.scene or "one without a name" for scene in comparisons),
        "Frames": span([score.n_frames for score in scores]),
        "Novel views": span([score.cameras.n_views for score in scores]),
        "Size": ", ".join(sizes),
        "True views": truth.get(with_truth, f"of {with_truth} of {len(comparisons)} scenes"),
    }


def untrained_warning(comparisons: Sequence[SceneComparison]) -> str:
    """Return a warning where views come from weights that were never trained, else nothing."""
    names = [m for m in method_names(comparisons) if any(m in scene.untrained for scene in comparisons)]
    return f"{', '.join(names)}: UNTRAINED WEIGHTS, noise is expected" if names else ""


def missing_lines(comparisons: Sequence[SceneComparison]) -> tuple[str, ...]:
    """Return what was not given, and so what could not be measured: a line for each."""
    if not any(scene.has_reference for scene in comparisons):
        return (_NO_REFERENCE,)
    given = {name for scene in comparisons for name in scene.networks}
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
        everywhere = len(comparisons) == 1 or len(places) in (0, len(comparisons))
        methods.setdefault((note, "" if everywhere else f" in {listed(places)}"), []).append(method)
    everyone = method_names(comparisons)
    lines = [
        f"{s.method}: {s.n_scenes} of {len(comparisons)} scenes."
        for s in summaries
        if s.method != REFERENCE and s.n_scenes < len(comparisons)
    ]
    for (note, where), names in methods.items():
        whom = "All methods" if len(everyone) > 1 and set(everyone) <= set(names) else listed(names)
        lines.append(f"{whom}{where}: {note}")
    return lines


# The columns of the table of every scene: Frechet distances of one scene's few clips say too little.
_PER_SCENE = (
    *("LPIPS", "CLIP-S", "PSNR fg", "PSNR union", "SSIM fg", "mask IoU"),
    *("flicker", "warping", "tangency", "epipolar"),
)


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool = False  # of its column
    incomplete: bool = False  # it leaves out what the others are judged by


@dataclass(frozen=True)
class Table:
    """A table with what has to be said about it."""

    title: str
    heads: tuple[tuple[str, str], ...]  # name and meaning of every column; without a meaning: of names
    rows: tuple[tuple[Cell, ...], ...]
    remarks: tuple[str, ...] = ()  # sentences below it


def report_tables(comparisons: Sequence[SceneComparison], summaries: Sequence[Summary]) -> list[Table]:
    methods = [s for s in summaries if s.method != REFERENCE]
    has_truth = len(methods) < len(summaries)
    missing = missing_lines(comparisons)

    def table(title: str, metrics: Sequence[Metric], whose: Sequence[Summary], *remarks: str) -> Table:
        return _metrics_table(title, metrics, {"": (whose, comparisons)}, remarks)

    tables = []
    if has_truth:
        tables.append(table("The columns of the SV4D papers", PAPER, methods, *missing))
        tables.append(table("Against the true views", WITH_REFERENCE, methods, _NOT_FVD))
    measured = {name for s in summaries for name, value in s.means.items() if not math.isnan(value)}
    tables.append(table("Without true views", WITHOUT_REFERENCE, summaries, *(() if has_truth else missing)))
    if any(s.distances for s in methods):
        tables.append(_distances_table(methods))
    if len(comparisons) > 1:
        metrics = [METRICS[name] for name in _PER_SCENE if name in measured]
        own = {
            scene.scene: ([summarise([replace(s, features={})]) for s in scene.scores], [scene])
            for scene in comparisons
        }
        tables.append(_metrics_table("Every scene", metrics, own))
    return tables


def _metrics_table(
    title: str,
    metrics: Sequence[Metric],
    groups: Mapping[str, tuple[Sequence[Summary], Sequence[SceneComparison]]],
    remarks: Sequence[str] = (),
) -> Table:
    """Return a table of one row per method of each group, with the explanation of the marks that occur.

    ``groups`` are by a scene's name the summaries that compete, and the scenes that they rest on.
    """
    rows = []
    for scene, (summaries, comparisons) in groups.items():
        columns = [_column(metric, summaries, comparisons) for metric in metrics]
        for i, summary in enumerate(summaries):
            names = (scene, summary.method) if len(groups) > 1 else (summary.method,)
            rows.append((*map(Cell, names), *(column[i] for column in columns)))
    cells = list(itertools.chain(*rows))
    marks = [(_BEST, any(cell.best for cell in cells)), (_INCOMPLETE, any(cell.incomplete for cell in cells))]
    labels = ("scene", "method") if len(groups) > 1 else ("method",)
    heads = (*((label, "") for label in labels), *((m.title, m.meaning) for m in metrics))
    return Table(title, heads, tuple(rows), (*(text for text, occurs in marks if occurs), *remarks))


def _column(
    metric: Metric, summaries: Sequence[Summary], comparisons: Sequence[SceneComparison]
) -> list[Cell]:
    """Return a column with its best cells marked, by the digits that are printed."""
    cells, rivals = [], {}
    for i, summary in enumerate(summaries):
        text = written(summary.value(metric.name), metric.digits)
        incomplete = text != NO_VALUE and lacks_data(metric.name, summary.method, comparisons)
        cells.append(Cell(text, incomplete=incomplete))
        if summary.method != REFERENCE and not incomplete and text != NO_VALUE:
            rivals[i] = float(text.replace("∞", "inf"))
    if len(rivals) < 2:
        return cells
    best = max(rivals.values()) if metric.higher_is_better else min(rivals.values())
    return [replace(cell, best=rivals.get(i) == best) for i, cell in enumerate(cells)]


def lacks_data(name: str, method: str, comparisons: Sequence[SceneComparison]) -> bool:
    """Return whether a method's value of a metric leaves out images or scenes that others are judged by."""
    for scene in comparisons:
        having = {score.method for score in scene.of_methods if score.has(name)}
        if having and method != REFERENCE and (method in scene.incomplete or method not in having):
            return True
    return False


def _distances_table(summaries: Sequence[Summary]) -> Table:
    """Return what the Frechet distances rest on; distances and methods of equal numbers share a row."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in (*FVD_NAMES.values(), *FHD_NAMES.values()):
        methods: dict[tuple[str, ...], list[str]] = {}
        for summary in summaries:
            if d := summary.distances.get(name):
                counts = (d.n_samples, d.n_reference_samples, summary.clip_lengths[name], d.n_features)
                methods.setdefault((*map(str, counts), f"{d.shrinkage:g}"), []).append(summary.method)
        for facts, names in methods.items():
            whom = "all" if len(names) == len(summaries) else ", ".join(names)
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
    apart = any(d.rank_deficient or d.shrinkage for s in summaries for d in s.distances.values())
    return Table("What the Frechet distances rest on", heads, rows, (_FEW_CLIPS,) if apart else ())


_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#&])")  # what Markdown, or HTML inside it, takes for markup


def markdown_report(comparisons: Sequence[SceneComparison], summaries: Sequence[Summary]) -> str:
    """Return the tables, what is to be said about them, and the notes."""
    facts = what_was_compared(comparisons).items()
    parts = ["# Evaluation of novel views", "\n".join(f"- {head}: {_escaped(text)}" for head, text in facts)]
    if warning := untrained_warning(comparisons):
        parts.append(f"**{_escaped(warning)}**")
    for table in report_tables(comparisons, summaries):
        parts += [_markdown(table), *map(_escaped, table.remarks)]
    if lines := notes(comparisons, summaries):
        parts += ["## Notes", "\n".join(f"- {_escaped(line)}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def markdown_tables(comparisons: Sequence[SceneComparison], summaries: Sequence[Summary]) -> str:
    return "\n\n".join(map(_markdown, report_tables(comparisons, summaries))) + "\n"


def _markdown(table: Table) -> str:
    """Return title and table; names stand left, numbers right."""

    def cell(cell: Cell) -> str:
        text = _escaped(cell.text)
        return f"**{text}**" if cell.best else f"{text} †" if cell.incomplete else text

    lines = [
        [_escaped(head) for head, _ in table.heads],
        ["---:" if meaning else "---" for _, meaning in table.heads],
        *([cell(one) for one in row] for row in table.rows),
    ]
    return f"## {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """Return the text on one line, every letter for itself."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
