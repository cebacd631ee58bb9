"""The report as one self-contained HTML page: no script, nothing that is loaded from elsewhere."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..evaluate import LPIPS_NAME, METRICS, RESIDUAL_NAME, Metric, SceneScores, Summary, mean_along
from . import svg
from .plots import (
    REFERENCE,
    Picture,
    Series,
    Strip,
    heat_map,
    limits_of,
    line_plot,
    no_value_sample,
    sample,
    scale_bar,
    view_label,
)
from .svg import ramp
from .tables import (
    METHOD,
    SCENE,
    Cell,
    SceneComparison,
    Table,
    lacks_data,
    method_names,
    notes,
    report_tables,
    untrained_warning,
    what_was_compared,
)

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 60px; background: #fff; color: #222;
  overflow-wrap: anywhere;
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; margin: 0 0 10px; }
h2 { font-size: 18px; margin: 34px 0 8px; padding-top: 10px; border-top: 1px solid #d8d8d8; }
h3 { font-size: 14px; margin: 22px 0 6px; }
p, li { max-width: 110ch; }
p { margin: 6px 0; }
p.remark { color: #555; font-size: 12.5px; margin: 4px 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 8px 0; }
dt { color: #666; }
dd { margin: 0; }
nav a { margin-right: 12px; color: #0b5394; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
table.numbers { font-size: 13px; margin: 6px 0; }
.numbers th, .numbers td { padding: 4px 7px; text-align: right; border-bottom: 1px solid #e6e6e6;
  white-space: nowrap; }
.numbers thead th { border-bottom: 1.5px solid #555; border-top: 1.5px solid #555; font-weight: 600; }
.numbers thead th[title] { cursor: help; }
.numbers tbody tr:last-child td { border-bottom: 1.5px solid #555; }
.numbers .name { text-align: left; white-space: normal; overflow-wrap: break-word; max-width: 22ch; }
.numbers .first td { border-top: 1px solid #999; font-weight: 600; }
.best { font-weight: 700; }
.gap { color: #8a4b00; }
.chip { vertical-align: -2px; margin-right: 5px; }
.warning { background: #fff3cd; border-left: 4px solid #d55e00; padding: 6px 12px; font-weight: 600; }
figure { margin: 10px 0 16px; break-inside: avoid; }
figcaption { margin-bottom: 4px; }
figcaption small { color: #666; }
.row { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: flex-start; }
.row > div { min-width: 0; }
.bar { margin: 2px 0 0 70px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 20px; margin: 4px 0; }
svg { max-width: 100%; height: auto; font-family: inherit; }
.pictures th { font-weight: 400; font-size: 11.5px; color: #555; padding: 1px; }
.pictures th.name { text-align: left; width: 112px; min-width: 112px; max-width: 112px;
  padding-right: 8px; color: #222; font-size: 13px; }
.pictures th.name small { color: #8a4b00; display: block; }
.pictures td { padding: 1px; text-align: center; vertical-align: middle; }
.pictures .apart { width: 12px; min-width: 12px; }
.pictures img, .pictures .none { display: block; width: 122px; outline: 1px solid #dedede;
  outline-offset: -1px; }
.pictures .none { height: 122px; padding: 42px 12px 0; background: #ececec; color: #8a4b00;
  font-size: 11.5px; }
footer { margin-top: 40px; border-top: 1px solid #d8d8d8; color: #555; font-size: 12.5px; }
@page { size: A4 landscape; margin: 10mm; }
@media print {
  body { max-width: none; padding: 0; zoom: 0.9; print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  h2, h3 { break-after: avoid; }
  tr { break-inside: avoid; }
  section.scene { break-before: page; }
}
"""


# The colours of errors end where only this share of the pixels lies above, but at this error at least.
_BRIGHTEST_SHARE, _DIMMEST = 0.01, 0.05
_APART = '<td class="apart"></td>'


def side_by_side(scene: SceneComparison) -> str:
    """Return the HTML of a scene's strips; all errors share one scale."""
    scale = error_scale(scene.pictures)
    return "".join(_strip(strip, scale, scene) for strip in scene.pictures)


def error_scale(strips: Sequence[Strip]) -> float:
    """Return the error, 0..1, at which the colours of the error pictures end: a multiple of 0.05."""
    errors = [p.error.ravel() for s in strips for _, row, _ in s.rows for p in row if p.error is not None]
    if not errors:
        return _DIMMEST
    bright = float(np.quantile(np.concatenate(errors), 1 - _BRIGHTEST_SHARE)) / 255
    return max(_DIMMEST, math.ceil(bright / 0.05 - 1e-9) * 0.05)


def _strip(strip: Strip, scale: float, scene: SceneComparison) -> str:
    rows, above = [], ()
    for method, pictures, note in strip.rows:
        captions = tuple(picture.caption for picture in pictures)
        # One row of captions serves all rows below that show the same.
        if captions != above:
            rows.append(_captions(captions, scene.has_reference))
            above = captions
        remarks = [note, "UNTRAINED WEIGHTS" if method in scene.untrained else ""]
        name = escape(method) + "".join(f"<small>{escape(remark)}</small>" for remark in remarks if remark)
        cells = "".join(f"<td>{_image(picture, method)}</td>" for picture in pictures)
        if scene.has_reference:
            cells += _APART + _errors(method, pictures, scale)
        rows.append(f'<tr><th class="name" scope="row">{name}</th>{cells}</tr>')
    return (
        f"<figure><figcaption>{escape(strip.title)}</figcaption>"
        f'<div class="scroll"><table class="pictures">{"".join(rows)}</table></div></figure>'
    )


def _captions(captions: Sequence[str], twice: bool) -> str:
    heads = "".join(f"<th>{escape(caption)}</th>" for caption in captions)
    return f"<tr><th></th>{heads}{_APART + heads if twice else ''}</tr>"


def _image(picture: Picture, method: str) -> str:
    if picture.image is None:
        return f'<div class="none">{escape(picture.gap)}</div>'
    return _img(Image.fromarray(picture.image), f"{method}, {picture.caption}")


def _errors(method: str, pictures: Sequence[Picture], scale: float) -> str:
    """Return the cells of a method's errors; the true views have none, so the scale stands there."""
    if method == REFERENCE:
        legend = f"Absolute error, mean of the channels, 1 is full scale<br>{scale_bar((0.0, scale), 2)}"
        return f'<td colspan="{len(pictures)}">{legend}</td>'
    return "".join(f"<td>{_error(picture, method, scale)}</td>" for picture in pictures)


def _error(picture: Picture, method: str, scale: float) -> str:
    if picture.error is None:
        return f'<div class="none">{escape(picture.gap)}</div>'
    levels = np.clip(picture.error / (255 * scale), 0, 1) * 255
    coloured = Image.fromarray(levels.round().astype(np.uint8)).convert("P")
    coloured.putpalette(ramp(np.arange(256) / 255).tobytes())
    return _img(coloured, f"error of {method}, {picture.caption}")


def _img(picture: Image.Image, words: str) -> str:
    """Return an ``<img>`` that carries its picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{data}">'


_METRICS = {metric.name: metric for metric in METRICS}
# Of each group the first that has values is shown.
_HEAT_MAPS = (("PSNR fg", "PSNR"), ("tangency",), (RESIDUAL_NAME,))
_PLOTS = (("PSNR fg", "PSNR"), (LPIPS_NAME,), ("mask IoU",), ("warping",), ("tangency",), (RESIDUAL_NAME,))
_ANGLES = "Views are named by azimuth and, where it is not 0, elevation, both relative to the input view."
_AZIMUTH_TICKS = (-180, -90, 0, 90, 180)


def scene_section(scene: SceneComparison, numbers: Mapping[str, int]) -> str:
    """Return the HTML of a scene's pictures, heat maps and plots.

    Args:
        scene: what to show.
        numbers: per method the number that chooses its colour and mark, -1 for the true views.
    """
    lines = [Series(score.method, numbers[score.method], ()) for score in scene.scores]
    legend = "".join(f"<span>{sample(line)}{escape(line.name)}</span>" for line in lines)
    legend = f'<div class="legend">{legend}</div>'
    maps = "".join(_heat_maps(metric, scene) for metric in _shown(_HEAT_MAPS, scene))
    metrics = list(_shown(_PLOTS, scene))
    over_time = "".join(f"<div>{_over_time(metric, scene, numbers)}</div>" for metric in metrics)
    over_angle = "".join(f"<div>{_over_angle(metric, scene, numbers)}</div>" for metric in metrics)
    return (
        f'<h3>Side by side</h3><p class="remark">{_ANGLES}</p>{side_by_side(scene)}'
        f"<h3>View by frame</h3>{maps}"
        f'<h3>Over time, mean of the views</h3>{legend}<figure class="row">{over_time}</figure>'
        f"<h3>Over the angle to the input view, mean of the frames</h3>"
        f'{legend}<figure class="row">{over_angle}</figure>'
    )


def _shown(groups: Sequence[Sequence[str]], scene: SceneComparison) -> Iterator[Metric]:
    for group in groups:
        found = [name for name in group if any(_has(score, name) for score in scene.of_methods)]
        if found:
            yield _METRICS[found[0]]


def _has(score: SceneScores, name: str) -> bool:
    return name in score.values and not bool(score.values[name].isnan().all())


def _heat_maps(metric: Metric, scene: SceneComparison) -> str:
    """Return the heat maps of all methods on one scale."""
    scores = [score for score in scene.scores if metric.name in score.values]
    limits = limits_of([score.values[metric.name] for score in scores], metric.higher_is_better)
    maps = []
    for score in scores:
        labels = [view_label(score.cameras, v) for v in range(1, score.cameras.n_views + 1)]
        title = f"{metric.name} of {score.method}"
        drawn = heat_map(score.values[metric.name], labels, limits, title, metric.digits)
        maps.append(f"<div><div>{escape(score.method)}</div>{drawn}</div>")
    caption = f"<b>{escape(metric.title)}</b> <small>{escape(metric.meaning)}; darker is worse</small>"
    bar = f'<div class="row bar">{scale_bar(limits, metric.digits)}{no_value_sample()}</div>'
    return f'<figure><figcaption>{caption}</figcaption><div class="row">{"".join(maps)}</div>{bar}</figure>'


def _over_time(metric: Metric, scene: SceneComparison, numbers: Mapping[str, int]) -> str:
    """Return the plot of the mean over the views against the frame; pairs of frames stand between them."""
    series = []
    for score in scene.scores:
        if metric.name in score.values:
            means = mean_along(score.values[metric.name], dim=1).tolist()
            shift = (score.n_frames - len(means)) / 2
            points = tuple((t + shift, mean) for t, mean in enumerate(means))
            series.append(Series(score.method, numbers[score.method], points))
    last = max(score.n_frames for score in scene.scores) - 1
    ticks = [t for t in svg.nice_ticks(0, last, 6) if t == int(t)]
    return line_plot(series, metric.title, "frame", ticks, metric.digits)


def _over_angle(metric: Metric, scene: SceneComparison, numbers: Mapping[str, int]) -> str:
    """Return the plot of the mean over the frames against the azimuth; elevations are written above it."""
    series, remarks = [], {}
    for score in scene.scores:
        if metric.name in score.values:
            azimuths = [180 - (180 - a) % 360 for a in score.cameras.azimuths_deg[1:]]
            elevations = zip(azimuths, score.cameras.elevations_deg[1:], strict=True)
            remarks |= {(a, f"el {e:+.3g}°"): None for a, e in elevations if e}
            points = sorted(zip(azimuths, score.per_view(metric.name).tolist(), strict=True))
            series.append(Series(score.method, numbers[score.method], tuple(points)))
    label = "azimuth to the input view, degrees"
    return line_plot(series, metric.title, label, _AZIMUTH_TICKS, metric.digits, list(remarks))


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


_DIGITS = 7


def report_json(comparisons: Sequence[SceneComparison], summaries: Sequence[Summary]) -> dict[str, Any]:
    """Return values that JSON can hold: NaN is null, infinity "inf" or "-inf"; seven significant digits.

    Args:
        comparisons: the scenes.
        summaries: of the true views and the methods over all scenes (`summaries_of`).
    """
    return {
        "methods": method_names(comparisons),
        "metrics": {m.name: {"higher_is_better": m.higher_is_better, "meaning": m.meaning} for m in METRICS},
        "summary": {s.method: _summary(s, comparisons) for s in summaries},
        "scenes": {scene.scene: _scene(scene) for scene in comparisons},
        "notes": notes(comparisons, summaries),
        "warning": untrained_warning(comparisons) or None,
    }


def _summary(summary: Summary, comparisons: Sequence[SceneComparison]) -> dict[str, Any]:
    names = [*summary.means, *summary.distances]
    return {
        "n_scenes": summary.n_scenes,
        "n_missing_views": summary.n_missing,
        "values": {name: _plain(summary.value(name)) for name in names},
        "incomplete": [name for name in names if lacks_data(name, summary.method, comparisons)],
        "frechet": {
            name: {
                "distance": _plain(d.distance),
                "n": d.n_samples,
                "n_reference": d.n_reference_samples,
                "clip_length": summary.clip_lengths[name],
                "n_features": d.n_features,
                "shrinkage": d.shrinkage,
                "rank_deficient": d.rank_deficient,
            }
            for name, d in summary.distances.items()
        },
    }


def _scene(scene: SceneComparison) -> dict[str, Any]:
    return {
        "sizes": [list(size) for size in scene.sizes],
        "networks": sorted(scene.networks),
        "scores": {score.method: _scores(score, scene) for score in scene.scores},
    }


def _scores(score: SceneScores, scene: SceneComparison) -> dict[str, Any]:
    """Return one method's numbers: [frame][view] of each image or pair of frames, or [view]."""
    return {
        "n_frames": score.n_frames,
        "cameras": {key: _plain(value) for key, value in asdict(score.cameras).items()},
        "trained": score.method not in scene.untrained,
        "incomplete": score.method in scene.incomplete,
        "missing_views": list(score.missing),
        "values": {name: _plain(values) for name, values in score.values.items()},
        "notes": list(score.notes),
    }


def _plain(value: Any) -> Any:
    """Return tensors and tuples as lists and their numbers as JSON has them."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return float(f"{value:.{_DIGITS}g}")
