"""Things like cloth of the training distribution: sheets of thin plates on which a wave runs."""

from __future__ import annotations

from dataclasses import dataclass

from .body import SIDES, Bones, Creature, Vector, Y, Z, on_circle
from .coat import Dice, Paint, Palette


# One part of an object stands on one line where it fits; ruff would spread the others over ten.
# fmt: off
@dataclass(frozen=True)
class _Wave:
    """A wave on a sheet: amplitude and phase of its first hinge, and the lag of every next one."""

    swing_deg: float
    lag: float
    phase: float = 0.0
    beats: int = 1


def _sheet(
    name: str,
    parent: str,
    joint: Vector,
    size: tuple[int, int],  # rows along -y, columns along x
    plate: tuple[float, float],  # length and width of a plate
    paints: list[Paint],  # of the columns, in turn
    wave: _Wave,
    rest_deg: Vector = (0.0, 0.0, 0.0),
    flare: float = 0.0,  # part by which the sheet widens towards its end
    pattern: str = "plain",
) -> Bones:
    """Return thin plates that hang from the joint; every row hinges about x on the row before."""
    rows, columns = size
    long, wide = plate
    bones = Bones()
    for i in range(rows):
        broad = wide * (1 + flare * i / rows)
        radii = (broad * (0.72 if columns > 1 else 0.5), 0.78 * long, 0.018)
        offsets = [broad * (c - (columns - 1) / 2) for c in range(columns)]
        motion = {"swing_deg": wave.swing_deg, "phase": wave.phase - wave.lag * i, "beats": wave.beats}
        rest = rest_deg if i == 0 else (0.0, 0.0, 0.0)
        row, look = f"{name} {i}", {"pattern": pattern}
        at = (offsets[0], -long / 2, 0.0)
        bones.limb(row, parent, joint, at, radii, paints[0], rest_deg=rest, **motion, **look)
        for c in range(1, columns):
            at = (offsets[c], -long / 2, 0.0)
            bones.ball(f"{row} {c}", row, at, radii, paints[c % len(paints)], **look)
        parent, joint = row, (0.0, -long, 0.0)
    return bones


def flag(dice: Dice, palette: Palette) -> Creature:
    """Return a flag that waves on its pole, in stripes or in one pattern."""
    rows, columns = dice.whole(4, 7), dice.whole(2, 4)
    long, high = dice.between(0.55, 0.85) / rows, dice.between(0.35, 0.55)
    wave = _Wave(dice.between(6, 26), dice.between(0.06, 0.2))
    pole = dice.between(0.3, 0.6)
    bones = Bones(palette)
    bones.strut("pole", "", (0, 0, 0), (0, pole + high, 0), 0.022, palette.dark)
    bones.ball("finial", "pole", (0, pole + high + 0.08, 0), 0.05, palette.accent)
    bones.ball("foot", "pole", (0, -0.05, 0), (0.12, 0.04, 0.12), palette.dark)
    paints, pattern = _paints(dice, palette)
    joint = (0.01, pole + high / 2, 0.0)
    turned, flare = (0.0, 0.0, 90.0 - dice.between(0, 25)), dice.choose((0.0, 0.0, -0.7))
    plate = (long, high / columns)
    bones += _sheet("flag", "pole", joint, (rows, columns), plate, paints, wave, turned, flare, pattern)
    return Creature(tuple(bones), marking_frequency=dice.between(4, 10))


def cape(dice: Dice, palette: Palette) -> Creature:
    """Return a figure whose cape or skirt flies behind it."""
    rows, columns, wide = dice.whole(3, 5), dice.whole(2, 4), dice.between(0.22, 0.34)
    lift, long = dice.between(5, 60), dice.between(0.4, 0.62)
    wave = _Wave(dice.between(5, 20), dice.between(0.1, 0.22))
    r = dice.between(0.1, 0.15)
    bones = Bones(palette)
    bones.ball("body", "", (0, 0, 0), (0.13, 0.24, 0.11), axis=Y, swing_deg=dice.between(0, 10))
    bones.ball("head", "body", (0, 0.24 + 0.7 * r, 0), r, palette.light, axis=Y,
               swing_deg=dice.between(0, 18))
    bones.ball("mask", "head", (0, 0.25 * r, 0.35 * r), (0.88 * r, 0.3 * r, 0.72 * r), palette.accent)
    for side, a in SIDES:
        reach = (0.3 * a, dice.between(-0.1, 0.34), dice.between(-0.05, 0.2))
        bones.eye(f"eye {side}", "head", (0.4 * r * a, 0.25 * r, 0.9 * r), 0.2 * r, 22 * a)
        bones.strut(f"arm {side}", "body", (0.11 * a, 0.13, 0), reach, 0.045, palette.main,
                    swing_deg=dice.between(4, 22))
        bones.limb(f"leg {side}", "body", (0.065 * a, -0.16, 0), (0, -0.15, 0), (0.06, 0.2, 0.065),
                   palette.second, swing_deg=dice.between(4, 26) * a)
        bones.ball(f"boot {side}", f"leg {side}", (0, -0.33, 0.03), (0.06, 0.045, 0.09), palette.dark)
    paints, pattern = [palette.accent, palette.accent, palette.second], "plain"
    plate = (long / rows, wide / columns)
    back = (lift, 0.0, 0.0)
    bones += _sheet("cape", "body", (0, 0.2, -0.1), (rows, columns), plate, paints, wave, back, 1.0, pattern)
    return Creature(tuple(bones), bob=dice.between(0, 0.03), marking_frequency=dice.between(5, 11))


def jellyfish(dice: Dice, palette: Palette) -> Creature:
    """Return a jellyfish, ghost or squid: the rim of its bell beats, and the beat runs down its arms."""
    n, r, high = dice.whole(5, 8), dice.between(0.2, 0.3), dice.between(0.14, 0.26)
    arms, links = dice.whole(3, 5), dice.whole(2, 4)
    beat, beats = dice.between(10, 32), dice.choose((1, 2))
    wave = _Wave(dice.between(8, 26), dice.between(0.1, 0.2), 0.0, beats)
    coat = {"pattern": palette.pattern}
    bones = Bones(palette)
    bones.ball("bell", "", (0, 0, 0), (r, high, r), axis=Z, swing_deg=dice.between(0, 8))
    bones.ball("crown", "bell", (0, 0.55 * high, 0), (0.6 * r, 0.55 * high, 0.6 * r), palette.second)
    long = dice.between(0.1, 0.2)
    for i in range(n):
        lean = {"rest_deg": (-14, 360 * i / n, 0), "swing_deg": beat, "beats": beats}
        plate = (2.6 * r / n, 0.65 * long + 0.03, 0.03)
        bones.limb(f"rim {i}", "bell", on_circle(i, n, 0.86 * r, -0.2 * high), (0, -0.5 * long, 0), plate,
                   palette.main if i % 2 else palette.light, **lean, **coat)
    if dice.chance(0.5):
        for side, a in SIDES:
            bones.eye(f"eye {side}", "bell", (0.4 * r * a, 0.1, 0.85 * r), (0.05, 0.06, 0.04), 25 * a)
    drop = dice.between(0.09, 0.15)
    for i in range(arms):
        at, turned = on_circle(i, arms, 0.5 * r, -0.5 * high), (0.0, 360 * i / arms, 0.0)
        paints = [dice.choose((palette.accent, palette.second))]
        bones += _sheet(f"arm {i}", "bell", at, (links, 1), (drop, 0.07), paints, wave, turned, -0.4)
    return Creature(tuple(bones), bob=dice.between(0, 0.04), marking_frequency=dice.between(4, 10))


def carpet(dice: Dice, palette: Palette) -> Creature:
    """Return a flying carpet, ray or leaf: a sheet on which a wave runs, with a load on its middle."""
    rows, columns = dice.whole(5, 7), dice.whole(2, 4)
    long, wide = dice.between(0.7, 1.0) / rows, dice.between(0.35, 0.6)
    wave = _Wave(dice.between(5, 18), dice.between(0.1, 0.22))
    paints, pattern = _paints(dice, palette)
    flat = (90.0 + dice.between(-15, 15), 0.0, 0.0)
    plate = (long, wide / columns)
    bones = Bones(palette)
    bones += _sheet("carpet", "", (0, 0, 0), (rows, columns), plate, paints, wave, flat, 0.0, pattern)
    middle = f"carpet {rows // 2}"
    if dice.chance(0.7):
        bones.ball("body", middle, (0, -long / 2, -0.12), (0.11, 0.1, 0.13))
        bones.ball("head", middle, (0, -long / 2, -0.3), 0.09, palette.light)
        bones.ball("hat", middle, (0, -long / 2, -0.37), (0.1, 0.1, 0.045), palette.accent)
    for i, x in enumerate((-0.4, 0.0, 0.4)):
        tassel = (x * wide, -long - 0.02, 0.0)
        bones.ball(f"tassel {i}", f"carpet {rows - 1}", tassel, (0.02, 0.06, 0.02), palette.accent)
    return Creature(tuple(bones), bob=dice.between(0, 0.04), marking_frequency=dice.between(4, 10))


def kite(dice: Dice, palette: Palette) -> Creature:
    """Return a kite or a ribbon dancer: a diamond that sways and long ribbons behind it."""
    ribbons, links = dice.whole(1, 3), dice.whole(5, 8)
    wave = _Wave(dice.between(10, 30), dice.between(0.08, 0.2))
    w, h = dice.between(0.16, 0.26), dice.between(0.2, 0.32)
    tilt = {"rest_deg": (dice.between(-50, -10), 0, 0), "axis": Z, "swing_deg": dice.between(3, 18)}
    bones = Bones(palette)
    bones.ball("sail", "", (0, 0, 0), (w, h, 0.02), **tilt)
    for i, (x, y) in enumerate(((1, 1), (-1, 1), (1, -1), (-1, -1))):
        paint = palette.second if x == y else palette.accent
        at = (0.42 * w * x, 0.42 * h * y, 0.0)
        bones.ball(f"field {i}", "sail", at, (0.4 * w, 0.4 * h, 0.025), paint)
    bones.ball("spar", "sail", (0, 0, 0), (0.02, 1.08 * h, 0.03), palette.dark)
    bones.ball("cross", "sail", (0, 0, 0), (1.08 * w, 0.02, 0.03), palette.dark)
    for i in range(ribbons):
        joint = (0.1 * (i - (ribbons - 1) / 2), -h, 0.0)
        paints = [(palette.accent, palette.second, palette.light)[i]]
        fanned = (25.0, 0.0, 24.0 * (i - (ribbons - 1) / 2))
        one = _Wave(wave.swing_deg, wave.lag, 0.3 * i)
        bones += _sheet(f"ribbon {i}", "sail", joint, (links, 1), (0.09, 0.09), paints, one, fanned, -0.3)
    return Creature(tuple(bones), bob=dice.between(0, 0.03), marking_frequency=dice.between(4, 10))


def _paints(dice: Dice, palette: Palette) -> tuple[list[Paint], str]:
    """Return paints of the columns and a pattern: stripes of several paints, or one with markings."""
    if dice.chance(0.5):
        return [palette.second, palette.light, palette.accent][: dice.whole(2, 3)], "plain"
    base, marking, _ = palette.main
    return [(base, marking, base)], palette.pattern
