"""Draws the colours of an object: a few that go together, and a pattern."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

from .creature import Vector
from .dice import Dice
from .shapes import Paint, plain

_STYLES = {  # saturation from and to, value from and to
    "vivid": (0.55, 0.88, 0.72, 0.97),
    "pastel": (0.25, 0.50, 0.84, 0.96),
    "muted": (0.25, 0.55, 0.45, 0.75),
    "deep": (0.45, 0.80, 0.32, 0.55),
    "neutral": (0.02, 0.18, 0.20, 0.88),
}
_EARTH = (0.10, 0.28)  # hues of wood, fur and sand
# The painter's colour wheel: red, orange, yellow, green, blue, violet and red again in even steps, as hues of
# HSV, in which green would fill a third of the wheel.
_WHEEL = (0.0, 0.09, 0.155, 0.36, 0.60, 0.78, 1.0)


@dataclass(frozen=True)
class Palette:
    """The paints of one object.

    Args:
        main: the largest parts, with markings and an underside.
        second: one colour beside it.
        accent: one colour against it.
        light: nearly white.
        dark: nearly black.
        pattern: of the main paint, one of ``PATTERNS``.
    """

    main: Paint
    second: Paint
    accent: Paint
    light: Paint
    dark: Paint
    pattern: str


def draw_palette(dice: Dice) -> Palette:
    """Return a random palette: one hue, a second that harmonises with it, and an accent."""
    hue = dice.between(*_EARTH) if dice.chance(0.25) else dice.between(0, 1)
    offset = dice.choose((0.5, 0.33, -0.33, 0.09, -0.09, 0.42))
    base = _colour(dice, hue, dice.choose(tuple(_STYLES)))
    second = _colour(dice, hue + offset, dice.choose(("vivid", "pastel", "muted", "deep")))
    accent = _colour(dice, hue + dice.choose((0.5, 0.17, -0.17)), "vivid")
    marking = second if dice.chance(0.4) else _against(base, dice.between(0.45, 0.75))
    underside = base if dice.chance(0.5) else _mixed(base, (0.97, 0.94, 0.88), dice.between(0.3, 0.8))
    return Palette(
        (base, marking, underside),
        plain(*second),
        plain(*accent),
        plain(*_colour(dice, hue, "neutral", value=(0.86, 0.95))),
        plain(*_colour(dice, hue, "neutral", value=(0.07, 0.24))),
        dice.choose(("plain", "stripes", "spots", "patches")),
    )


def _colour(dice: Dice, hue: float, style: str, value: tuple[float, float] | None = None) -> Vector:
    """Return a colour of a style; the hue counts turns of the painter's wheel."""
    low, high, dark, bright = _STYLES[style]
    place, share = divmod(hue % 1.0 * (len(_WHEEL) - 1), 1.0)
    hue = _WHEEL[int(place)] + share * (_WHEEL[int(place) + 1] - _WHEEL[int(place)])
    return colorsys.hsv_to_rgb(hue % 1.0, dice.between(low, high), dice.between(*(value or (dark, bright))))


def _against(colour: Vector, amount: float) -> Vector:
    """Return a colour darker than a light one or lighter than a dark one."""
    return _mixed(colour, (0.06, 0.04, 0.06) if max(colour) > 0.55 else (0.97, 0.94, 0.88), amount)


def _mixed(a: Vector, b: Vector, amount: float) -> Vector:
    r, g, c = (x + amount * (y - x) for x, y in zip(a, b, strict=True))
    return r, g, c
