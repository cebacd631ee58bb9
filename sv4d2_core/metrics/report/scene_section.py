"""One scene on the page of the report: pictures, heat maps and plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from ..catalogue import LPIPS_NAME, METRICS, RESIDUAL_NAME, Metric
from ..scores import SceneScores, mean_along
from . import svg
from .comparison import SceneComparison
from .heat_map import heat_map, limits_of, no_value_sample, scale_bar
from .pictures import view_label
from .plots import Series, line_plot, sample
from .side_by_side import side_by_side

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
