"""Statues and other whole things of the training distribution, and toys of the benchmark."""

from __future__ import annotations

import math

from .body import SIDES, Bones, Creature, Vector, Y, Z, fitted, on_circle
from .coat import BLACK, BLUE, CREAM, GOLD, RED, WHITE, WOOD, Dice, Paint, Palette, plain

# One part of an object stands on one line where it fits; ruff would spread the others over ten.
# fmt: off
_DAPPLE: Paint = ((0.93, 0.91, 0.88), (0.22, 0.24, 0.32), (0.86, 0.84, 0.82))
_MANE = plain(0.40, 0.16, 0.08)
_BRICK: Paint = ((0.93, 0.90, 0.84), (0.72, 0.70, 0.68), (0.93, 0.90, 0.84))
_GRASS: Paint = ((0.42, 0.66, 0.28), (0.26, 0.48, 0.20), (0.34, 0.26, 0.18))
_LIVERY: Paint = ((0.92, 0.15, 0.12), (0.97, 0.95, 0.90), (0.92, 0.15, 0.12))
_PONIES = (plain(0.30, 0.62, 0.82), plain(0.94, 0.60, 0.18), plain(0.60, 0.42, 0.78), plain(0.40, 0.70, 0.38))


def totem(dice: Dice, palette: Palette) -> Creature:
    """Return a totem or a snowman: a stack of balls with faces, wings and hats."""
    bones, y, r = _ground(dice, palette), 0.03, dice.between(0.16, 0.24)
    shrink, paints = dice.between(0.8, 1.0), (palette.main, palette.second, palette.accent, palette.light)
    for i in range(dice.whole(3, 5)):
        tall = r * dice.between(0.55, 1.0)
        y += 0.8 * tall
        wide = r * dice.between(0.85, 1.1)
        bones.ball(f"block {i}", "ground", (0, y, 0), (wide, tall, r), paints[i % 4] if i else palette.main,
                   pattern="plain" if i % 2 else palette.pattern)
        if dice.chance(0.55):
            bones += _totem_face(palette, i, y, tall, wide, r)
        if dice.chance(0.4):
            for side, a in SIDES:
                wing = (1.2 * wide * a, y, 0.0)
                bones.ball(f"wing {i} {side}", "ground", wing, (0.7 * r, 0.3 * tall, 0.05), palette.accent,
                           rest_deg=(0, 0, dice.between(-10, 40) * a))
        y, r = y + 0.8 * tall, shrink * r
    bones.ball("brim", "ground", (0, y, 0), (1.1 * r, 0.03, 1.1 * r), palette.dark)
    bones.ball("hat", "ground", (0, y + 0.06, 0), (0.7 * r, 0.1, 0.7 * r), palette.accent)
    return _statue(bones, dice)


def _totem_face(palette: Palette, i: int, y: float, tall: float, wide: float, r: float) -> Bones:
    bones = Bones(palette)
    bones.strut(f"nose {i}", "ground", (0, y, 0.9 * r), (0, y - 0.1 * tall, 1.35 * r), 0.035, palette.accent)
    for side, a in SIDES:
        at = (0.4 * wide * a, y + 0.35 * tall, 0.82 * r)
        bones.eye(f"eye {i} {side}", "ground", at, 0.2 * r, 22 * a)
    return bones


def mug(dice: Dice, palette: Palette) -> Creature:
    """Return a mug, jug or teapot: a round pot with a handle, filled or with a lid and a spout."""
    r, h = dice.between(0.17, 0.27), dice.between(0.2, 0.36)
    bones = _ground(dice, palette)
    for i, share in enumerate((0.3, 0.55, 0.8)):
        belly = r * (1.0 if i == 1 else dice.between(0.8, 1.05))
        bones.ball(f"pot {i}", "ground", (0, 2 * h * share, 0), (belly, 0.62 * h, belly))
    bones.ball("rim", "ground", (0, 2 * h, 0), (0.92 * r, 0.04, 0.92 * r), palette.second)
    reach, n = dice.between(0.12, 0.22), 6
    for i in range(n):
        start, end = (_on_handle(k / n, r, h, reach) for k in (i, i + 1))
        bones.strut(f"handle {i}", "ground", start, end, 0.035, palette.second)
    if dice.chance(0.5):
        bones.ball("drink", "ground", (0, 2 * h + 0.02, 0), (0.78 * r, 0.035, 0.78 * r), palette.dark)
        for i in range(dice.whole(0, 3)):
            at = on_circle(i, 3, 0.35 * r, 2 * h + 0.06)
            bones.ball(f"foam {i}", "ground", at, 0.07, palette.light)
    else:
        bones.ball("lid", "ground", (0, 2 * h + 0.03, 0), (0.75 * r, 0.08, 0.75 * r), palette.accent)
        bones.ball("knob", "ground", (0, 2 * h + 0.13, 0), 0.05, palette.second)
        bones.strut("spout", "ground", (-0.8 * r, 0.9 * h, 0), (-1.5 * r, 1.5 * h, 0), 0.06, palette.main)
        bones.strut("lip", "ground", (-1.45 * r, 1.45 * h, 0), (-1.75 * r, 1.85 * h, 0), 0.045,
                    palette.second)
    return _statue(bones, dice)


def _on_handle(share: float, r: float, h: float, reach: float) -> Vector:
    angle = math.pi * (share - 0.5)
    return 0.85 * r + reach * math.cos(angle), h * (1.05 + 0.6 * math.sin(angle)), 0.0


def lamp(dice: Dice, palette: Palette) -> Creature:
    """Return a lamp, a mushroom, a tree or a vase of flowers: a stem with something wide on it."""
    kind, high = dice.choose(("lamp", "mushroom", "tree", "flowers")), dice.between(0.35, 0.6)
    bones = _ground(dice, palette)
    thick = {"lamp": 0.03, "mushroom": 0.1, "tree": 0.06, "flowers": 0.09}[kind]
    bones.strut("stem", "ground", (0, 0, 0), (0, high, 0), thick,
                palette.second if kind != "tree" else palette.dark)
    if kind in ("lamp", "mushroom"):
        for i in range(dice.whole(3, 5)):
            r = 0.32 - dice.between(0.045, 0.075) * i
            bones.ball(f"cap {i}", "ground", (0, high + 0.055 * i, 0), (r, 0.07, r))
        bones.ball("knob", "ground", (0, high - 0.05, 0), (0.12, 0.05, 0.12), palette.light)
        bones.ball("foot", "ground", (0, 0.06, 0), (0.14, 0.06, 0.14), palette.accent)
        return _statue(bones, dice)
    n = dice.whole(5, 9)
    for i in range(n):
        at = on_circle(i, n, dice.between(0.08, 0.26), high + dice.between(-0.05, 0.28))
        if kind == "tree":
            bones.ball(f"crown {i}", "ground", at, dice.between(0.1, 0.19))
        else:
            bones.strut(f"stalk {i}", "ground", (0, high - 0.1, 0), at, 0.014, palette.second)
            paint = dice.choose((palette.accent, palette.main))
            bones.ball(f"flower {i}", "ground", at, (0.075, 0.05, 0.075), paint)
            bones.ball(f"heart {i}", "ground", (at[0], at[1] + 0.04, at[2]), 0.03, palette.light)
    if kind == "flowers":
        bones.ball("vase", "ground", (0, 0.5 * high, 0), (0.15, 0.55 * high, 0.15))
        bones.ball("rim", "ground", (0, 0.95 * high, 0), (0.13, 0.03, 0.13), palette.accent)
    return _statue(bones, dice)


def rocket(dice: Dice, palette: Palette) -> Creature:
    """Return a rocket, a boat or a bottle: a long body with fins, rings and a tip."""
    long, fat, n = dice.between(0.32, 0.46), dice.between(0.11, 0.19), dice.whole(3, 5)
    rest_deg, bones = (dice.choose((0, 0, 70, 90)), 0, 0), Bones(palette)
    bones.ball("hull", "", (0, 0, 0), (fat, long, fat), rest_deg=rest_deg, **_motion(dice))
    bones.ball("tip", "hull", (0, 0.78 * long, 0), (0.62 * fat, 0.42 * long, 0.62 * fat), palette.accent)
    bones.ball("ring", "hull", (0, 0.35 * long, 0), (1.02 * fat, 0.03, 1.02 * fat), palette.second)
    bones.ball("belt", "hull", (0, -0.4 * long, 0), (1.0 * fat, 0.04, 1.0 * fat), palette.second)
    bones.ball("engine", "hull", (0, -long, 0), (0.6 * fat, 0.08, 0.6 * fat), palette.dark)
    for i in range(n):
        at = on_circle(i, n, 1.1 * fat, -0.75 * long)
        fin = {"rest_deg": (-25, 360 * i / n, 0)}
        bones.ball(f"fin {i}", "hull", at, (0.022, 0.17, 0.12), palette.accent, **fin)
    for i in range(dice.whole(1, 3)):
        at = (0.0, (0.25 - 0.28 * i) * long, 0.9 * fat)
        bones.ball(f"window {i}", "hull", at, (0.06, 0.06, 0.04), palette.dark)
        bones.ball(f"pane {i}", "hull", (0.0, at[1], at[2] + 0.015), (0.042, 0.042, 0.035), palette.light)
    return Creature(tuple(bones), bob=dice.between(0, 0.03), marking_frequency=dice.between(4, 11))


def scatter(dice: Dice, palette: Palette) -> Creature:
    """Return a free sculpture: struts and balls of random size that grow out of each other."""
    bones = _ground(dice, palette)
    paints, ends = (palette.main, palette.second, palette.accent, palette.light), [(0.0, 0.0, 0.0)]
    for i in range(dice.whole(5, 10)):
        x, y, z = dice.choose(ends)
        end = (x + dice.between(-0.28, 0.28), y + dice.between(0.08, 0.28), z + dice.between(-0.28, 0.28))
        paint, r = dice.choose(paints), dice.between(0.05, 0.16)
        bones.strut(f"strut {i}", "ground", (x, y, z), end, dice.between(0.025, 0.06), palette.dark)
        radii = (r, r * dice.between(0.5, 1.3), r * dice.between(0.5, 1.3))
        rest = (dice.between(-60, 60), dice.between(0, 360), 0)
        bones.ball(f"ball {i}", "ground", end, radii, paint, rest_deg=rest, pattern=palette.pattern)
        ends.append(end)
    return _statue(bones, dice)


def _ground(dice: Dice, palette: Palette) -> Bones:
    """Return the foot of the thing, a flat disc which carries its whole motion."""
    r, bones = dice.between(0.16, 0.26), Bones(palette)
    paint = dice.choose((palette.dark, palette.second))
    bones.ball("ground", "", (0, 0, 0), (r, 0.045, r), paint, **_motion(dice))
    return bones


def _motion(dice: Dice) -> dict:
    """Return how the one body moves: it rocks, turns to and fro, turns round, or tumbles."""
    kind = dice.choose(("rock", "rock", "turn", "spin", "tumble"))
    if kind == "rock":
        return {"axis": dice.choose(((1.0, 0.0, 0.0), Z)), "swing_deg": dice.between(4, 26)}
    if kind == "turn":
        return {"axis": Y, "swing_deg": dice.between(15, 80)}
    turns = dice.choose((-1, 1)) * dice.between(0.1, 0.7)
    return {"axis": Y if kind == "spin" else dice.choose(((1.0, 0.0, 0.0), Z)), "turns": turns}


def _statue(bones: Bones, dice: Dice) -> Creature:
    return Creature(tuple(bones), bob=dice.choose((0.0, 0.0, 0.02)), marking_frequency=dice.between(4, 11))


def rocking_horse() -> Creature:
    """Return a dappled rocking horse: one rigid body that rocks about where it touches the ground."""
    spots = {"pattern": "spots"}
    bones = Bones()
    bones.limb("body", "", (0, 0, 0), (0, 0.62, 0), (0.17, 0.19, 0.34), _DAPPLE, swing_deg=8, **spots)
    bones.ball("chest", "body", (0, 0.65, 0.19), (0.165, 0.20, 0.20), _DAPPLE, **spots)
    bones.ball("rump", "body", (0, 0.66, -0.20), (0.18, 0.20, 0.20), _DAPPLE, **spots)
    bones.strut("neck", "body", (0, 0.70, 0.27), (0, 1.05, 0.45), 0.105, _DAPPLE, **spots)
    bones.ball("head", "body", (0, 1.07, 0.52), (0.10, 0.115, 0.15), _DAPPLE, rest_deg=(30, 0, 0))
    bones.ball("muzzle", "body", (0, 0.98, 0.66), (0.075, 0.075, 0.11), CREAM, rest_deg=(35, 0, 0))
    bones.ball("bridle", "body", (0, 1.02, 0.60), (0.098, 0.11, 0.025), RED, rest_deg=(35, 0, 0))
    bones.ball("saddle", "body", (0, 0.78, -0.02), (0.15, 0.07, 0.17), RED)
    bones.ball("pommel", "body", (0, 0.85, 0.10), (0.03, 0.04, 0.03), GOLD)
    bones.ball("girth", "body", (0, 0.63, 0.0), (0.185, 0.205, 0.05), RED)
    for side, x in SIDES:
        bones.ball(f"eye {side}", "body", (0.083 * x, 1.11, 0.58), (0.03, 0.04, 0.04), BLACK)
        bones.ball(f"ear {side}", "body", (0.055 * x, 1.20, 0.46), (0.028, 0.075, 0.022), _DAPPLE)
        bones += _straight_leg("front", side, x, 1)
        bones += _straight_leg("hind", side, x, -1)
        bones += _rocker(side, 0.17 * x)
    for i, (y, z) in enumerate(((1.19, 0.41), (1.10, 0.36), (1.00, 0.31), (0.90, 0.25), (0.82, 0.19))):
        bones.ball(f"mane {i}", "body", (0, y, z), (0.05, 0.08, 0.075), _MANE)
    bones.strut("tail 0", "body", (0, 0.75, -0.36), (0, 0.72, -0.50), 0.045, _MANE)
    bones.strut("tail 1", "body", (0, 0.72, -0.50), (0, 0.55, -0.55), 0.06, _MANE)
    bones.strut("tail 2", "body", (0, 0.55, -0.55), (0, 0.38, -0.52), 0.05, _MANE)
    coat = {"marking_frequency": 9.0, "marking_phases": (0.4, 1.7, 5.0)}
    return fitted(Creature(tuple(bones), heading_deg=55.0, **coat))


def _straight_leg(end: str, side: str, x: int, z: int) -> Bones:
    """Return a leg and its hoof; x and z are the signs of its corner."""
    hip, hoof = (0.10 * x, 0.55, 0.245 * z), (0.15 * x, 0.09, 0.42 * z)
    bones = Bones()
    bones.strut(f"leg {end} {side}", "body", hip, hoof, 0.053, _DAPPLE)
    bones.ball(f"hoof {end} {side}", "body", hoof, (0.06, 0.05, 0.065), BLACK)
    return bones


def _rocker(side: str, x: float) -> Bones:
    """Return one runner, an arc that touches the ground at the origin, and its half of two cross bars."""
    radius, reach_deg, n = 1.15, 36, 8

    def at(i: float) -> Vector:
        angle = math.radians(reach_deg * (2 * i / n - 1))
        return x, radius * (1 - math.cos(angle)) + 0.03, radius * math.sin(angle)

    bones = Bones()
    for i in range(n):
        bones.strut(f"runner {side} {i}", "body", at(i), at(i + 1), 0.032, RED)
    for i in (1, n - 1):
        bones.strut(f"bar {side} {i}", "body", at(i), (0, *at(i)[1:]), 0.024, WOOD)
    return bones


def windmill() -> Creature:
    """Return a windmill on a hill whose four thin sails turn once and a half."""
    bones = Bones()
    bones.ball("hill", "", (0, 0, 0), (0.46, 0.08, 0.46), _GRASS, pattern="patches")
    for i, (y, radius) in enumerate(((0.20, 0.235), (0.33, 0.215), (0.46, 0.195), (0.58, 0.175))):
        bones.ball(f"tower {i}", "hill", (0, y, 0), (radius, 0.23, radius), _BRICK)
    bones.ball("gallery", "hill", (0, 0.36, 0), (0.26, 0.022, 0.26), WOOD)
    bones.ball("cap", "hill", (0, 0.79, -0.01), (0.165, 0.13, 0.18), RED)
    bones.ball("door", "hill", (0, 0.15, 0.215), (0.06, 0.11, 0.04), WOOD)
    bones.ball("window", "hill", (0, 0.56, 0.17), (0.035, 0.05, 0.02), BLACK)
    bones.ball("window left", "hill", (0.17, 0.56, 0), (0.02, 0.05, 0.035), BLACK)
    bones.ball("window back", "hill", (0, 0.56, -0.17), (0.035, 0.05, 0.02), BLACK)
    bones.strut("vane", "hill", (0, 0.78, -0.15), (0, 0.66, -0.36), 0.02, WOOD)
    bones.strut("shaft", "hill", (0, 0.79, 0.1), (0, 0.80, 0.27), 0.03, WOOD)
    bones.ball("hub", "hill", (0, 0.80, 0.27), 0.05, GOLD, axis=Z, turns=-1.5)
    for i, paint in enumerate((RED, WHITE, BLUE, GOLD)):
        arm, turn = f"arm {i}", {"rest_deg": (0, 0, 90 * i + 20)}
        bones.limb(arm, "hub", (0, 0, 0), (0, 0.24, 0), (0.021, 0.26, 0.021), WOOD, **turn)
        bones.ball(f"sail {i}", arm, (0.06, 0.29, 0.0), (0.065, 0.19, 0.012), paint)
    return fitted(Creature(tuple(bones), heading_deg=25.0, marking_frequency=5.0))


def carousel() -> Creature:
    """Return a carousel: four ponies canter on thin poles around a drum that hides one of them at first."""
    bones = Bones()
    bones.ball("ground", "", (0, 0, 0), (0.50, 0.05, 0.50), WOOD)
    bones.ball("turntable", "ground", (0, 0.05, 0), (0.47, 0.035, 0.47), CREAM, axis=Y, turns=1)
    bones.ball("drum", "turntable", (0, 0.30, 0), (0.22, 0.40, 0.22), _LIVERY, pattern="stripes")
    bones.ball("roof", "turntable", (0, 0.68, 0), (0.52, 0.05, 0.52), RED)
    bones.ball("dome", "turntable", (0, 0.74, 0), (0.38, 0.10, 0.38), CREAM)
    bones.ball("spire", "turntable", (0, 0.83, 0), (0.20, 0.11, 0.20), RED)
    bones.ball("finial", "turntable", (0, 0.96, 0), 0.04, GOLD)
    for i in range(12):
        place, paint = on_circle(i, 12, 0.47, 0.655), (GOLD, WHITE)[i % 2]
        bones.ball(f"scallop {i}", "turntable", place, (0.075, 0.065, 0.075), paint)
    for i, paint in enumerate(_PONIES):
        bones += _pony(i, len(_PONIES), paint)
    return fitted(Creature(tuple(bones), heading_deg=0.0, marking_frequency=9.0))


def _pony(i: int, n: int, paint: Paint) -> Bones:
    """Return the i-th of n ponies, which looks along the turn and pitches, and its pole."""
    x, y, z = on_circle(i, n, 0.37, 0.33)
    body = f"pony {i}"
    canter = {"rest_deg": (0, 360 * i / n + 90, 0), "swing_deg": 12, "beats": 2, "phase": i / n}
    bones = Bones()
    bones.strut(f"pole {i}", "turntable", (x, 0.06, z), (x, 0.66, z), 0.016, GOLD)
    bones.ball(body, "turntable", (x, y, z), (0.06, 0.06, 0.12), paint, **canter)
    bones.strut(f"neck {i}", body, (0, 0.01, 0.08), (0, 0.12, 0.13), 0.036, paint)
    bones.ball(f"head {i}", body, (0, 0.13, 0.17), (0.033, 0.036, 0.07), paint, rest_deg=(30, 0, 0))
    bones.ball(f"saddle {i}", body, (0, 0.05, 0), (0.05, 0.025, 0.05), WHITE)
    bones.strut(f"tail {i}", body, (0, 0.02, -0.1), (0, -0.06, -0.16), 0.02, BLACK)
    for side, a in SIDES:
        front, hind = (0.03 * a, -0.02, 0.07), (0.03 * a, -0.02, -0.07)
        bones.strut(f"front {i} {side}", body, front, (0.03 * a, -0.13, 0.13), 0.018, paint)
        bones.strut(f"hind {i} {side}", body, hind, (0.03 * a, -0.14, -0.10), 0.018, paint)
    return bones


def aeroplane() -> Creature:
    """Return a toy biplane, one rigid body that rolls over once while it flies across the picture."""
    roll = {"axis": Z, "turns": 1.0, "pattern": "stripes"}
    bones = Bones()
    bones.ball("fuselage", "", (0, 0, 0), (0.115, 0.125, 0.42), _LIVERY, **roll)
    bones.ball("nose", "fuselage", (0, 0, 0.30), (0.12, 0.125, 0.14), GOLD)
    bones.ball("spinner", "fuselage", (0, 0, 0.45), (0.035, 0.035, 0.05), BLACK)
    bones.ball("cockpit", "fuselage", (0, 0.11, 0.02), (0.065, 0.06, 0.10), BLUE)
    bones.ball("pilot", "fuselage", (0, 0.17, -0.01), 0.055, CREAM)
    bones.ball("tail", "fuselage", (0, 0.03, -0.37), (0.24, 0.018, 0.075), GOLD)
    bones.ball("fin", "fuselage", (0, 0.12, -0.37), (0.018, 0.13, 0.08), GOLD)
    for i in range(2):
        turn = {"rest_deg": (0, 0, 180 * i + 35)}
        bones.limb(f"blade {i}", "fuselage", (0, 0, 0.46), (0, 0.09, 0), (0.02, 0.10, 0.01), BLACK, **turn)
    for side, a in SIDES:
        bones.ball(f"lower wing {side}", "fuselage", (0.28 * a, -0.06, 0.08), (0.27, 0.02, 0.10), RED)
        bones.ball(f"upper wing {side}", "fuselage", (0.26 * a, 0.22, 0.10), (0.30, 0.02, 0.11), RED)
        bones.ball(f"wing tip {side}", "fuselage", (0.47 * a, 0.22, 0.10), (0.085, 0.024, 0.085), WHITE)
        bones.ball(f"roundel {side}", "fuselage", (0.46 * a, 0.22, 0.10), (0.035, 0.028, 0.035), BLUE)
        bones.strut(f"strut {side}", "fuselage", (0.38 * a, -0.06, 0.09), (0.38 * a, 0.22, 0.10), 0.012,
                    BLACK)
        bones.strut(f"cabane {side}", "fuselage", (0.07 * a, 0.08, 0.12), (0.09 * a, 0.22, 0.12), 0.012,
                    BLACK)
        bones.strut(f"gear {side}", "fuselage", (0.06 * a, -0.09, 0.15), (0.12 * a, -0.19, 0.17), 0.014,
                    BLACK)
        bones.ball(f"wheel {side}", "fuselage", (0.13 * a, -0.20, 0.17), (0.022, 0.055, 0.055), BLACK)
    return fitted(Creature(tuple(bones), heading_deg=78.0, path=(0, 0, 1.2), marking_frequency=9.0))
