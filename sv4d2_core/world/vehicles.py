"""Draws things on wheels and rotors of the training distribution: cars, trains, bicycles, helicopters."""

from __future__ import annotations

from .creature import Bone, Creature, Vector
from .dice import Dice
from .palette import Palette
from .shapes import SIDES, Paint, Y, Z, ball, limb, strut


def _wheel(name: str, parent: str, at: Vector, r: float, turns: float, palette: Palette,
           n_spokes: int = 2, width: float = 0.04) -> list[Bone]:  # fmt: skip
    """Return a wheel about x whose spokes stand out of the tyre on both sides, so that its turn is seen."""
    bones = [ball(name, parent, at, (width, r, r), palette.dark, turns=turns)]
    for i in range(n_spokes):
        spoke = (1.15 * width, 0.72 * r, 0.16 * r)
        paint: Paint = palette.light if i else palette.accent
        bones.append(
            ball(f"{name} spoke {i}", name, (0, 0, 0), spoke, paint, rest_deg=(180 * i / n_spokes, 0, 0))
        )
    return bones


def car(dice: Dice, palette: Palette) -> Creature:
    """Return a car, truck, tractor or cart with four turning wheels on a body that rocks a little."""
    long, wide, high = dice.between(0.26, 0.44), dice.between(0.13, 0.2), dice.between(0.07, 0.13)
    front, hind = dice.between(0.09, 0.16), dice.between(0.09, 0.2)
    turns, coat = dice.between(0.5, 1.6), {"pattern": palette.pattern}
    bones = [
        ball("chassis", "", (0, 0, 0), (0.8 * wide, 0.05, long), palette.dark),
        ball("body", "chassis", (0, high, 0), (wide, high, 1.02 * long), palette.main,
             swing_deg=dice.between(0, 4), beats=2, **coat),
        ball("bonnet", "body", (0, 0.01, 0.5 * long), (0.95 * wide, 0.8 * high, 0.5 * long),
             palette.main, **coat),
    ]  # fmt: skip
    rider = dice.choose(("cabin", "cabin", "load", "driver"))
    if rider == "cabin":
        h, z = dice.between(0.1, 0.2), dice.between(-0.4, 0.3) * long
        bones += [
            ball("cabin", "body", (0, high + 0.3 * h, z), (0.88 * wide, h, 0.5 * long), palette.second),
            ball("windscreen", "body", (0, high + 0.5 * h, z + 0.22 * long),
                 (0.7 * wide, 0.6 * h, 0.3 * long), palette.light),
            ball("windows", "body", (0, high + 0.5 * h, z), (0.91 * wide, 0.5 * h, 0.26 * long),
                 palette.light),
        ]  # fmt: skip
    elif rider == "load":
        for i in range(dice.whole(3, 7)):
            r = dice.between(0.07, 0.13)
            at = (dice.between(-0.6, 0.6) * wide, high + 0.6 * r, dice.between(-0.7, 0.5) * long)
            bones.append(
                ball(f"load {i}", "body", at, r, dice.choose((palette.second, palette.accent, palette.light)))
            )
    else:
        bones += [
            ball("driver", "body", (0, high + 0.1, -0.1), (0.08, 0.14, 0.08), palette.second),
            ball("head", "body", (0, high + 0.28, -0.1), 0.085, palette.light, axis=Y, swing_deg=25),
            ball("cap", "body", (0, high + 0.34, -0.1), (0.09, 0.05, 0.1), palette.accent),
            ball("wheel", "body", (0, high + 0.12, 0.06), (0.06, 0.06, 0.015), palette.dark,
                 rest_deg=(-35, 0, 0)),
        ]  # fmt: skip
    for side, a in SIDES:
        bones.append(ball(f"lamp {side}", "body", (0.6 * wide * a, 0, 0.93 * long), 0.035, palette.light))
        for end, r, z in (("front", front, 0.62 * long), ("hind", hind, -0.62 * long)):
            at = (1.05 * wide * a, -0.09 + r - min(front, hind), z)
            bones += _wheel(f"{end} {side}", "chassis", at, r, turns * min(front, hind) / r, palette)
    if dice.chance(0.4):
        low, top = (0.06, high, 0.5 * long), (0.06, high + 0.2, 0.5 * long)
        bones.append(strut("pipe", "body", low, top, 0.03, palette.accent))
    return Creature(tuple(bones), bob=dice.between(0, 0.006), marking_frequency=dice.between(5, 11))


def train(dice: Dice, palette: Palette) -> Creature:
    """Return a steam engine with one or two wagons that bend at their couplings."""
    turns, bend, coat = dice.between(0.5, 1.5), dice.between(2, 16), {"pattern": palette.pattern}
    boiler, r = dice.between(0.09, 0.13), dice.between(0.07, 0.1)
    bones = [
        ball("frame", "", (0, 0, 0), (0.1, 0.045, 0.3), palette.dark),
        ball("boiler", "frame", (0, 0.1, 0.08), (boiler, boiler, 0.26), palette.main,
             rest_deg=(0, 0, 0), **coat),
        ball("cab", "frame", (0, 0.17, -0.19), (0.13, 0.19, 0.11), palette.second),
        ball("roof", "frame", (0, 0.33, -0.19), (0.16, 0.03, 0.14), palette.accent),
        ball("band", "frame", (0, 0.1, 0.12), (1.04 * boiler, 1.04 * boiler, 0.03), palette.accent),
        strut("chimney", "frame", (0, 0.17, 0.22), (0, 0.32, 0.22), 0.045, palette.dark),
        ball("dome", "frame", (0, 0.1 + boiler, 0.04), 0.055, palette.accent),
        ball("lamp", "frame", (0, 0.12, 0.34), 0.045, palette.light),
        strut("catcher", "frame", (0, -0.02, 0.28), (0, -0.07, 0.38), 0.06, palette.accent),
    ]  # fmt: skip
    for side, a in SIDES:
        for i, z in enumerate((0.17, -0.01, -0.2)):
            bones += _wheel(
                f"wheel {i} {side}", "frame", (0.11 * a, -0.04, z), r, turns, palette, n_spokes=1, width=0.03
            )
    parent, joint = "frame", (0.0, 0.0, -0.33)
    for i in range(dice.whole(1, 2)):
        wagon = f"wagon {i}"
        paint = dice.choose((palette.main, palette.second, palette.accent))
        bones.append(limb(wagon, parent, joint, (0, 0.08, -0.2), (0.12, 0.11, 0.2), paint, axis=Y,
                          swing_deg=bend, phase=-0.15 * i))  # fmt: skip
        bones.append(
            ball(f"top {i}", wagon, (0, 0.17, -0.2), (0.11, dice.between(0.03, 0.1), 0.17), palette.light)
        )
        for side, a in SIDES:
            for k, z in enumerate((-0.1, -0.3)):
                bones += _wheel(
                    f"{wagon} {k} {side}", wagon, (0.11 * a, -0.04, z), r, turns, palette, 1, 0.03
                )
        parent, joint = wagon, (0.0, 0.0, -0.43)
    return Creature(tuple(bones), bob=dice.between(0, 0.004), marking_frequency=dice.between(5, 11))


def bicycle(dice: Dice, palette: Palette) -> Creature:
    """Return a bicycle or a penny-farthing with a rider's hat on the saddle, leaning from side to side."""
    front, hind, turns = dice.between(0.16, 0.28), dice.between(0.12, 0.22), dice.between(0.4, 1.2)
    gap, pipe = front + hind + 0.1, 0.024
    hub, rear = (0.0, front, 0.0), (0.0, hind, -gap)
    head, seat, crank = (0.0, front + 0.22, -0.1), (0.0, front + 0.2, -0.62 * gap), (0.0, hind, -0.55 * gap)
    bones = [
        ball("saddle", "", seat, (0.05, 0.03, 0.1), palette.dark, axis=Z, swing_deg=dice.between(1, 9)),
    ]
    frame = ((head, seat), (head, crank), (seat, crank), (crank, rear), (seat, rear), (head, hub))

    def below(at: Vector) -> Vector:
        return at[0] - seat[0], at[1] - seat[1], at[2] - seat[2]

    for i, (start, end) in enumerate(frame):
        bones.append(strut(f"tube {i}", "saddle", below(start), below(end), pipe, palette.main))
    bar = below((0.0, head[1] + 0.07, head[2]))
    bones.append(
        ball(
            "handlebar",
            "saddle",
            bar,
            (0.17, 0.022, 0.022),
            palette.second,
            axis=Y,
            swing_deg=dice.between(0, 12),
        )
    )
    bones.append(ball("hat", "saddle", (0, 0.08, 0), (0.09, 0.06, 0.09), palette.accent))
    bones.append(
        ball("basket", "saddle", (0, bar[1] - 0.02, bar[2] + 0.1), (0.09, 0.07, 0.07), palette.second)
    )
    bones += _wheel("front wheel", "saddle", below(hub), front, turns * hind / front, palette, 3, 0.022)
    bones += _wheel("hind wheel", "saddle", below(rear), hind, turns, palette, 3, 0.022)
    bones += [ball("crank", "saddle", below(crank), (0.03, 0.09, 0.02), palette.second, turns=turns)]
    for side, a in SIDES:
        bones.append(
            ball(f"pedal {side}", "crank", (0.06 * a, 0.09 * a, 0), (0.05, 0.015, 0.03), palette.dark)
        )
    return Creature(tuple(bones), marking_frequency=dice.between(5, 11))


def helicopter(dice: Dice, palette: Palette) -> Creature:
    """Return a helicopter or a propeller plane: blades turn, the body sways."""
    coat, n_blades, turns = {"pattern": palette.pattern}, dice.whole(2, 4), dice.between(0.3, 1.4)
    fat, boom, reach = dice.between(0.12, 0.18), dice.between(0.2, 0.34), dice.between(0.26, 0.44)
    bones = [
        ball("body", "", (0, 0, 0), (fat, fat, 1.5 * fat), palette.main, axis=Z,
             swing_deg=dice.between(1, 10), **coat),
        ball("glass", "body", (0, 0.03, 0.62 * fat), (0.82 * fat, 0.75 * fat, 0.95 * fat), palette.light),
        strut("boom", "body", (0, 0.02, -1.1 * fat), (0, 0.06, -1.3 * fat - boom), 0.045, palette.main),
        ball("fin", "body", (0, 0.12, -1.3 * fat - boom), (0.018, 0.1, 0.06), palette.accent,
             rest_deg=(-20, 0, 0)),
        ball("tail rotor", "body", (0.05, 0.06, -1.3 * fat - boom), (0.012, 0.13, 0.022), palette.dark,
             turns=2 * turns),
        strut("mast", "body", (0, fat, 0), (0, fat + 0.07, 0), 0.03, palette.dark),
        ball("rotor", "body", (0, fat + 0.08, 0), (0.05, 0.03, 0.05), palette.accent, axis=Y, turns=turns),
    ]  # fmt: skip
    for i in range(n_blades):
        bones.append(limb(f"blade {i}", "rotor", (0, 0, 0), (0, 0, reach / 2), (0.04, 0.012, 0.55 * reach),
                          palette.second if i else palette.dark,
                          rest_deg=(0, 360 * i / n_blades, 0)))  # fmt: skip
    for side, a in SIDES:
        bones.append(
            ball(f"skid {side}", "body", (0.1 * a, -fat - 0.08, 0), (0.02, 0.02, 0.24), palette.dark)
        )
        for end, z in (("front", 0.09), ("hind", -0.09)):
            top, foot = (0.07 * a, -0.7 * fat, z), (0.1 * a, -fat - 0.08, z)
            bones.append(strut(f"leg {end} {side}", "body", top, foot, 0.015, palette.dark))
    return Creature(tuple(bones), bob=dice.between(0, 0.04), marking_frequency=dice.between(5, 11))
