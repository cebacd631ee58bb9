"""Animals of the benchmark beside those with four legs: a flamingo, an owl and a butterfly."""

from __future__ import annotations

from .anatomy import fitted
from .creature import Bone, Creature
from .shapes import BLACK, CREAM, EYE, GOLD, WHITE, Paint, Y, Z, ball, limb, plain, strut

_PINK: Paint = ((0.96, 0.52, 0.56), (0.90, 0.34, 0.44), (0.98, 0.72, 0.72))
_WINGS = plain(0.93, 0.42, 0.48)
_LEG = plain(0.88, 0.40, 0.42)
_PLUMAGE: Paint = ((0.58, 0.40, 0.24), (0.24, 0.14, 0.09), (0.66, 0.48, 0.30))
_BARK: Paint = ((0.50, 0.38, 0.28), (0.34, 0.25, 0.18), (0.50, 0.38, 0.28))
_BREAST: Paint = ((0.94, 0.86, 0.70), (0.40, 0.25, 0.14), (0.94, 0.86, 0.70))
_WING: Paint = ((0.98, 0.62, 0.10), (0.36, 0.08, 0.05), (0.98, 0.62, 0.10))


def flamingo() -> Creature:
    """Return a flamingo that wades on the spot on thin legs and dips its neck."""
    bones = [
        ball("body", "", (0, 0, 0), (0.13, 0.13, 0.21), _PINK, swing_deg=3),
        ball("rump", "body", (0, 0.02, -0.15), (0.09, 0.09, 0.15), _PINK, rest_deg=(-12, 0, 0)),
        ball("wing left", "body", (0.115, 0.02, -0.06), (0.035, 0.10, 0.20), _WINGS, rest_deg=(-10, 6, 0)),
        ball("wing right", "body", (-0.115, 0.02, -0.06), (0.035, 0.10, 0.20), _WINGS, rest_deg=(-10, -6, 0)),
        ball("tail", "body", (0, 0.03, -0.29), (0.05, 0.025, 0.08), plain(0.90, 0.34, 0.44)),
    ]
    bones += _neck()
    for side, a, phase in (("left", 1, 0.0), ("right", -1, 0.5)):
        bones += _leg(side, 0.055 * a, phase)
    return fitted(Creature(tuple(bones), heading_deg=65.0))


def _leg(side: str, x: float, phase: float) -> list[Bone]:
    """Return a leg whose shank, below the heel that looks like a knee, bends forwards."""
    bones = [ball(f"heel {side}", f"shin {side}", (0, -0.26, 0), 0.032, _LEG)]
    pieces = (  # name, parent, joint, centre, radii, paint, rest, swing, phase
        ("thigh", "body", (x, -0.07, 0), (0, -0.09, 0), (0.04, 0.12, 0.045), _PINK, 0, 14, 0.0),
        ("shin", f"thigh {side}", (0, -0.17, 0), (0, -0.13, 0), (0.024, 0.15, 0.024), _LEG, -14, 14, 0.25),
        ("shank", f"shin {side}", (0, -0.26, 0), (0, -0.13, 0), (0.022, 0.15, 0.022), _LEG, 16, 16, -0.25),
        ("foot", f"shank {side}", (0, -0.26, 0), (0, 0, 0.03), (0.045, 0.012, 0.06), _LEG, 0, 8, 0.5),
    )
    legs = []
    for name, parent, joint, centre, radii, paint, rest, swing, lag in pieces:
        motion = {"rest_deg": (rest, 0, 0), "swing_deg": swing, "phase": phase + lag}
        legs.append(limb(f"{name} {side}", parent, joint, centre, radii, paint, **motion))
    return legs + bones


def _neck() -> list[Bone]:
    """Return the neck, an S of nine pieces, each bent against the one before, and the head on it."""
    bones, parent, joint = [], "body", (0.0, 0.05, 0.15)
    for i, bend in enumerate((82, -22, -38, -38, -20, 6, 28, 36, 40)):
        radius, name = 0.064 - 0.0035 * i, f"neck {i}"
        motion = {"rest_deg": (bend, 0, 0), "swing_deg": 2.5, "phase": -0.06 * i}
        bones.append(limb(name, parent, joint, (0, 0.04, 0), (radius, 0.085, radius), _PINK, **motion))
        parent, joint = name, (0.0, 0.08, 0.0)
    return [
        *bones,
        ball("head", "neck 8", (0, 0.11, 0), (0.052, 0.075, 0.055), _PINK, rest_deg=(22, 0, 0)),
        ball("eye left", "head", (0.045, 0.0, 0.015), (0.014, 0.018, 0.018), BLACK),
        ball("eye right", "head", (-0.045, 0.0, 0.015), (0.014, 0.018, 0.018), BLACK),
        strut("beak", "head", (0, 0.05, 0), (0, 0.13, -0.01), 0.034, CREAM),
        strut("beak tip", "beak", (0, 0.07, 0), (0, 0.13, -0.035), 0.026, BLACK),
    ]


def owl() -> Creature:
    """Return an owl on a stump that turns its head: from behind at first, its face to the front at last."""
    spots, stripes = {"pattern": "spots"}, {"pattern": "stripes"}
    about = {"rest_deg": (0, 180, 0), "axis": Y, "turns": -0.5}
    bones = [
        ball("stump", "", (0, 0, 0), (0.33, 0.15, 0.31), _BARK, **stripes),
        ball("body", "stump", (0, 0.45, 0), (0.24, 0.34, 0.22), _PLUMAGE, axis=Z, swing_deg=2, **spots),
        ball("breast", "body", (0, -0.03, 0.05), (0.20, 0.28, 0.19), _BREAST, **spots),
        ball("tail", "body", (0, -0.34, -0.17), (0.09, 0.22, 0.04), _PLUMAGE, rest_deg=(18, 0, 0), **stripes),
        limb("head", "body", (0, 0.28, 0), (0, 0.13, 0), (0.225, 0.19, 0.20), _PLUMAGE, **about, **spots),
        ball("beak", "head", (0, 0.09, 0.215), (0.03, 0.05, 0.035), GOLD, rest_deg=(-15, 0, 0)),
    ]
    for side, a in (("left", 1), ("right", -1)):
        disc, eye, tuft, wing = f"disc {side}", f"eye {side}", f"tuft {side}", f"wing {side}"
        gaze = {"rest_deg": (0, 12 * a, 0), "pattern": "eye"}
        fold = {"rest_deg": (8, 0, 5 * a), "axis": Z, "swing_deg": 5 * a}
        joint, centre = (0.20 * a, 0.14, 0), (0.02 * a, -0.20, -0.03)
        bones += [
            ball(
                disc, "head", (0.085 * a, 0.14, 0.145), (0.105, 0.115, 0.06), CREAM, rest_deg=(0, 20 * a, 0)
            ),
            ball(eye, "head", (0.09 * a, 0.15, 0.185), (0.058, 0.062, 0.035), EYE, **gaze),
            ball(
                tuft, "head", (0.14 * a, 0.30, 0.03), (0.04, 0.10, 0.03), _PLUMAGE, rest_deg=(0, 0, -25 * a)
            ),
            limb(wing, "body", joint, centre, (0.06, 0.28, 0.16), _PLUMAGE, **fold, **stripes),
            ball(f"foot {side}", "stump", (0.08 * a, 0.15, 0.13), (0.05, 0.035, 0.075), GOLD),
        ]
    return fitted(Creature(tuple(bones), heading_deg=10.0, marking_frequency=10.0))


def butterfly() -> Creature:
    """Return a butterfly with patterned wings that beat twice."""
    bones = [
        ball("thorax", "", (0, 0, 0), (0.04, 0.045, 0.09), BLACK, rest_deg=(-50, 0, 0), swing_deg=5),
        ball("abdomen", "thorax", (0, -0.01, -0.17), (0.03, 0.03, 0.13), BLACK),
        ball("head", "thorax", (0, 0.01, 0.11), 0.042, BLACK),
    ]
    for side, a in (("left", 1), ("right", -1)):
        bones += [
            strut(f"feeler {side}", "head", (0.02 * a, 0.02, 0.02), (0.10 * a, 0.06, 0.19), 0.012, BLACK),
            ball(f"club {side}", "head", (0.105 * a, 0.063, 0.20), 0.02, BLACK),
            *_wings(side, a),
        ]
    return fitted(Creature(tuple(bones), heading_deg=160.0, cycles=2, bob=0.03, marking_frequency=9.0))


def _wings(side: str, a: int) -> list[Bone]:
    """Return the two wings of a side, thin black plates with a thicker spotted field inside."""
    fore, hind = f"forewing {side}", f"hindwing {side}"
    beat = {"axis": Z, "swing_deg": 42.0 * a}
    fore_joint, hind_joint = (0.03 * a, 0.02, 0.03), (0.03 * a, 0.015, -0.03)
    fore_beat = {"rest_deg": (0, -18 * a, 12 * a), **beat}
    hind_beat = {"rest_deg": (0, 10 * a, 12 * a), "phase": -0.05, **beat}
    fore_field, hind_field = (0.20, 0.012, 0.115), (0.145, 0.012, 0.12)
    wings = [
        limb(fore, "thorax", fore_joint, (0.25 * a, 0, 0.10), (0.25, 0.008, 0.15), BLACK, **fore_beat),
        ball(f"field of {fore}", fore, (0.23 * a, 0, 0.10), fore_field, _WING, pattern="spots"),
        limb(hind, "thorax", hind_joint, (0.18 * a, 0, -0.12), (0.19, 0.008, 0.16), BLACK, **hind_beat),
        ball(f"field of {hind}", hind, (0.165 * a, 0, -0.11), hind_field, _WING, pattern="spots"),
    ]
    for i, (x, z) in enumerate(((0.42, 0.17), (0.46, 0.10), (0.44, 0.03))):
        wings.append(ball(f"dot {side} {i}", fore, (x * a, 0, z), (0.022, 0.014, 0.018), WHITE))
    return wings
