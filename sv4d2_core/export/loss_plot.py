"""Draws the loss of a fit over its steps, on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..metrics.report import svg
from ..metrics.report.colours import series_colour

_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 28, 34, 46
_TEXT, _HEADING = 13, 15
# Lines are drawn larger and then reduced, which smooths their edges.
_OVERSAMPLING = 3
_MEDIAN_COLOUR, _LOSS_COLOUR = series_colour(0), "#a9cbe3"
# Each stretch of the thin line keeps its smallest and its largest loss, so that no spike is lost.
_STRETCHES, _MEDIANS, _MEDIAN_SHARE = 250, 150, 0.04
# The axis spans at least this factor: it has ticks then, and noise around a constant looks like noise.
_SMALLEST_SPAN, _MARGIN = 6.0, 1.15
# An axis that spans more is labelled at powers of ten only.
_MOST_DECADES = 3


@dataclass(frozen=True)
class _Axes:
    """Places steps and losses between the limits (low, high) in a box (left, top, right, bottom)."""

    steps: tuple[float, float]
    losses: tuple[float, float]
    box: tuple[int, int, int, int]

    def x(self, step: float) -> float:
        low, high = self.steps
        share = (step - low) / (high - low) if high > low else 0.5
        return self.box[0] + share * (self.box[2] - self.box[0])

    def y(self, loss: float) -> float:
        low, high = map(math.log, self.losses)
        return self.box[3] - (math.log(loss) - low) / (high - low) * (self.box[3] - self.box[1])


def loss_plot(losses: Sequence[tuple[int, float]], width: int, height: int) -> Image.Image:
    """Return the losses as a thin line with their running median over it.

    Losses that are not finite or not above 0 have no place on a logarithmic axis; a note counts them.

    Args:
        losses: step and loss, at least one, steps rising.
        width: of the picture in pixels.
        height: of the picture in pixels.
    """
    points = np.array(losses, dtype=float)
    shown = points[np.isfinite(points[:, 1]) & (points[:, 1] > 0)]
    box = (_LEFT, _TOP, width - _RIGHT, height - _BOTTOM)
    axes = _Axes((points[0, 0], points[-1, 0]), _loss_limits(shown[:, 1]), box)
    page = Image.new("RGB", (width * _OVERSAMPLING, height * _OVERSAMPLING), "white")
    _draw_lines(ImageDraw.Draw(page), axes, shown)
    page = page.resize((width, height), Image.Resampling.LANCZOS)
    _write_words(ImageDraw.Draw(page), axes, len(points) - len(shown), len(points))
    return page


def _loss_limits(losses: NDArray) -> tuple[float, float]:
    """Return the ends of the axis around [N] losses."""
    if not len(losses):
        return 0.1, 1.0
    low, high = float(losses.min()), float(losses.max())
    margin = max(_MARGIN, math.sqrt(_SMALLEST_SPAN * low / high))
    return low / margin, high * margin


def _loss_ticks(low: float, high: float) -> list[float]:
    """Return the ticks from ``low`` to ``high``: 1, 2 and 5 times powers of ten, or some powers of ten."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = last - first
    factors = (1, 2, 5) if decades <= _MOST_DECADES else (1,)
    every = math.ceil(decades / 10)
    ticks = [float(f"{f}e{power}") for power in range(first, last + 1, every) for f in factors]
    return [tick for tick in ticks if low <= tick <= high]


def _step_ticks(axes: _Axes) -> list[int]:
    return [round(step) for step in svg.nice_ticks(*axes.steps, 6) if step == round(step)]


def _draw_lines(draw: ImageDraw.ImageDraw, axes: _Axes, shown: NDArray) -> None:
    left, top, right, bottom = axes.box
    for loss in _loss_ticks(*axes.losses):
        _line(draw, [(left, axes.y(loss)), (right, axes.y(loss))], svg.GRID, 1)
    for step in _step_ticks(axes):
        _line(draw, [(axes.x(step), top), (axes.x(step), bottom)], svg.GRID, 1)
    _line(draw, [(left, top), (left, bottom), (right, bottom)], svg.FAINT, 1)
    for points, colour, width in (
        (_thinned(shown), _LOSS_COLOUR, 1.2),
        (_medians(shown), _MEDIAN_COLOUR, 2.2),
    ):
        _line(draw, [(axes.x(step), axes.y(loss)) for step, loss in points], colour, width)


def _line(
    draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: str, width: float
) -> None:
    """Draw a line through points in pixels of the picture; a single point becomes a dot."""
    large = [(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in points]
    if len(large) == 1:
        (x, y), radius = large[0], 1.5 * width * _OVERSAMPLING
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
    elif large:
        draw.line(large, colour, round(width * _OVERSAMPLING), joint="curve")


def _thinned(points: NDArray) -> NDArray:
    """Return the points [N, 2] with the lowest and the highest of each stretch only, where there are many."""
    if len(points) <= 2 * _STRETCHES:
        return points
    stretches = np.array_split(np.arange(len(points)), _STRETCHES)
    kept = {int(s[pick(points[s, 1])]) for s in stretches for pick in (np.argmin, np.argmax)}
    return points[sorted(kept)]


def _medians(points: NDArray) -> NDArray:
    """Return the running median of points [N, 2], at no more places than can be told apart."""
    reach = math.ceil(_MEDIAN_SHARE / 2 * len(points))
    middles = np.unique(np.linspace(0, len(points) - 1, _MEDIANS).round().astype(int)) if len(points) else []
    medians = [(points[i, 0], np.median(points[max(0, i - reach) : i + reach + 1, 1])) for i in middles]
    return np.array(medians).reshape(-1, 2)


def _write_words(draw: ImageDraw.ImageDraw, axes: _Axes, n_missing: int, n_points: int) -> None:
    left, top, right, bottom = axes.box
    font = ImageFont.load_default(_TEXT)
    heading = "Loss and its running median"
    draw.text((left, top / 2), heading, svg.INK, ImageFont.load_default(_HEADING), anchor="lm")
    if n_missing < n_points:
        for loss in _loss_ticks(*axes.losses):
            draw.text((left - 7, axes.y(loss)), f"{loss:g}", svg.FAINT, font, anchor="rm")
    for step in _step_ticks(axes):
        draw.text((axes.x(step), bottom + 12), f"{step}", svg.FAINT, font, anchor="mm")
    draw.text((right, bottom + 32), "step", svg.FAINT, font, anchor="rm")
    if n_missing:
        note = f"{n_missing} of {n_points} losses are zero or not finite and not drawn"
        draw.text((left, bottom + 32), note, svg.INK, font, anchor="lm")
