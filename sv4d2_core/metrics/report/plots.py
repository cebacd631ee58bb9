"""Heat maps of the images of a grid as inline SVG: a row per view, a column per frame; worse is darker."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ...cameras import Cameras
from ...views import ViewGrid
from ..evaluate import SceneScores, mean_along, mean_of
from ..pairing import paired_views
from . import svg
from .svg import REFERENCE_COLOUR, ramp_hex, series_colour, written

# Two maps stand side by side on the page.
_WIDTH, _MEANS = 550.0, 50.0
_WIDEST, _HEIGHT = 30.0, 17.0
_LETTER = 6.4
_TOP = 16.0
_BAR, _BAR_MARGIN, _STEPS = 240.0, 20.0, 48
_NO_VALUE = "#dddddd"


def limits_of(values: Sequence[Tensor], higher_is_better: bool) -> tuple[float, float]:
    """Return the best and the worst finite value of several heat maps that share a scale; NaN without any."""
    finite = [float(x) for tensor in values for x in tensor.flatten() if math.isfinite(x)]
    if not finite:
        return math.nan, math.nan
    return (max(finite), min(finite)) if higher_is_better else (min(finite), max(finite))


def heat_map(
    values: Tensor,  # [T, V]
    row_labels: Sequence[str],
    limits: tuple[float, float],
    title: str,
    digits: int,
) -> str:
    """Return an ``<svg>`` with a tooltip in every cell and the mean over time of every view at the right.

    Args:
        values: NaN where there is none (grey and crossed out), infinite for equal images (as the best).
        row_labels: [V] names of the views.
        limits: best and worst value, the ends of the colours.
        title: what is shown, for readers that cannot see it.
        digits: digits after the point.
    """
    n_frames, n_views = values.shape
    left = _LETTER * max(map(len, row_labels)) + 6
    width, height = min(_WIDEST, (_WIDTH - _MEANS - left) / n_frames), _HEIGHT
    right, bottom = left + n_frames * width, _TOP + n_views * height
    parts = list(_frame_numbers(n_frames, left, width, bottom))
    parts.append(svg.text(right + 6, _TOP - 5, "mean", colour=svg.FAINT))
    for v, label in enumerate(row_labels):
        y = _TOP + v * height
        parts.append(svg.text(left - 6, y + height - 5, label, "end"))
        parts.append(svg.text(right + 6, y + height - 5, written(mean_of(values[:, v]), digits)))
        for t in range(n_frames):
            parts += _cell(
                left + t * width, y, width, float(values[t, v]), limits, f"{label}, frame {t}", digits
            )
    return svg.picture(right + _MEANS, bottom + 30, title, parts)


def scale_bar(limits: tuple[float, float], digits: int) -> str:
    """Return an ``<svg>`` of the colours with numbers, the best value at the left."""
    best, worst = limits
    parts = [
        svg.rectangle(_BAR_MARGIN + i * _BAR / _STEPS, 1, _BAR / _STEPS + 0.5, 12, ramp_hex(i / (_STEPS - 1)))
        for i in range(_STEPS)
    ]
    if math.isnan(best):
        parts.append(svg.text(_BAR_MARGIN + _BAR / 2, 27, "no finite value", "middle", svg.FAINT))
    else:
        for share in (0.0,) if best == worst else (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
            x = _BAR_MARGIN + share * _BAR
            parts.append(svg.line(x, 13, x, 16, svg.FAINT))
            parts.append(svg.text(x, 27, written(best + share * (worst - best), digits), "middle", svg.FAINT))
    return svg.picture(_BAR + 2 * _BAR_MARGIN, 30, "scale of the colours", parts)


def no_value_sample() -> str:
    """Return an ``<svg>`` of a cell without a value, with these words."""
    parts = [*_crossed_out(0, 1, 20, 12, "no value"), svg.text(26, 11, "no value", colour=svg.FAINT)]
    return svg.picture(76, 30, "how a cell without a value looks", parts)


def _frame_numbers(n_frames: int, left: float, width: float, bottom: float) -> Iterator[str]:
    """Name the frames below the cells, as many as there is room for."""
    every = max(1, math.ceil(20 / width))
    for t in range(0, n_frames, every):
        yield svg.text(left + (t + 0.5) * width, bottom + 13, str(t), "middle", svg.FAINT)
    yield svg.text(left + n_frames * width / 2, bottom + 27, "frame", "middle", svg.FAINT)


def _cell(
    x: float, y: float, width: float, value: float, limits: tuple[float, float], where: str, digits: int
) -> list[str]:
    inner = (x, y, width - 1, _HEIGHT - 1)
    if math.isnan(value):
        return _crossed_out(*inner, f"{where}: no value")
    return [svg.rectangle(*inner, ramp_hex(_badness(value, limits)), f"{where}: {written(value, digits)}")]


def _crossed_out(x: float, y: float, width: float, height: float, title: str) -> list[str]:
    stroke = f'<path d="M{x:.1f} {y:.1f}l{width:.1f} {height:.1f}m0 -{height:.1f}l-{width:.1f} {height:.1f}"'
    return [
        svg.rectangle(x, y, width, height, _NO_VALUE, title),
        f'{stroke} stroke="#999999" pointer-events="none"/>',
    ]


def _badness(value: float, limits: tuple[float, float]) -> float:
    best, worst = limits
    if math.isinf(value) or best == worst or math.isnan(best):
        return 0.0
    return (value - best) / (worst - best)


# Four plots stand side by side on the page.
_WIDTH_OF_PLOTS, _PLOT_HEIGHT = 272.0, 146.0
_LEFT, _RIGHT, _TOP_OF_PLOTS, _BOTTOM = 44.0, 8.0, 22.0, 40.0
_MARK = 3.2
# Drawn around (0, 0) within a circle of radius 1; the methods take turns.
_SHAPES = (
    "M-.9-.9h1.8v1.8h-1.8z",
    "M0-1.2L1.1.8H-1.1z",
    "M0-1.3L1.3 0L0 1.3L-1.3 0z",
    "M0 1.2L1.1-.8H-1.1z",
)


@dataclass(frozen=True)
class Series:
    """One line of a plot.

    Args:
        name: the method.
        number: which method it is, for colour and mark; -1: the true views, grey and dashed.
        points: (x, y), y may be NaN (a gap) or infinite (drawn at the edge).
    """

    name: str
    number: int
    points: tuple[tuple[float, float], ...]

    @property
    def colour(self) -> str:
        """The line's colour."""
        return REFERENCE_COLOUR if self.number < 0 else series_colour(self.number)


def line_plot(
    series: Sequence[Series],
    title: str,
    x_label: str,
    x_ticks: Sequence[float],
    digits: int,
    remarks: Sequence[tuple[float, str]] = (),
) -> str:
    """Return a plot as ``<svg>``.

    Args:
        series: the lines; the last is drawn on top.
        title: what is plotted, above the plot.
        x_label: below the x axis.
        x_ticks: labelled values of x; the axis reaches at least from the first to the last.
        digits: digits after the point in the tooltips.
        remarks: (x, text) written small above the plot, such as the elevation of a view.
    """
    lanes = _lanes(remarks, _Box.around(series, x_ticks, 0))
    box = _Box.around(series, x_ticks, 11.0 * (max(lanes, default=-1) + 1))
    parts = [svg.text(_LEFT, 13, title, more=' font-weight="600"'), *_axes(box, x_label, x_ticks)]
    for (x, words), lane in zip(remarks, lanes, strict=True):
        small = ' font-size="9"'
        parts.append(svg.text(box.x(x), _TOP_OF_PLOTS + 5 + 11 * lane, words, "middle", svg.FAINT, small))
    for one in series:
        parts.append(_path(one, box))
        parts += [_point(one, x, y, box, digits) for x, y in one.points if not math.isnan(y)]
    return svg.picture(_WIDTH_OF_PLOTS, box.bottom + _BOTTOM, f"{title} over {x_label}", parts)


def sample(series: Series) -> str:
    """Return a short piece of the line with its mark, for the legend."""
    dashes = ' stroke-dasharray="5 3"' if series.number < 0 else ""
    stroke = f'<path d="M0 7H26" stroke="{series.colour}" stroke-width="2"{dashes}/>'
    return (
        f'<svg class="chip" viewBox="0 0 26 14" width="26" height="14">'
        f"{stroke}{_mark(series, 13, 7, series.colour)}</svg>"
    )


@dataclass(frozen=True)
class _Box:
    """The plotted range of values, and where it lies in the picture."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    top: float

    @classmethod
    def around(cls, series: Sequence[Series], x_ticks: Sequence[float], band: float) -> _Box:
        """Return a box for all finite points and the ticks, below a band of that height."""
        xs = [x for one in series for x, _ in one.points] + list(x_ticks)
        ys = [y for one in series for _, y in one.points if math.isfinite(y)] or [0.0, 1.0]
        margin = 0.08 * (max(ys) - min(ys)) or 0.05 * abs(ys[0]) or 0.5
        # What cannot be negative is not given an axis that is.
        low = max(min(ys) - margin, 0.0) if min(ys) >= 0 else min(ys) - margin
        return cls(min(xs), max(xs), low, max(ys) + margin, _TOP_OF_PLOTS + band)

    @property
    def bottom(self) -> float:
        """Where the x axis lies."""
        return self.top + _PLOT_HEIGHT

    def x(self, value: float) -> float:
        """Return the place of a value along the picture's width."""
        share = (value - self.x_low) / ((self.x_high - self.x_low) or 1.0)
        return _LEFT + 8 + share * (_WIDTH_OF_PLOTS - _LEFT - _RIGHT - 16)

    def y(self, value: float) -> float:
        """Return the place of a value along the picture's height; infinite ones lie at the edge."""
        share = (min(max(value, self.y_low), self.y_high) - self.y_low) / (self.y_high - self.y_low)
        return self.bottom - share * _PLOT_HEIGHT


def _lanes(remarks: Sequence[tuple[float, str]], box: _Box) -> list[int]:
    """Return for every remark the line it is written on, so that none runs into another."""
    ends: list[float] = []
    lanes = {}
    for i in sorted(range(len(remarks)), key=lambda i: remarks[i][0]):
        x, half = box.x(remarks[i][0]), 3 * len(remarks[i][1])
        lane = next((lane for lane, end in enumerate(ends) if end < x - half), len(ends))
        ends[lane : lane + 1] = [x + half]
        lanes[i] = lane
    return [lanes[i] for i in range(len(remarks))]


def _axes(box: _Box, x_label: str, x_ticks: Sequence[float]) -> Iterator[str]:
    right = _WIDTH_OF_PLOTS - _RIGHT
    y_ticks = svg.nice_ticks(box.y_low, box.y_high, 5)
    for tick, label in zip(y_ticks, svg.tick_labels(y_ticks), strict=True):
        yield svg.line(_LEFT, box.y(tick), right, box.y(tick))
        yield svg.text(_LEFT - 6, box.y(tick) + 4, label, "end", svg.FAINT)
    for tick in x_ticks:
        yield svg.line(box.x(tick), box.bottom, box.x(tick), box.bottom + 4, svg.FAINT)
        yield svg.text(box.x(tick), box.bottom + 16, f"{tick:g}", "middle", svg.FAINT)
    yield svg.line(_LEFT, box.bottom, right, box.bottom, svg.FAINT)
    yield svg.text((_LEFT + right) / 2, box.bottom + 34, x_label, "middle", svg.FAINT)


def _path(series: Series, box: _Box) -> str:
    """Return the line, interrupted where there is no value."""
    steps, pen_up = [], True
    for x, y in series.points:
        if not math.isnan(y):
            steps.append(f"{'M' if pen_up else 'L'}{box.x(x):.1f} {box.y(y):.1f}")
        pen_up = math.isnan(y)
    dashes = ' stroke-dasharray="5 3"' if series.number < 0 else ""
    return f'<path d="{"".join(steps)}" fill="none" stroke="{series.colour}" stroke-width="1.6"{dashes}/>'


def _point(series: Series, x: float, y: float, box: _Box, digits: int) -> str:
    words = f"{series.name}, {x:g}: {written(y, digits)}"
    fill = "#ffffff" if math.isinf(y) else series.colour
    return f"<g><title>{escape(words)}</title>{_mark(series, box.x(x), box.y(y), fill)}</g>"


def _mark(series: Series, x: float, y: float, fill: str) -> str:
    paint = f'fill="{fill}" stroke="{series.colour}"'
    if series.number < 1:
        radius = _MARK if series.number == 0 else 0.7 * _MARK
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" {paint}/>'
    shape = _SHAPES[(series.number - 1) % len(_SHAPES)]
    place = f'transform="translate({x:.1f} {y:.1f}) scale({_MARK})"'
    return f'<path d="{shape}" {place} {paint} stroke-width=".3"/>'


# Name of the true views' own row.
REFERENCE = "reference"

_THUMBNAIL = 160
_COLUMNS = 4
# What shows best where a method fails, in this order, and whether more of it is better.
_TELLING = (("PSNR fg", True), ("PSNR", True), ("tangency", False), ("warping", False))


@dataclass(frozen=True)
class Picture:
    """One cell of a strip.

    Args:
        caption: which view or frame.
        image: [h, w, 3] uint8, or None where the method has none that could be scored.
        error: [h, w] uint8, the mean absolute difference of the channels to the truth, 255: full scale; None
            where there is no truth or no image.
        gap: why there is no image.
    """

    caption: str
    image: NDArray | None
    error: NDArray | None = None
    gap: str = ""


@dataclass(frozen=True)
class Strip:
    """Pictures side by side: one row per method, the true views first.

    Args:
        title: what all pictures share.
        rows: per row the method, its pictures, and what its pictures show where that is not the title's.
    """

    title: str
    rows: tuple[tuple[str, tuple[Picture, ...], str], ...]


def view_label(cameras: Cameras, view: int) -> str:
    """Return number, azimuth and, where it is not 0, elevation of a view, relative to the input view."""
    azimuth, elevation = cameras.azimuths_deg[view], cameras.elevations_deg[view]
    return f"view {view} · {azimuth:.4g}°" + (f" / {elevation:+.3g}°" if elevation else "")


def scene_pictures(
    predictions: Mapping[str, ViewGrid], reference: ViewGrid | None, scores: Sequence[SceneScores]
) -> tuple[Strip, Strip]:
    """Return a few views of the middle frame, and a few frames of the view that is worst.

    Args:
        predictions: the methods' views.
        reference: true views, or None; then every method shows the view nearest to the first method's.
        scores: of the reference and the methods, as in `SceneComparison`.
    """
    grids = dict(predictions) if reference is None else {REFERENCE: reference, **predictions}
    lead = next(iter(grids.values()))
    worst, why = _worst_view([score for score in scores if score.method != REFERENCE], lead.n_views)
    few = [1 + i for i in _spread(lead.n_views, _COLUMNS)]
    middle = (lead.n_frames - 1) // 2
    across, along = [], []
    for name, grid in grids.items():
        cameras = grid.cameras if reference is None else lead.cameras
        views, view = (
            [_nearest(cameras, lead.cameras, v) for v in few],
            _nearest(cameras, lead.cameras, worst),
        )
        centre, frames = (grid.n_frames - 1) // 2, _spread(grid.n_frames, _COLUMNS)
        pictures = _pictures(name, grid, reference, [centre], views)
        note = "" if centre == middle else f"frame {centre}"
        across.append((name, _captioned(pictures, [view_label(cameras, v) for v in views]), note))
        pictures, label = _pictures(name, grid, reference, frames, [view]), view_label(cameras, view)
        note = "" if label == view_label(lead.cameras, worst) else label
        along.append((name, _captioned(pictures, [f"frame {t}" for t in frames]), note))
    title = f"{view_label(lead.cameras, worst).capitalize()}{why}, over time"
    return Strip(f"Frame {middle}, the middle one", tuple(across)), Strip(title, tuple(along))


def _captioned(pictures: Sequence[Picture], captions: Sequence[str]) -> tuple[Picture, ...]:
    return tuple(replace(p, caption=caption) for p, caption in zip(pictures, captions, strict=True))


def _spread(count: int, at_most: int) -> list[int]:
    """Return up to ``at_most`` indices below ``count``, evenly spread from the first to the last."""
    n = min(count, at_most)
    return [round(i * (count - 1) / max(n - 1, 1)) for i in range(n)]


def _worst_view(scores: Sequence[SceneScores], n_views: int) -> tuple[int, str]:
    """Return the novel view that is worst on the methods' average, and a word on why it was chosen."""
    for name, higher_is_better in _TELLING:
        columns = [s.per_view(name) for s in scores if name in s.values and len(s.per_view(name)) == n_views]
        if not columns:
            continue
        means = mean_along(torch.stack(columns), dim=0)
        if not means.isnan().all():
            badness = (-means if higher_is_better else means).nan_to_num(nan=-torch.inf, neginf=-1e9)
            return 1 + int(badness.argmax()), f" (worst {name})"
    return 1, ""


def _nearest(cameras: Cameras, wanted: Cameras, view: int) -> int:
    """Return which novel view looks most alike to view ``view`` of ``wanted``."""
    if cameras == wanted:
        return view
    directions, direction = (F.normalize(x.eyes(), dim=-1) for x in (cameras, wanted))
    return 1 + int((directions[1:] @ direction[view]).argmax())


def _pictures(
    name: str, grid: ViewGrid, reference: ViewGrid | None, frames: list[int], views: list[int]
) -> list[Picture]:
    """Return the pictures of all pairs of the frames and views, captions left empty."""
    grid, missing, truth = grid.at_frames(frames), [], None
    if reference is not None and name != REFERENCE:
        truth = reference.at_frames(frames)
        grid, missing = paired_views(grid, truth, name)
    pictures = []
    for t in range(len(frames)):
        for v in views:
            image = grid.images[t, v].detach().float().cpu()
            if not image.isfinite().all():
                gap = "missing" if v in missing else "holds NaN or infinite values"
                pictures.append(Picture("", None, gap=gap))
                continue
            error = None if truth is None else (image - truth.images[t, v].float().cpu()).abs().mean(dim=-1)
            pictures.append(Picture("", _small(image), None if error is None else _small(error[..., None])))
    return pictures


def _small(picture: Tensor) -> NDArray:
    """Return [H, W, 3] as bytes [h, w, 3], or [H, W, 1] as [h, w], reduced to thumbnail size."""
    scale = _THUMBNAIL / max(picture.shape[:2])
    planes = picture.permute(2, 0, 1)[None]
    if scale < 1:
        size = [max(1, round(side * scale)) for side in picture.shape[:2]]
        planes = F.interpolate(planes, size, mode="bilinear", antialias=True, align_corners=False)
    levels = (planes[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return levels.squeeze(-1).numpy()
