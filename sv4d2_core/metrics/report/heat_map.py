"""Heat maps of the images of a grid as inline SVG: a row per view, a column per frame; worse is darker."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from ..scores import mean_of
from . import svg
from .colours import ramp_hex
from .written import written

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
