"""Coats of objects: paints, markings in body coordinates, shading, and the random numbers of this package.

Nothing depends on the viewer: a point has one colour for all cameras, exact multi-view ground truth.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TypeVar

import torch
from torch import Tensor

Vector = tuple[float, float, float]
Paint = tuple[Vector, Vector, Vector]  # RGB of base, markings and underside
Option = TypeVar("Option")


@dataclass(frozen=True)
class Light:
    """Light fixed in the world, by default from the input camera's upper right, with a rim from behind."""

    key_direction: Vector = (0.45, 0.80, 0.55)  # towards the soft main light, of any length
    key: Vector = (0.56, 0.54, 0.50)  # RGB
    rim_direction: Vector = (-0.55, 0.35, -0.75)  # towards the light that draws the outline
    rim: Vector = (0.22, 0.25, 0.30)  # RGB
    sky: Vector = (0.62, 0.63, 0.66)  # RGB of the light from everywhere, on a surface that looks up
    ground: Vector = (0.40, 0.38, 0.37)  # the same on a surface that looks down

    def table(self) -> Tensor:
        """Return the fields in their order, [6, 3] float64."""
        return torch.tensor(astuple(self), dtype=torch.float64)


PATTERNS = ("plain", "stripes", "spots", "patches", "eye")

_KEY_WRAP = 0.3
# Where on an eyeball, in its own frame, the pupil looks and the highlight sits; both are cosines of an angle.
_GAZE = (0.0, 0.0, 1.0)
_GLINT = (0.35, 0.60, 0.72)


LOOKS = ("colours", "patterns", "rest_centres", "rest_rotations", "frequencies", "phases", "lights")


@dataclass(frozen=True)
class Coat:
    """Colours of P ellipsoids and markings of their rest pose, which run over parts and move with them."""

    colours: Tensor  # [P, 3, 3] RGB of base, markings and underside (of an eye: white, pupil, glint)
    patterns: Tensor  # [P] index into PATTERNS
    rest_centres: Tensor  # [P, 3] centres in the rest pose
    rest_rotations: Tensor  # [P, 3, 3] local-to-creature rotations in the rest pose
    frequency: float  # markings per unit of length
    phases: Tensor  # [3] radians, shift the markings

    def looks(self, light: Light) -> dict[str, Tensor]:
        """Return all that decides the colours of each ellipsoid, `LOOKS`, each [P, ...]."""
        n = len(self.colours)
        markings = torch.full((n, 1), self.frequency, dtype=torch.float64), self.phases.expand(n, 3)
        rest = self.rest_centres, self.rest_rotations
        values = (self.colours, self.patterns, *rest, *markings, light.table().expand(n, 6, 3))
        return dict(zip(LOOKS, values, strict=True))


def lit(
    looks: Mapping[str, Tensor],  # rows [N, ...] of `Coat.looks`, those of each point's ellipsoid
    on_sphere: Tensor,  # [N, 3] the point in the ellipsoid's frame, divided by its radii
    local: Tensor,  # [N, 3] the point in the ellipsoid's frame
    normals: Tensor,  # [N, 3] in the world, of length 1
) -> Tensor:
    """Return the lit colours of surface points, [N, 3] in 0..1."""
    at_rest = torch.einsum("nij,nj->ni", looks["rest_rotations"], local) + looks["rest_centres"]
    base, marking, underside = looks["colours"].unbind(1)
    pattern = looks["patterns"]
    waves = 2 * torch.pi * looks["frequencies"] * at_rest
    amount = _markings(pattern, waves, looks["phases"], on_sphere)
    under = torch.where(
        pattern == PATTERNS.index("eye"),
        _ramp(_cosine(on_sphere, _constant(_GLINT, on_sphere)), 0.93, 0.95),
        _ramp(-on_sphere[:, 1], 0.25, 0.75),
    )
    albedo = torch.lerp(torch.lerp(base, marking, amount[:, None]), underside, under[:, None])
    return shade(albedo, normals, looks["lights"])


def _markings(pattern: Tensor, waves: Tensor, phases: Tensor, on_sphere: Tensor) -> Tensor:
    """Return how much of the marking colour shows, [N] in 0..1."""
    x, y, z = waves.unbind(-1)
    p, q, r = phases.unbind(-1)
    wobble = 0.7 * torch.sin(0.45 * y + 0.3 * z + q) + 0.5 * torch.sin(0.6 * x + r)
    stripes = torch.sin(0.9 * z + 0.45 * y + p + wobble)
    # Three waves along tilted axes: their common crests are blobs on no visible lattice.
    blobs = (
        torch.sin(0.93 * z + 0.35 * y + p)
        + torch.sin(0.85 * y - 0.42 * x + q)
        + torch.sin(0.80 * x + 0.55 * z - 0.3 * y + r)
    )
    slow = torch.sin(0.42 * z + p) + torch.sin(0.38 * y + 0.3 * x + q) + 0.4 * torch.sin(0.8 * x + r)
    amounts = [  # in the order of PATTERNS
        torch.zeros_like(x),
        _ramp(stripes, 0.25, 0.5),
        _ramp(blobs, 0.75, 1.0),
        _ramp(slow, 0.3, 0.45),
        _ramp(_cosine(on_sphere, _constant(_GAZE, on_sphere)), 0.62, 0.68),
    ]
    return torch.stack(amounts, dim=-1).gather(-1, pattern[:, None].long())[:, 0]


def shade(albedo: Tensor, normals: Tensor, lights: Tensor) -> Tensor:
    """Return lit colours [N, 3] in 0..1: hemispheric ambient light, a soft key light and a rim light.

    ``lights`` [N, 6, 3] or [6, 3] are of `Light.table`.
    """
    key_direction, key, rim_direction, rim, sky, ground = lights.unbind(-2)
    towards_key = ((_cosine(normals, key_direction) + _KEY_WRAP) / (1 + _KEY_WRAP)).clamp(min=0)[:, None]
    towards_rim = _cosine(normals, rim_direction).clamp(min=0).square()[:, None]
    ambient = ground + (sky - ground) * (0.5 + 0.5 * normals[:, 1:2])
    return (albedo * (ambient + towards_key * key + towards_rim * rim)).clamp(0, 1)


def _constant(vector: Vector, like: Tensor) -> Tensor:
    return torch.tensor(vector, device=like.device, dtype=like.dtype)


def _cosine(vectors: Tensor, directions: Tensor) -> Tensor:
    """Return the cosines between unit vectors [N, 3] and directions [N, 3] or [3] of any length, [N]."""
    return (vectors * torch.nn.functional.normalize(directions, dim=-1)).sum(-1)


def _ramp(x: Tensor, low: float, high: float) -> Tensor:
    """Return the smooth step from 0 at ``low`` to 1 at ``high``."""
    s = ((x - low) / (high - low)).clamp(0, 1)
    return s * s * (3 - 2 * s)


class Dice:
    """Random numbers of a seed's lower 32 bits, the same on every machine, apart from torch's generator."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def whole(self, low: int, high: int) -> int:
        """Return a whole number from ``low`` to ``high``, both included."""
        return low + int(torch.randint(high - low + 1, (), generator=self._generator))

    def chance(self, probability: float) -> bool:
        return self.between(0, 1) < probability

    def choose(self, options: Sequence[Option]) -> Option:
        return options[self.whole(0, len(options) - 1)]


def plain(r: float, g: float, b: float) -> Paint:
    return (r, g, b), (r, g, b), (r, g, b)


WHITE, CREAM, BLACK = plain(0.95, 0.94, 0.91), plain(0.96, 0.88, 0.70), plain(0.09, 0.09, 0.11)
RED, GOLD, BLUE = plain(0.82, 0.13, 0.12), plain(0.93, 0.68, 0.16), plain(0.16, 0.36, 0.72)
GREY, STEEL, WOOD = plain(0.36, 0.38, 0.42), plain(0.66, 0.70, 0.75), plain(0.55, 0.33, 0.16)
EYE: Paint = ((0.97, 0.97, 0.95), (0.06, 0.05, 0.06), (1.0, 1.0, 1.0))

_STYLES = {  # saturation from and to, value from and to
    "vivid": (0.55, 0.88, 0.72, 0.97),
    "pastel": (0.25, 0.50, 0.84, 0.96),
    "muted": (0.25, 0.55, 0.45, 0.75),
    "deep": (0.45, 0.80, 0.32, 0.55),
    "neutral": (0.02, 0.18, 0.20, 0.88),
}
_EARTH = (0.10, 0.28)  # hues of wood, fur and sand
_NEARLY_BLACK, _NEARLY_WHITE = (0.06, 0.04, 0.06), (0.97, 0.94, 0.88)
# The painter's colour wheel: red, orange, yellow, green, blue, violet and red again in even steps, as hues of
# HSV, in which green would fill a third of the wheel.
_WHEEL = (0.0, 0.09, 0.155, 0.36, 0.60, 0.78, 1.0)


@dataclass(frozen=True)
class Palette:
    """The paints of one object."""

    main: Paint  # of the largest parts, with markings and an underside
    second: Paint  # one colour beside it
    accent: Paint  # one colour against it
    light: Paint  # nearly white
    dark: Paint  # nearly black
    pattern: str  # of the main paint, one of PATTERNS


def draw_palette(dice: Dice) -> Palette:
    """Return a random palette: one hue, a second that harmonises with it, and an accent."""
    hue = dice.between(*_EARTH) if dice.chance(0.25) else dice.between(0, 1)
    offset = dice.choose((0.5, 0.33, -0.33, 0.09, -0.09, 0.42))
    base = _colour(dice, hue, dice.choose(tuple(_STYLES)))
    second = _colour(dice, hue + offset, dice.choose(("vivid", "pastel", "muted", "deep")))
    accent = _colour(dice, hue + dice.choose((0.5, 0.17, -0.17)), "vivid")
    # Markings are darker than a light colour and lighter than a dark one.
    far = _NEARLY_BLACK if max(base) > 0.55 else _NEARLY_WHITE
    marking = second if dice.chance(0.4) else _mixed(base, far, dice.between(0.45, 0.75))
    underside = base if dice.chance(0.5) else _mixed(base, _NEARLY_WHITE, dice.between(0.3, 0.8))
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


def _mixed(a: Vector, b: Vector, amount: float) -> Vector:
    r, g, c = (x + amount * (y - x) for x, y in zip(a, b, strict=True))
    return r, g, c
