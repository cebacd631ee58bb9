"""Draws things in one piece of the training distribution: they rock, turn or tumble as one body."""

from __future__ import annotations

import math

from .creature import Bone, Creature, Vector
from .dice import Dice
from .palette import Palette
from .shapes import EYE, SIDES, Paint, Y, Z, ball, on_circle, strut


def totem(dice: Dice, palette: Palette) -> Creature:
    """Return a totem or a snowman: a stack of balls with faces, wings and hats."""
    bones, y, r = [_ground(dice, palette)], 0.03, dice.between(0.16, 0.24)
    shrink, paints = dice.between(0.8, 1.0), (palette.main, palette.second, palette.accent, palette.light)
    for i in range(dice.whole(3, 5)):
        tall = r * dice.between(0.55, 1.0)
        y += 0.8 * tall
        wide = r * dice.between(0.85, 1.1)
        bones.append(ball(f"block {i}", "ground", (0, y, 0), (wide, tall, r),
                          paints[i % 4] if i else palette.main,
                          pattern="plain" if i % 2 else palette.pattern))  # fmt: skip
        if dice.chance(0.55):
            bones += _totem_face(palette, i, y, tall, wide, r)
        if dice.chance(0.4):
            for side, a in SIDES:
                wing = (1.2 * wide * a, y, 0.0)
                bones.append(ball(f"wing {i} {side}", "ground", wing, (0.7 * r, 0.3 * tall, 0.05),
                                  palette.accent, rest_deg=(0, 0, dice.between(-10, 40) * a)))  # fmt: skip
        y, r = y + 0.8 * tall, shrink * r
    bones.append(ball("brim", "ground", (0, y, 0), (1.1 * r, 0.03, 1.1 * r), palette.dark))
    bones.append(ball("hat", "ground", (0, y + 0.06, 0), (0.7 * r, 0.1, 0.7 * r), palette.accent))
    return _finished(bones, dice)


def _totem_face(palette: Palette, i: int, y: float, tall: float, wide: float, r: float) -> list[Bone]:
    bones = [
        strut(f"nose {i}", "ground", (0, y, 0.9 * r), (0, y - 0.1 * tall, 1.35 * r), 0.035, palette.accent)
    ]
    for side, a in SIDES:
        gaze = {"rest_deg": (0, 22 * a, 0), "pattern": "eye"}
        at = (0.4 * wide * a, y + 0.35 * tall, 0.82 * r)
        bones.append(ball(f"eye {i} {side}", "ground", at, 0.2 * r, EYE, **gaze))
    return bones


def mug(dice: Dice, palette: Palette) -> Creature:
    """Return a mug, jug or teapot: a round pot with a handle, filled or with a lid and a spout."""
    r, h = dice.between(0.17, 0.27), dice.between(0.2, 0.36)
    bones, coat = [_ground(dice, palette)], {"pattern": palette.pattern}
    for i, share in enumerate((0.3, 0.55, 0.8)):
        belly = r * (1.0 if i == 1 else dice.between(0.8, 1.05))
        bones.append(
            ball(f"pot {i}", "ground", (0, 2 * h * share, 0), (belly, 0.62 * h, belly), palette.main, **coat)
        )
    bones.append(ball("rim", "ground", (0, 2 * h, 0), (0.92 * r, 0.04, 0.92 * r), palette.second))
    reach, n = dice.between(0.12, 0.22), 6
    for i in range(n):
        start, end = (_on_handle(k / n, r, h, reach) for k in (i, i + 1))
        bones.append(strut(f"handle {i}", "ground", start, end, 0.035, palette.second))
    if dice.chance(0.5):
        bones.append(ball("drink", "ground", (0, 2 * h + 0.02, 0), (0.78 * r, 0.035, 0.78 * r), palette.dark))
        for i in range(dice.whole(0, 3)):
            at = on_circle(i, 3, 0.35 * r, 2 * h + 0.06)
            bones.append(ball(f"foam {i}", "ground", at, 0.07, palette.light))
    else:
        bones += [
            ball("lid", "ground", (0, 2 * h + 0.03, 0), (0.75 * r, 0.08, 0.75 * r), palette.accent),
            ball("knob", "ground", (0, 2 * h + 0.13, 0), 0.05, palette.second),
            strut("spout", "ground", (-0.8 * r, 0.9 * h, 0), (-1.5 * r, 1.5 * h, 0), 0.06, palette.main),
            strut("lip", "ground", (-1.45 * r, 1.45 * h, 0), (-1.75 * r, 1.85 * h, 0), 0.045, palette.second),
        ]
    return _finished(bones, dice)


def _on_handle(share: float, r: float, h: float, reach: float) -> Vector:
    angle = math.pi * (share - 0.5)
    return 0.85 * r + reach * math.cos(angle), h * (1.05 + 0.6 * math.sin(angle)), 0.0


def lamp(dice: Dice, palette: Palette) -> Creature:
    """Return a lamp, a mushroom, a tree or a vase of flowers: a stem with something wide on it."""
    kind, high = dice.choose(("lamp", "mushroom", "tree", "flowers")), dice.between(0.35, 0.6)
    bones, coat = [_ground(dice, palette)], {"pattern": palette.pattern}
    thick = {"lamp": 0.03, "mushroom": 0.1, "tree": 0.06, "flowers": 0.09}[kind]
    bones.append(
        strut(
            "stem",
            "ground",
            (0, 0, 0),
            (0, high, 0),
            thick,
            palette.second if kind != "tree" else palette.dark,
        )
    )
    if kind in ("lamp", "mushroom"):
        for i in range(dice.whole(3, 5)):
            r = 0.32 - dice.between(0.045, 0.075) * i
            bones.append(
                ball(f"cap {i}", "ground", (0, high + 0.055 * i, 0), (r, 0.07, r), palette.main, **coat)
            )
        bones.append(ball("knob", "ground", (0, high - 0.05, 0), (0.12, 0.05, 0.12), palette.light))
        bones.append(ball("foot", "ground", (0, 0.06, 0), (0.14, 0.06, 0.14), palette.accent))
        return _finished(bones, dice)
    n = dice.whole(5, 9)
    for i in range(n):
        at = on_circle(i, n, dice.between(0.08, 0.26), high + dice.between(-0.05, 0.28))
        if kind == "tree":
            bones.append(ball(f"crown {i}", "ground", at, dice.between(0.1, 0.19), palette.main, **coat))
        else:
            bones.append(strut(f"stalk {i}", "ground", (0, high - 0.1, 0), at, 0.014, palette.second))
            bones.append(ball(f"flower {i}", "ground", at, (0.075, 0.05, 0.075), _flower(dice, palette)))
            bones.append(ball(f"heart {i}", "ground", (at[0], at[1] + 0.04, at[2]), 0.03, palette.light))
    if kind == "flowers":
        bones.append(
            ball("vase", "ground", (0, 0.5 * high, 0), (0.15, 0.55 * high, 0.15), palette.main, **coat)
        )
        bones.append(ball("rim", "ground", (0, 0.95 * high, 0), (0.13, 0.03, 0.13), palette.accent))
    return _finished(bones, dice)


def _flower(dice: Dice, palette: Palette) -> Paint:
    return dice.choose((palette.accent, palette.main))


def rocket(dice: Dice, palette: Palette) -> Creature:
    """Return a rocket, a boat or a bottle: a long body with fins, rings and a tip."""
    long, fat, n = dice.between(0.32, 0.46), dice.between(0.11, 0.19), dice.whole(3, 5)
    lying = {"rest_deg": (dice.choose((0, 0, 70, 90)), 0, 0)}
    bones = [
        ball(
            "hull",
            "",
            (0, 0, 0),
            (fat, long, fat),
            palette.main,
            pattern=palette.pattern,
            **_motion(dice) | lying,
        ),
        ball("tip", "hull", (0, 0.78 * long, 0), (0.62 * fat, 0.42 * long, 0.62 * fat), palette.accent),
        ball("ring", "hull", (0, 0.35 * long, 0), (1.02 * fat, 0.03, 1.02 * fat), palette.second),
        ball("belt", "hull", (0, -0.4 * long, 0), (1.0 * fat, 0.04, 1.0 * fat), palette.second),
        ball("engine", "hull", (0, -long, 0), (0.6 * fat, 0.08, 0.6 * fat), palette.dark),
    ]
    for i in range(n):
        at = on_circle(i, n, 1.1 * fat, -0.75 * long)
        fin = {"rest_deg": (-25, 360 * i / n, 0)}
        bones.append(ball(f"fin {i}", "hull", at, (0.022, 0.17, 0.12), palette.accent, **fin))
    for i in range(dice.whole(1, 3)):
        at = (0.0, (0.25 - 0.28 * i) * long, 0.9 * fat)
        bones.append(ball(f"window {i}", "hull", at, (0.06, 0.06, 0.04), palette.dark))
        bones.append(
            ball(f"pane {i}", "hull", (0.0, at[1], at[2] + 0.015), (0.042, 0.042, 0.035), palette.light)
        )
    return Creature(tuple(bones), bob=dice.between(0, 0.03), marking_frequency=dice.between(4, 11))


def scatter(dice: Dice, palette: Palette) -> Creature:
    """Return a free sculpture: struts and balls of random size that grow out of each other."""
    bones = [_ground(dice, palette)]
    paints, ends = (palette.main, palette.second, palette.accent, palette.light), [(0.0, 0.0, 0.0)]
    for i in range(dice.whole(5, 10)):
        x, y, z = dice.choose(ends)
        end = (x + dice.between(-0.28, 0.28), y + dice.between(0.08, 0.28), z + dice.between(-0.28, 0.28))
        paint, r = dice.choose(paints), dice.between(0.05, 0.16)
        bones.append(strut(f"strut {i}", "ground", (x, y, z), end, dice.between(0.025, 0.06), palette.dark))
        radii = (r, r * dice.between(0.5, 1.3), r * dice.between(0.5, 1.3))
        rest = (dice.between(-60, 60), dice.between(0, 360), 0)
        bones.append(ball(f"ball {i}", "ground", end, radii, paint, rest_deg=rest, pattern=palette.pattern))
        ends.append(end)
    return _finished(bones, dice)


def _ground(dice: Dice, palette: Palette) -> Bone:
    """Return the foot of the thing, a flat disc which carries its whole motion."""
    r = dice.between(0.16, 0.26)
    return ball(
        "ground", "", (0, 0, 0), (r, 0.045, r), dice.choose((palette.dark, palette.second)), **_motion(dice)
    )


def _motion(dice: Dice) -> dict:
    """Return how the one body moves: it rocks, turns to and fro, turns round, or tumbles."""
    kind = dice.choose(("rock", "rock", "turn", "spin", "tumble"))
    if kind == "rock":
        return {"axis": dice.choose(((1.0, 0.0, 0.0), Z)), "swing_deg": dice.between(4, 26)}
    if kind == "turn":
        return {"axis": Y, "swing_deg": dice.between(15, 80)}
    turns = dice.choose((-1, 1)) * dice.between(0.1, 0.7)
    return {"axis": Y if kind == "spin" else dice.choose(((1.0, 0.0, 0.0), Z)), "turns": turns}


def _finished(bones: list[Bone], dice: Dice) -> Creature:
    return Creature(tuple(bones), bob=dice.choose((0.0, 0.0, 0.02)), marking_frequency=dice.between(4, 11))
