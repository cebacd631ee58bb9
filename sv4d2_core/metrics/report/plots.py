"""Line plots as inline SVG: one line per method, points marked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from . import svg
from .colours import REFERENCE_COLOUR, series_colour
from .written import written

# Four plots stand side by side on the page.
_WIDTH, _PLOT_HEIGHT = 272.0, 146.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 8.0, 22.0, 40.0
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
        parts.append(svg.text(box.x(x), _TOP + 5 + 11 * lane, words, "middle", svg.FAINT, small))
    for one in series:
        parts.append(_path(one, box))
        parts += [_point(one, x, y, box, digits) for x, y in one.points if not math.isnan(y)]
    return svg.picture(_WIDTH, box.bottom + _BOTTOM, f"{title} over {x_label}", parts)


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
        return cls(min(xs), max(xs), low, max(ys) + margin, _TOP + band)

    @property
    def bottom(self) -> float:
        """Where the x axis lies."""
        return self.top + _PLOT_HEIGHT

    def x(self, value: float) -> float:
        """Return the place of a value along the picture's width."""
        share = (value - self.x_low) / ((self.x_high - self.x_low) or 1.0)
        return _LEFT + 8 + share * (_WIDTH - _LEFT - _RIGHT - 16)

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
    right = _WIDTH - _RIGHT
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
