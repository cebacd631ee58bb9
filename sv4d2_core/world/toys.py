"""Toys and machines of the benchmark: rocking horse, windmill, carousel, robot arm and aeroplane."""

from __future__ import annotations

import math

from .anatomy import fitted
from .creature import Bone, Creature, Vector
from .shapes import (
    BLACK,
    BLUE,
    CREAM,
    GOLD,
    GREY,
    RED,
    STEEL,
    WHITE,
    WOOD,
    Paint,
    Y,
    Z,
    ball,
    limb,
    on_circle,
    plain,
    strut,
)

_DAPPLE: Paint = ((0.93, 0.91, 0.88), (0.22, 0.24, 0.32), (0.86, 0.84, 0.82))
_MANE = plain(0.40, 0.16, 0.08)
_BRICK: Paint = ((0.93, 0.90, 0.84), (0.72, 0.70, 0.68), (0.93, 0.90, 0.84))
_GRASS: Paint = ((0.42, 0.66, 0.28), (0.26, 0.48, 0.20), (0.34, 0.26, 0.18))
_HAZARD: Paint = ((0.97, 0.78, 0.10), (0.09, 0.09, 0.10), (0.97, 0.78, 0.10))
_ORANGE = plain(0.95, 0.45, 0.08)
_LIVERY: Paint = ((0.92, 0.15, 0.12), (0.97, 0.95, 0.90), (0.92, 0.15, 0.12))
_PONIES = (plain(0.30, 0.62, 0.82), plain(0.94, 0.60, 0.18), plain(0.60, 0.42, 0.78), plain(0.40, 0.70, 0.38))


def rocking_horse() -> Creature:
    """Return a dappled rocking horse: one rigid body that rocks about where it touches the ground."""
    spots = {"pattern": "spots"}
    bones = [
        limb("body", "", (0, 0, 0), (0, 0.62, 0), (0.17, 0.19, 0.34), _DAPPLE, swing_deg=8, **spots),
        ball("chest", "body", (0, 0.65, 0.19), (0.165, 0.20, 0.20), _DAPPLE, **spots),
        ball("rump", "body", (0, 0.66, -0.20), (0.18, 0.20, 0.20), _DAPPLE, **spots),
        strut("neck", "body", (0, 0.70, 0.27), (0, 1.05, 0.45), 0.105, _DAPPLE, **spots),
        ball("head", "body", (0, 1.07, 0.52), (0.10, 0.115, 0.15), _DAPPLE, rest_deg=(30, 0, 0)),
        ball("muzzle", "body", (0, 0.98, 0.66), (0.075, 0.075, 0.11), CREAM, rest_deg=(35, 0, 0)),
        ball("bridle", "body", (0, 1.02, 0.60), (0.098, 0.11, 0.025), RED, rest_deg=(35, 0, 0)),
        ball("saddle", "body", (0, 0.78, -0.02), (0.15, 0.07, 0.17), RED),
        ball("pommel", "body", (0, 0.85, 0.10), (0.03, 0.04, 0.03), GOLD),
        ball("girth", "body", (0, 0.63, 0.0), (0.185, 0.205, 0.05), RED),
    ]
    for side, x in (("left", 1), ("right", -1)):
        bones += [
            ball(f"eye {side}", "body", (0.083 * x, 1.11, 0.58), (0.03, 0.04, 0.04), BLACK),
            ball(f"ear {side}", "body", (0.055 * x, 1.20, 0.46), (0.028, 0.075, 0.022), _DAPPLE),
            *_straight_leg("front", side, x, 1),
            *_straight_leg("hind", side, x, -1),
            *_rocker(side, 0.17 * x),
        ]
    for i, (y, z) in enumerate(((1.19, 0.41), (1.10, 0.36), (1.00, 0.31), (0.90, 0.25), (0.82, 0.19))):
        bones.append(ball(f"mane {i}", "body", (0, y, z), (0.05, 0.08, 0.075), _MANE))
    bones += [
        strut("tail 0", "body", (0, 0.75, -0.36), (0, 0.72, -0.50), 0.045, _MANE),
        strut("tail 1", "body", (0, 0.72, -0.50), (0, 0.55, -0.55), 0.06, _MANE),
        strut("tail 2", "body", (0, 0.55, -0.55), (0, 0.38, -0.52), 0.05, _MANE),
    ]
    coat = {"marking_frequency": 9.0, "marking_phases": (0.4, 1.7, 5.0)}
    return fitted(Creature(tuple(bones), heading_deg=55.0, **coat))


def _straight_leg(end: str, side: str, x: int, z: int) -> list[Bone]:
    """Return a leg and its hoof; x and z are the signs of its corner."""
    hip, hoof = (0.10 * x, 0.55, 0.245 * z), (0.15 * x, 0.09, 0.42 * z)
    return [
        strut(f"leg {end} {side}", "body", hip, hoof, 0.053, _DAPPLE),
        ball(f"hoof {end} {side}", "body", hoof, (0.06, 0.05, 0.065), BLACK),
    ]


def _rocker(side: str, x: float, radius: float = 1.15, reach_deg: float = 36, n: int = 8) -> list[Bone]:
    """Return one runner, an arc that touches the ground at the origin, and its half of two cross bars."""

    def at(i: float) -> Vector:
        angle = math.radians(reach_deg * (2 * i / n - 1))
        return x, radius * (1 - math.cos(angle)) + 0.03, radius * math.sin(angle)

    runner = [strut(f"runner {side} {i}", "body", at(i), at(i + 1), 0.032, RED) for i in range(n)]
    bars = [strut(f"bar {side} {i}", "body", at(i), (0, *at(i)[1:]), 0.024, WOOD) for i in (1, n - 1)]
    return runner + bars


def windmill() -> Creature:
    """Return a windmill on a hill whose four thin sails turn once and a half."""
    bones = [ball("hill", "", (0, 0, 0), (0.46, 0.08, 0.46), _GRASS, pattern="patches")]
    for i, (y, radius) in enumerate(((0.20, 0.235), (0.33, 0.215), (0.46, 0.195), (0.58, 0.175))):
        bones.append(ball(f"tower {i}", "hill", (0, y, 0), (radius, 0.23, radius), _BRICK))
    bones += [
        ball("gallery", "hill", (0, 0.36, 0), (0.26, 0.022, 0.26), WOOD),
        ball("cap", "hill", (0, 0.79, -0.01), (0.165, 0.13, 0.18), RED),
        ball("door", "hill", (0, 0.15, 0.215), (0.06, 0.11, 0.04), WOOD),
        ball("window", "hill", (0, 0.56, 0.17), (0.035, 0.05, 0.02), BLACK),
        ball("window left", "hill", (0.17, 0.56, 0), (0.02, 0.05, 0.035), BLACK),
        ball("window back", "hill", (0, 0.56, -0.17), (0.035, 0.05, 0.02), BLACK),
        strut("vane", "hill", (0, 0.78, -0.15), (0, 0.66, -0.36), 0.02, WOOD),
        strut("shaft", "hill", (0, 0.79, 0.1), (0, 0.80, 0.27), 0.03, WOOD),
        ball("hub", "hill", (0, 0.80, 0.27), 0.05, GOLD, axis=Z, turns=-1.5),
    ]
    for i, paint in enumerate((RED, WHITE, BLUE, GOLD)):
        arm, turn = f"arm {i}", {"rest_deg": (0, 0, 90 * i + 20)}
        bones.append(limb(arm, "hub", (0, 0, 0), (0, 0.24, 0), (0.021, 0.26, 0.021), WOOD, **turn))
        bones.append(ball(f"sail {i}", arm, (0.06, 0.29, 0.0), (0.065, 0.19, 0.012), paint))
    return fitted(Creature(tuple(bones), heading_deg=25.0, marking_frequency=5.0))


def carousel() -> Creature:
    """Return a carousel: four ponies canter on thin poles around a drum that hides one of them at first."""
    bones = [
        ball("ground", "", (0, 0, 0), (0.50, 0.05, 0.50), WOOD),
        ball("turntable", "ground", (0, 0.05, 0), (0.47, 0.035, 0.47), CREAM, axis=Y, turns=1),
        ball("drum", "turntable", (0, 0.30, 0), (0.22, 0.40, 0.22), _LIVERY, pattern="stripes"),
        ball("roof", "turntable", (0, 0.68, 0), (0.52, 0.05, 0.52), RED),
        ball("dome", "turntable", (0, 0.74, 0), (0.38, 0.10, 0.38), CREAM),
        ball("spire", "turntable", (0, 0.83, 0), (0.20, 0.11, 0.20), RED),
        ball("finial", "turntable", (0, 0.96, 0), 0.04, GOLD),
    ]
    for i in range(12):
        place, paint = on_circle(i, 12, 0.47, 0.655), (GOLD, WHITE)[i % 2]
        bones.append(ball(f"scallop {i}", "turntable", place, (0.075, 0.065, 0.075), paint))
    for i, paint in enumerate(_PONIES):
        bones += _pony(i, len(_PONIES), paint)
    return fitted(Creature(tuple(bones), heading_deg=0.0, marking_frequency=9.0))


def _pony(i: int, n: int, paint: Paint) -> list[Bone]:
    """Return the i-th of n ponies, which looks along the turn and pitches, and its pole."""
    x, y, z = on_circle(i, n, 0.37, 0.33)
    body = f"pony {i}"
    canter = {"rest_deg": (0, 360 * i / n + 90, 0), "swing_deg": 12, "beats": 2, "phase": i / n}
    bones = [
        strut(f"pole {i}", "turntable", (x, 0.06, z), (x, 0.66, z), 0.016, GOLD),
        ball(body, "turntable", (x, y, z), (0.06, 0.06, 0.12), paint, **canter),
        strut(f"neck {i}", body, (0, 0.01, 0.08), (0, 0.12, 0.13), 0.036, paint),
        ball(f"head {i}", body, (0, 0.13, 0.17), (0.033, 0.036, 0.07), paint, rest_deg=(30, 0, 0)),
        ball(f"saddle {i}", body, (0, 0.05, 0), (0.05, 0.025, 0.05), WHITE),
        strut(f"tail {i}", body, (0, 0.02, -0.1), (0, -0.06, -0.16), 0.02, BLACK),
    ]
    for side, a in (("left", 1), ("right", -1)):
        front, hind = (0.03 * a, -0.02, 0.07), (0.03 * a, -0.02, -0.07)
        bones.append(strut(f"front {i} {side}", body, front, (0.03 * a, -0.13, 0.13), 0.018, paint))
        bones.append(strut(f"hind {i} {side}", body, hind, (0.03 * a, -0.14, -0.10), 0.018, paint))
    return bones


def robot_arm() -> Creature:
    """Return an industrial robot arm that swings a ball slowly from side to side."""
    droop = {"rest_deg": (70, 0, 0), "swing_deg": 12}
    bones = [
        ball("base", "", (0, 0, 0), (0.27, 0.09, 0.27), _HAZARD, pattern="stripes"),
        ball("turret", "base", (0, 0.11, 0), (0.17, 0.12, 0.17), GREY, axis=Y, swing_deg=28, phase=0.1),
        ball("shoulder", "turret", (0, 0.17, 0), (0.15, 0.10, 0.10), STEEL, swing_deg=7, phase=0.3),
        strut("upper arm", "shoulder", (0, 0, 0), (0, 0.46, -0.16), 0.085, _ORANGE),
        ball("elbow", "upper arm", (0, 0.49, 0), (0.115, 0.075, 0.075), STEEL, swing_deg=9, phase=0.55),
        strut("forearm", "elbow", (0, 0, 0), (0, 0.10, 0.46), 0.066, _ORANGE),
        ball("motor", "elbow", (0, 0.03, -0.10), (0.06, 0.06, 0.09), GREY),
        ball("wrist", "forearm", (0, 0.48, 0), (0.07, 0.05, 0.05), STEEL, **droop),
        strut("hand", "wrist", (0, 0, 0), (0, 0.1, 0), 0.04, GREY),
        ball("load", "hand", (0, 0.19, 0), 0.085, BLUE),
    ]
    for i, (a, b) in enumerate(((1, 0), (-1, 0), (0, 1), (0, -1))):
        root, knuckle, tip = (0.03 * a, 0.08, 0.03 * b), (0.1 * a, 0.17, 0.1 * b), (0.07 * a, 0.27, 0.07 * b)
        bones.append(strut(f"finger {i}", "hand", root, knuckle, 0.02, BLACK))
        bones.append(strut(f"tip {i}", "hand", knuckle, tip, 0.018, BLACK))
    return fitted(Creature(tuple(bones), heading_deg=50.0, marking_frequency=9.0))


def aeroplane() -> Creature:
    """Return a toy biplane, one rigid body that rolls over once while it flies across the picture."""
    roll = {"axis": Z, "turns": 1.0, "pattern": "stripes"}
    bones = [
        ball("fuselage", "", (0, 0, 0), (0.115, 0.125, 0.42), _LIVERY, **roll),
        ball("nose", "fuselage", (0, 0, 0.30), (0.12, 0.125, 0.14), GOLD),
        ball("spinner", "fuselage", (0, 0, 0.45), (0.035, 0.035, 0.05), BLACK),
        ball("cockpit", "fuselage", (0, 0.11, 0.02), (0.065, 0.06, 0.10), BLUE),
        ball("pilot", "fuselage", (0, 0.17, -0.01), 0.055, CREAM),
        ball("tail", "fuselage", (0, 0.03, -0.37), (0.24, 0.018, 0.075), GOLD),
        ball("fin", "fuselage", (0, 0.12, -0.37), (0.018, 0.13, 0.08), GOLD),
    ]
    for i in range(2):
        turn = {"rest_deg": (0, 0, 180 * i + 35)}
        bones.append(
            limb(f"blade {i}", "fuselage", (0, 0, 0.46), (0, 0.09, 0), (0.02, 0.10, 0.01), BLACK, **turn)
        )
    for side, a in (("left", 1), ("right", -1)):
        bones += [
            ball(f"lower wing {side}", "fuselage", (0.28 * a, -0.06, 0.08), (0.27, 0.02, 0.10), RED),
            ball(f"upper wing {side}", "fuselage", (0.26 * a, 0.22, 0.10), (0.30, 0.02, 0.11), RED),
            ball(f"wing tip {side}", "fuselage", (0.47 * a, 0.22, 0.10), (0.085, 0.024, 0.085), WHITE),
            ball(f"roundel {side}", "fuselage", (0.46 * a, 0.22, 0.10), (0.035, 0.028, 0.035), BLUE),
            strut(f"strut {side}", "fuselage", (0.38 * a, -0.06, 0.09), (0.38 * a, 0.22, 0.10), 0.012, BLACK),
            strut(f"cabane {side}", "fuselage", (0.07 * a, 0.08, 0.12), (0.09 * a, 0.22, 0.12), 0.012, BLACK),
            strut(f"gear {side}", "fuselage", (0.06 * a, -0.09, 0.15), (0.12 * a, -0.19, 0.17), 0.014, BLACK),
            ball(f"wheel {side}", "fuselage", (0.13 * a, -0.20, 0.17), (0.022, 0.055, 0.055), BLACK),
        ]
    return fitted(Creature(tuple(bones), heading_deg=78.0, path=(0, 0, 1.2), marking_frequency=9.0))
