"""The training distribution: a moving object for every seed, in motion, colours and light all its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from .anatomy import fitted
from .cloth import cape, carpet, flag, jellyfish, kite
from .creature import Creature, Vector
from .dice import Dice
from .fauna import biped, flier, insect, quadruped, runner, swimmer
from .light import Light
from .machines import arm, big_wheel, crane, digger, mobile
from .palette import Palette, draw_palette
from .statues import lamp, mug, rocket, scatter, totem
from .vehicles import bicycle, car, helicopter, train

_Builder = Callable[[Dice, Palette], Creature]

TRAINING_SEEDS = range(2**31)
# Objects that no training sees, so that scores stay comparable for ever.
HELD_OUT_OBJECTS = tuple(range(2**31, 2**31 + 64))

_KINDS: dict[str, tuple[float, tuple[_Builder, ...]]] = {  # probability, builders
    "animal": (0.45, (quadruped, quadruped, quadruped, biped, runner, flier, insect, swimmer)),
    "vehicle": (0.15, (car, car, train, bicycle, helicopter)),
    "machine": (0.14, (arm, arm, crane, digger, mobile, big_wheel)),
    "cloth": (0.13, (flag, cape, jellyfish, carpet, kite)),
    "statue": (0.13, (totem, mug, lamp, rocket, scatter)),
}
OBJECT_KINDS = tuple(_KINDS)
_N_TIMES = 129  # the fastest part swings less than six times between time 0 and 1
_MARGIN = 0.99  # what a swing can reach between two of these times


def draw_object(seed: int) -> Creature:
    """Return the object of a seed, the same on every machine, in the unit box and the ball of the view.

    It looks to any side. About every fifteenth is nearly still.

    Raises:
        ValueError: the seed does not fit into 32 bits.
    """
    dice = Dice(_checked(seed))
    _, builders = _KINDS[_draw_kind(dice)]
    palette = draw_palette(dice)
    creature = dice.choose(builders)(dice, palette)
    creature = _paced(creature, dice)
    creature = replace(
        creature,
        heading_deg=dice.between(0, 360),
        path=_path(dice),
        marking_phases=(dice.between(0, 6.28), dice.between(0, 6.28), dice.between(0, 6.28)),
        light=_light(dice),
    )
    creature = fitted(creature, _N_TIMES)
    return _shrunk(creature, _MARGIN)


def object_kind(seed: int) -> str:
    """Return which of ``OBJECT_KINDS`` the object of a seed is."""
    return _draw_kind(Dice(_checked(seed)))


def _checked(seed: int) -> int:
    if not 0 <= seed < 2**32:
        raise ValueError(f"Expected a seed in 0..2**32 - 1; got {seed}. Larger seeds repeat smaller ones.")
    return seed


def _draw_kind(dice: Dice) -> str:
    left = dice.between(0, 1)
    for kind, (probability, _) in _KINDS.items():
        left -= probability
        if left < 0:
            return kind
    return OBJECT_KINDS[-1]


def _paced(creature: Creature, dice: Dice) -> Creature:
    """Return the creature slowed down or sped up, its swings made smaller or larger, at any start."""
    cycles = math.exp(dice.between(math.log(0.4), math.log(2.2)))
    gain, spin, start = dice.between(0.55, 1.15), 1.0, dice.between(0, 1)
    if dice.chance(0.07):
        gain, spin = dice.between(0.05, 0.2), 0.1
    bones = (
        replace(
            bone,
            swing_deg=gain * bone.swing_deg,
            turns=spin * bone.turns,
            phase=bone.phase + bone.beats * start,
        )
        for bone in creature.bones
    )
    return replace(creature, bones=tuple(bones), cycles=cycles, bob=gain * creature.bob)


def _path(dice: Dice) -> Vector:
    """Return a way to go: four times out of five none."""
    if dice.chance(0.8):
        return 0.0, 0.0, 0.0
    return dice.between(-0.15, 0.15), dice.between(-0.1, 0.2), dice.between(0.2, 0.9)


def _light(dice: Dice) -> Light:
    """Return a light from any side above, warm or cold, soft or hard, that neither hides nor bleaches.

    Key and ambient light share a sum, so that a hard light has dark shadows.
    """
    side, height = math.radians(dice.between(0, 360)), math.radians(dice.between(25, 75))
    key_direction = _direction(side, height)
    rim_direction = _direction(side + math.radians(dice.between(130, 230)), math.radians(dice.between(5, 40)))
    total, share, warmth = dice.between(1.02, 1.2), dice.between(0.3, 0.58), dice.between(-0.1, 0.1)
    key, sky = total * share, total * (1 - share)
    ground, rim = sky * dice.between(0.58, 0.85), dice.between(0.08, 0.32)
    return Light(
        key_direction,
        _tinted(key, warmth),
        rim_direction,
        _tinted(rim, -warmth),
        _tinted(sky, -0.5 * warmth),
        _tinted(ground, 0.5 * warmth),
    )


def _direction(azimuth: float, elevation: float) -> Vector:
    """Return a unit vector; angles in radians, azimuth 0 to the input camera."""
    flat = math.cos(elevation)
    return flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth)


def _tinted(grey: float, warmth: float) -> Vector:
    return grey * (1 + warmth), grey, grey * (1 - warmth)


def _shrunk(creature: Creature, factor: float) -> Creature:
    x, y, z = creature.origin
    return replace(creature, scale=factor * creature.scale, origin=(factor * x, factor * y, factor * z))
