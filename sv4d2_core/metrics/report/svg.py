"""The few elements of SVG that the plots are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

INK, FAINT, GRID = "#333333", "#767676", "#e2e2e2"
TEXT_SIZE = 11


def picture(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """Return an ``<svg>`` of that size in CSS pixels, which shrinks with its container."""
    return (
        f'<svg role="img" viewBox="0 0 {width:.4g} {height:.4g}" width="{width:.4g}" '
        f'font-size="{TEXT_SIZE}" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def text(x: float, y: float, words: str, anchor: str = "start", colour: str = INK, more: str = "") -> str:
    """Return words; ``anchor`` is start, middle or end, ``y`` their base line."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{more}>{escape(words)}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, colour: str = GRID, more: str = "") -> str:
    """Return a straight line, one pixel wide."""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'shape-rendering="crispEdges"{more}/>'
    )


def rectangle(x: float, y: float, width: float, height: float, fill: str, title: str = "") -> str:
    """Return a filled rectangle, with a tooltip if there is a title."""
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"'
    return f"{shape}><title>{escape(title)}</title></rect>" if title else f"{shape}/>"


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``, roughly that many."""
    if not high > low:
        return [low]
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= 0.7 * raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Return the ticks with as many digits after the point as their distance needs."""
    distance = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) or 1.0
    digits = max(0, -math.floor(math.log10(distance) + 1e-9))
    return [f"{tick + 0.0:.{digits}f}" for tick in ticks]


# Lightness (CIELAB) falls evenly from 98 to 18, so that equal steps look equal, printed in grey as well.
_ANCHORS = np.array(
    [
        (251, 250, 235),
        (253, 203, 127),
        (249, 150, 92),
        (231, 95, 96),
        (183, 57, 117),
        (117, 43, 117),
        (54, 33, 84),
    ],
    dtype=float,
)
# Distinguishable for colour-blind people (Okabe and Ito 2008); their yellow is too pale on white.
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
REFERENCE_COLOUR = "#444444"


def ramp(amounts: ArrayLike) -> NDArray[np.uint8]:
    """Return the colours [..., 3] of amounts from 0 (nearly white) to 1 (dark); others are clipped."""
    places = np.clip(np.asarray(amounts, dtype=float), 0, 1) * (len(_ANCHORS) - 1)
    steps = np.arange(len(_ANCHORS))
    channels = [np.interp(places, steps, channel) for channel in _ANCHORS.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def ramp_hex(amount: float) -> str:
    """Return the colour of one amount as #rrggbb."""
    return "#" + ramp(amount).tobytes().hex()


def series_colour(number: int) -> str:
    """Return the colour of the method of that number; after six they begin again."""
    return _SERIES[number % len(_SERIES)]


NO_VALUE = "–"


def written(value: float, digits: int) -> str:
    """Return a value with so many digits after the point; a dash for NaN, the sign for infinity."""
    if math.isnan(value):
        return NO_VALUE
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    # Adding 0 to what was rounded makes a negative zero positive.
    return f"{round(value, digits) + 0.0:.{digits}f}"
