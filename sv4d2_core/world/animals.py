"""Animals of the benchmark beside those with four legs, and all animals of the training distribution."""

from __future__ import annotations

import math
from dataclasses import replace

from .body import SIDES, Bones, Creature, Y, Z, fitted, walking_animal
from .coat import BLACK, CREAM, GOLD, WHITE, Dice, Paint, Palette, plain

# One part of an object stands on one line where it fits; ruff would spread the others over ten.
# fmt: off
_PINK: Paint = ((0.96, 0.52, 0.56), (0.90, 0.34, 0.44), (0.98, 0.72, 0.72))
_WINGS = plain(0.93, 0.42, 0.48)
_LEG = plain(0.88, 0.40, 0.42)
_PLUMAGE: Paint = ((0.58, 0.40, 0.24), (0.24, 0.14, 0.09), (0.66, 0.48, 0.30))
_BARK: Paint = ((0.50, 0.38, 0.28), (0.34, 0.25, 0.18), (0.50, 0.38, 0.28))
_BREAST: Paint = ((0.94, 0.86, 0.70), (0.40, 0.25, 0.14), (0.94, 0.86, 0.70))
_WING: Paint = ((0.98, 0.62, 0.10), (0.36, 0.08, 0.05), (0.98, 0.62, 0.10))


def flamingo() -> Creature:
    """Return a flamingo that wades on the spot on thin legs and dips its neck."""
    bones = Bones()
    bones.ball("body", "", (0, 0, 0), (0.13, 0.13, 0.21), _PINK, swing_deg=3)
    bones.ball("rump", "body", (0, 0.02, -0.15), (0.09, 0.09, 0.15), _PINK, rest_deg=(-12, 0, 0))
    bones.ball("wing left", "body", (0.115, 0.02, -0.06), (0.035, 0.10, 0.20), _WINGS, rest_deg=(-10, 6, 0))
    bones.ball("wing right", "body", (-0.115, 0.02, -0.06), (0.035, 0.10, 0.20), _WINGS,
               rest_deg=(-10, -6, 0))
    bones.ball("tail", "body", (0, 0.03, -0.29), (0.05, 0.025, 0.08), plain(0.90, 0.34, 0.44))
    bones += _neck()
    for side, a, phase in (("left", 1, 0.0), ("right", -1, 0.5)):
        bones += _leg(side, 0.055 * a, phase)
    return fitted(Creature(tuple(bones), heading_deg=65.0))


def _leg(side: str, x: float, phase: float) -> Bones:
    """Return a leg whose shank, below the heel that looks like a knee, bends forwards."""
    bones = Bones()
    for name, parent, joint, centre, radii, paint, rest, swing, lag in (
        ("thigh", "body", (x, -0.07, 0), (0, -0.09, 0), (0.04, 0.12, 0.045), _PINK, 0, 14, 0.0),
        ("shin", f"thigh {side}", (0, -0.17, 0), (0, -0.13, 0), (0.024, 0.15, 0.024), _LEG, -14, 14, 0.25),
        ("shank", f"shin {side}", (0, -0.26, 0), (0, -0.13, 0), (0.022, 0.15, 0.022), _LEG, 16, 16, -0.25),
        ("foot", f"shank {side}", (0, -0.26, 0), (0, 0, 0.03), (0.045, 0.012, 0.06), _LEG, 0, 8, 0.5),
    ):
        motion = {"rest_deg": (rest, 0, 0), "swing_deg": swing, "phase": phase + lag}
        bones.limb(f"{name} {side}", parent, joint, centre, radii, paint, **motion)
    bones.ball(f"heel {side}", f"shin {side}", (0, -0.26, 0), 0.032, _LEG)
    return bones


def _neck() -> Bones:
    """Return the neck, an S of nine pieces, each bent against the one before, and the head on it."""
    bones, parent, joint = Bones(), "body", (0.0, 0.05, 0.15)
    for i, bend in enumerate((82, -22, -38, -38, -20, 6, 28, 36, 40)):
        radius, name = 0.064 - 0.0035 * i, f"neck {i}"
        motion = {"rest_deg": (bend, 0, 0), "swing_deg": 2.5, "phase": -0.06 * i}
        bones.limb(name, parent, joint, (0, 0.04, 0), (radius, 0.085, radius), _PINK, **motion)
        parent, joint = name, (0.0, 0.08, 0.0)
    bones.ball("head", "neck 8", (0, 0.11, 0), (0.052, 0.075, 0.055), _PINK, rest_deg=(22, 0, 0))
    bones.ball("eye left", "head", (0.045, 0.0, 0.015), (0.014, 0.018, 0.018), BLACK)
    bones.ball("eye right", "head", (-0.045, 0.0, 0.015), (0.014, 0.018, 0.018), BLACK)
    bones.strut("beak", "head", (0, 0.05, 0), (0, 0.13, -0.01), 0.034, CREAM)
    bones.strut("beak tip", "beak", (0, 0.07, 0), (0, 0.13, -0.035), 0.026, BLACK)
    return bones


def owl() -> Creature:
    """Return an owl on a stump that turns its head: from behind at first, its face to the front at last."""
    spots, stripes = {"pattern": "spots"}, {"pattern": "stripes"}
    about = {"rest_deg": (0, 180, 0), "axis": Y, "turns": -0.5}
    bones = Bones()
    bones.ball("stump", "", (0, 0, 0), (0.33, 0.15, 0.31), _BARK, **stripes)
    bones.ball("body", "stump", (0, 0.45, 0), (0.24, 0.34, 0.22), _PLUMAGE, axis=Z, swing_deg=2, **spots)
    bones.ball("breast", "body", (0, -0.03, 0.05), (0.20, 0.28, 0.19), _BREAST, **spots)
    bones.ball("tail", "body", (0, -0.34, -0.17), (0.09, 0.22, 0.04), _PLUMAGE, rest_deg=(18, 0, 0),
               **stripes)
    bones.limb("head", "body", (0, 0.28, 0), (0, 0.13, 0), (0.225, 0.19, 0.20), _PLUMAGE, **about, **spots)
    bones.ball("beak", "head", (0, 0.09, 0.215), (0.03, 0.05, 0.035), GOLD, rest_deg=(-15, 0, 0))
    for side, a in SIDES:
        disc, eye, tuft, wing = f"disc {side}", f"eye {side}", f"tuft {side}", f"wing {side}"
        fold = {"rest_deg": (8, 0, 5 * a), "axis": Z, "swing_deg": 5 * a}
        joint, centre = (0.20 * a, 0.14, 0), (0.02 * a, -0.20, -0.03)
        bones.ball(disc, "head", (0.085 * a, 0.14, 0.145), (0.105, 0.115, 0.06), CREAM,
                   rest_deg=(0, 20 * a, 0))
        bones.eye(eye, "head", (0.09 * a, 0.15, 0.185), (0.058, 0.062, 0.035), 12 * a)
        bones.ball(tuft, "head", (0.14 * a, 0.30, 0.03), (0.04, 0.10, 0.03), _PLUMAGE,
                   rest_deg=(0, 0, -25 * a))
        bones.limb(wing, "body", joint, centre, (0.06, 0.28, 0.16), _PLUMAGE, **fold, **stripes)
        bones.ball(f"foot {side}", "stump", (0.08 * a, 0.15, 0.13), (0.05, 0.035, 0.075), GOLD)
    return fitted(Creature(tuple(bones), heading_deg=10.0, marking_frequency=10.0))


def butterfly() -> Creature:
    """Return a butterfly with patterned wings that beat twice."""
    bones = Bones()
    bones.ball("thorax", "", (0, 0, 0), (0.04, 0.045, 0.09), BLACK, rest_deg=(-50, 0, 0), swing_deg=5)
    bones.ball("abdomen", "thorax", (0, -0.01, -0.17), (0.03, 0.03, 0.13), BLACK)
    bones.ball("head", "thorax", (0, 0.01, 0.11), 0.042, BLACK)
    for side, a in SIDES:
        bones.strut(f"feeler {side}", "head", (0.02 * a, 0.02, 0.02), (0.10 * a, 0.06, 0.19), 0.012, BLACK)
        bones.ball(f"club {side}", "head", (0.105 * a, 0.063, 0.20), 0.02, BLACK)
        bones += _wings(side, a)
    return fitted(Creature(tuple(bones), heading_deg=160.0, cycles=2, bob=0.03, marking_frequency=9.0))


def _wings(side: str, a: int) -> Bones:
    """Return the two wings of a side, thin black plates with a thicker spotted field inside."""
    fore, hind = f"forewing {side}", f"hindwing {side}"
    beat = {"axis": Z, "swing_deg": 42.0 * a}
    fore_joint, hind_joint = (0.03 * a, 0.02, 0.03), (0.03 * a, 0.015, -0.03)
    fore_beat = {"rest_deg": (0, -18 * a, 12 * a), **beat}
    hind_beat = {"rest_deg": (0, 10 * a, 12 * a), "phase": -0.05, **beat}
    fore_field, hind_field = (0.20, 0.012, 0.115), (0.145, 0.012, 0.12)
    wings = Bones()
    wings.limb(fore, "thorax", fore_joint, (0.25 * a, 0, 0.10), (0.25, 0.008, 0.15), BLACK, **fore_beat)
    wings.ball(f"field of {fore}", fore, (0.23 * a, 0, 0.10), fore_field, _WING, pattern="spots")
    wings.limb(hind, "thorax", hind_joint, (0.18 * a, 0, -0.12), (0.19, 0.008, 0.16), BLACK, **hind_beat)
    wings.ball(f"field of {hind}", hind, (0.165 * a, 0, -0.11), hind_field, _WING, pattern="spots")
    for i, (x, z) in enumerate(((0.42, 0.17), (0.46, 0.10), (0.44, 0.03))):
        wings.ball(f"dot {side} {i}", fore, (x * a, 0, z), (0.022, 0.014, 0.018), WHITE)
    return wings


def quadruped(dice: Dice, palette: Palette) -> Creature:
    """Return a walking animal of `make_creature`, two times out of three in the colours of the palette."""
    creature = walking_animal(dice.whole(0, 2**31 - 1))
    if dice.chance(0.33):
        return creature
    old = creature.bones[0].colours
    new = dict(zip(old, palette.main, strict=True))
    pattern = {creature.bones[0].pattern: palette.pattern}
    bones = (
        replace(
            bone,
            colours=tuple(new.get(colour, colour) for colour in bone.colours),
            pattern=pattern.get(bone.pattern, bone.pattern),
        )
        for bone in creature.bones
    )
    return replace(creature, bones=tuple(bones))


def biped(dice: Dice, palette: Palette) -> Creature:
    """Return a toy figure that walks or dances: a person, a bear or a robot."""
    stout, leg, arm = dice.between(0.8, 1.4), dice.between(0.16, 0.26), dice.between(0.14, 0.22)
    head, stride, wave = dice.between(0.12, 0.2), dice.between(15, 38), dice.between(10, 60)
    lift = dice.between(-150, 20)
    w = 0.13 * stout
    bones = Bones(palette)
    bones.ball("hip", "", (0, 0, 0), (w, 0.11, 0.8 * w), palette.second, axis=Y,
               swing_deg=dice.between(0, 14))
    bones.limb("torso", "hip", (0, 0.04, 0), (0, 0.15, 0), (1.05 * w, 0.2, 0.75 * w), axis=Z,
               swing_deg=dice.between(0, 9))
    bones.limb("head", "torso", (0, 0.33, 0), (0, 0.8 * head, 0), (head, head * dice.between(0.9, 1.2), head),
               palette.light if dice.chance(0.5) else palette.main, axis=dice.choose((Y, Z)),
               swing_deg=dice.between(2, 16), beats=dice.choose((1, 2)))
    bones += _face(dice, palette, head)
    for (side, a), phase in zip(SIDES, (0.0, 0.5), strict=True):
        raised = lift if dice.chance(0.7) else 0.0
        bones.limb(f"arm {side}", "torso", (0.95 * w * a, 0.27, 0), (0, -arm / 2, 0),
                   (0.05, 0.65 * arm, 0.05), rest_deg=(raised, 0, 14 * a), swing_deg=wave, phase=phase + 0.5)
        bones.limb(f"forearm {side}", f"arm {side}", (0, -arm, 0), (0, -arm / 2, 0),
                   (0.042, 0.6 * arm, 0.042), palette.second, rest_deg=(-25, 0, 0), swing_deg=-0.5 * wave,
                   phase=phase + 0.4)
        bones.ball(f"hand {side}", f"forearm {side}", (0, -1.1 * arm, 0), 0.058, palette.light)
        bones.limb(f"thigh {side}", "hip", (0.55 * w * a, -0.05, 0), (0, -leg / 2, 0),
                   (0.068, 0.65 * leg, 0.07), palette.second, swing_deg=stride, phase=phase)
        bones.limb(f"shank {side}", f"thigh {side}", (0, -leg, 0), (0, -leg / 2, 0),
                   (0.055, 0.62 * leg, 0.058), palette.second, rest_deg=(stride * 0.7, 0, 0),
                   swing_deg=0.7 * stride, phase=phase - 0.25)
        bones.ball(f"foot {side}", f"shank {side}", (0, -leg, 0.04), (0.062, 0.045, 0.1), palette.dark)
    return Creature(tuple(bones), bob=dice.between(0, 0.03), marking_frequency=dice.between(5, 11))


def _face(dice: Dice, palette: Palette, r: float) -> Bones:
    """Return eyes, nose and either ears, a hat or hair for a round head of radius r."""
    bones = Bones(palette)
    bones.ball("nose", "head", (0, 0.75 * r, r), (0.2 * r, 0.16 * r, 0.2 * r), palette.accent)
    topping = dice.choose(("ears", "hat", "hair", "antenna"))
    for side, a in SIDES:
        at = (0.42 * r * a, 1.05 * r, 0.82 * r)
        bones.eye(f"eye {side}", "head", at, (0.22 * r, 0.25 * r, 0.2 * r), 24 * a, -4)
        if topping == "ears":
            ear = (0.75 * r * a, 1.6 * r, 0)
            bones.ball(f"ear {side}", "head", ear, (0.4 * r, 0.42 * r, 0.2 * r), palette.second)
    if topping == "hat":
        bones.ball("brim", "head", (0, 1.45 * r, 0), (1.2 * r, 0.12 * r, 1.2 * r), palette.accent)
        bones.ball("crown", "head", (0, 1.75 * r, 0), (0.7 * r, 0.55 * r, 0.7 * r), palette.accent)
    if topping == "hair":
        bones.ball("hair", "head", (0, 1.1 * r, -0.2 * r), (1.08 * r, r, 0.98 * r), palette.dark)
        bones.ball("bun", "head", (0, 1.75 * r, -0.7 * r), 0.45 * r, palette.dark)
    if topping == "antenna":
        bones.strut("rod", "head", (0, 1.6 * r, 0), (0, 2.4 * r, 0), 0.1 * r, palette.dark)
        bones.ball("bulb", "head", (0, 2.5 * r, 0), 0.22 * r, palette.accent)
    return bones


def runner(dice: Dice, palette: Palette) -> Creature:
    """Return an animal on two legs with a long tail: from ostrich to dinosaur."""
    neck, n_neck, n_tail = dice.between(0.06, 0.12), dice.whole(2, 4), dice.whole(2, 5)
    leg, stride, sway = dice.between(0.17, 0.27), dice.between(18, 36), dice.between(3, 12)
    lean = dice.between(10, 60)
    fat, bend = dice.between(0.8, 1.2), dice.between(-20, 15)
    bones = Bones(palette)
    bones.ball("body", "", (0, 0, 0), (0.15 * fat, 0.16 * fat, 0.24), swing_deg=4, beats=2)
    parent, joint = "body", (0.0, 0.06, 0.17)
    for i in range(n_neck):
        rest = (lean if i == 0 else bend, 0.0, 0.0)
        r = 0.1 - 0.01 * i
        bones.limb(f"neck {i}", parent, joint, (0, neck / 2, 0), (r, 0.06 + 0.5 * neck, r), rest_deg=rest,
                   swing_deg=sway, beats=2, phase=-0.1 * i)
        parent, joint = f"neck {i}", (0.0, neck, 0.0)
    level = -lean - (n_neck - 1) * bend
    bones.ball("head", parent, (0, neck + 0.04, 0.03), (0.095, 0.09, 0.12), rest_deg=(level, 0, 0),
               swing_deg=5, beats=2)
    bones.ball("snout", "head", (0, -0.02, 0.13), (0.06, 0.045, 0.1), palette.accent)
    if dice.chance(0.5):
        bones.ball("crest", "head", (0, 0.09, -0.02), (0.02, 0.08, 0.09), palette.accent)
    parent, joint = "body", (0.0, 0.04, -0.18)
    for i in range(n_tail):
        r = 0.1 * fat * (1 - i / (n_tail + 1))
        bones.limb(f"tail {i}", parent, joint, (0, 0, -0.07), (r, r, 0.12), axis=Y,
                   rest_deg=(dice.between(-8, 14), 0, 0), swing_deg=1.5 * sway, phase=-0.1 * i)
        parent, joint = f"tail {i}", (0.0, 0.0, -0.14)
    for (side, a), phase in zip(SIDES, (0.0, 0.5), strict=True):
        bones.eye(f"eye {side}", "head", (0.068 * a, 0.035, 0.055), 0.036, 50 * a, -4)
        bones.limb(f"arm {side}", "body", (0.14 * a, 0.0, 0.1), (0, -0.08, -0.05), (0.03, 0.08, 0.13),
                   palette.second, rest_deg=(-10, 0, 10 * a), axis=Z, swing_deg=sway * a, beats=2)
        bones.limb(f"thigh {side}", "body", (0.1 * fat * a, -0.05, 0), (0, -leg / 2, 0),
                   (0.06, 0.7 * leg, 0.08), rest_deg=(-18, 0, 0), swing_deg=stride, phase=phase)
        bones.limb(f"shank {side}", f"thigh {side}", (0, -leg, 0), (0, -leg / 2, 0),
                   (0.036, 0.62 * leg, 0.04), palette.second, rest_deg=(34, 0, 0), swing_deg=0.8 * stride,
                   phase=phase - 0.25)
        bones.ball(f"foot {side}", f"shank {side}", (0, -leg, 0.05), (0.06, 0.025, 0.1), palette.second,
                   rest_deg=(-16, 0, 0))
    return Creature(tuple(bones), bob=dice.between(0.005, 0.03), marking_frequency=dice.between(5, 11))


def flier(dice: Dice, palette: Palette) -> Creature:
    """Return a bird, bat or dragon that beats its wings, each of two pieces."""
    span, chord, beat = dice.between(0.2, 0.36), dice.between(0.09, 0.18), dice.between(15, 48)
    fat, head, pitch = dice.between(0.75, 1.3), dice.between(0.08, 0.13), dice.between(-35, 10)
    n_tail = dice.whole(1, 4)
    bones = Bones(palette)
    bones.ball("body", "", (0, 0, 0), (0.11 * fat, 0.11 * fat, 0.22), rest_deg=(pitch, 0, 0), swing_deg=4,
               phase=0.5)
    bones.ball("head", "body", (0, 0.07, 0.22), head, rest_deg=(-pitch, 0, 0), axis=Y,
               swing_deg=dice.between(0, 20))
    bones.ball("beak", "head", (0, -0.01, head), (0.35 * head, 0.3 * head, 0.7 * head), palette.accent)
    parent, joint = "body", (0.0, 0.02, -0.17)
    for i in range(n_tail):
        bones.limb(f"tail {i}", parent, joint, (0, 0, -0.06), (0.08 - 0.012 * i, 0.025, 0.1), palette.second,
                   swing_deg=dice.between(5, 16), phase=-0.15 * i)
        parent, joint = f"tail {i}", (0.0, 0.0, -0.11)
    sweep, fold = dice.between(-25, 20), dice.between(-0.25, -0.08)
    for side, a in SIDES:
        wing, tip = f"wing {side}", f"wing tip {side}"
        flap = {"axis": Z, "swing_deg": beat * a}
        bones.eye(f"eye {side}", "head", (0.6 * head * a, 0.3 * head, 0.62 * head), 0.28 * head, 40 * a, -5)
        bones.limb(wing, "body", (0.07 * fat * a, 0.04, 0.06), (span / 2 * a, 0, -0.02),
                   (0.62 * span, 0.022, chord), rest_deg=(0, sweep * a, 8 * a), **flap)
        bones.limb(tip, wing, (span * a, 0, 0), (span / 2 * a, 0, -0.05), (0.62 * span, 0.016, 0.8 * chord),
                   palette.second, rest_deg=(0, 14 * a, -6 * a), phase=fold, **flap)
        bones.ball(f"feather {side}", tip, (0.75 * span * a, 0, -0.08), (0.3 * span, 0.018, 0.5 * chord),
                   palette.dark)
        bones.strut(f"leg {side}", "body", (0.05 * a, -0.07, -0.04), (0.05 * a, -0.17, -0.1), 0.018,
                    palette.accent, swing_deg=8)
    return Creature(tuple(bones), bob=dice.between(0, 0.03), marking_frequency=dice.between(5, 11))


def insect(dice: Dice, palette: Palette) -> Creature:
    """Return a beetle, ant, spider or bee: three or four pairs of legs, with or without wings."""
    n_pairs, winged = dice.choose((3, 3, 4)), dice.chance(0.45)
    back, slim = dice.between(0.13, 0.22), dice.between(0.75, 1.15)
    reach, stride, hum = dice.between(0.13, 0.22), dice.between(10, 24), dice.between(20, 45)
    bones = Bones(palette)
    bones.ball("thorax", "", (0, 0, 0), (0.11 * slim, 0.09, 0.12), palette.second)
    bones.limb("abdomen", "thorax", (0, 0.01, -0.08), (0, 0.02, -0.9 * back),
               (0.8 * slim * back, 0.75 * back, back), swing_deg=dice.between(1, 8), beats=2)
    bones.limb("head", "thorax", (0, 0.01, 0.1), (0, 0, 0.06), (0.1, 0.085, 0.09), palette.dark, axis=Y,
               swing_deg=dice.between(3, 14))
    for side, a in SIDES:
        bones.eye(f"eye {side}", "head", (0.07 * a, 0.04, 0.09), 0.04, 45 * a)
        bones.strut(f"feeler {side}", "head", (0.04 * a, 0.06, 0.1), (0.13 * a, 0.17, 0.24), 0.013,
                    palette.accent, swing_deg=10, beats=2, phase=0.2 * a)
        for i in range(n_pairs):
            spread = 55 - 110 * i / (n_pairs - 1)
            phase = 0.5 * ((i + (a > 0)) % 2)
            leg = f"leg {i} {side}"
            bones.limb(leg, "thorax", (0.07 * a, -0.01, 0.07 - 0.14 * i / (n_pairs - 1)),
                       (reach / 2 * a, 0, 0), (0.62 * reach, 0.024, 0.024), palette.dark, axis=Y,
                       rest_deg=(0, -spread * a, 24 * a), swing_deg=stride, phase=phase)
            bones.limb(f"foot {i} {side}", leg, (reach * a, 0, 0), (reach / 2 * a, 0, 0),
                       (0.65 * reach, 0.018, 0.018), palette.accent, axis=Z, rest_deg=(0, 0, -88 * a),
                       swing_deg=0.6 * stride * a, phase=phase + 0.25)
        if winged:
            bones.limb(f"wing {side}", "thorax", (0.04 * a, 0.08, 0), (0.19 * a, 0, -0.05),
                       (0.2, 0.012, 0.09), palette.light, axis=Z, rest_deg=(0, 25 * a, 25 * a),
                       swing_deg=hum * a, beats=2)
    return Creature(tuple(bones), marking_frequency=dice.between(5, 12))


def swimmer(dice: Dice, palette: Palette) -> Creature:
    """Return a fish, eel or snake: a chain that bends from side to side, the wave running to its tail."""
    n, fat, tall = dice.whole(4, 11), dice.between(0.10, 0.19), dice.between(0.7, 1.6)
    fins = n <= 7
    fat, step = (fat, 0.12) if fins else (0.65 * fat, 0.09)
    sway = (dice.between(60, 130) if fins else dice.between(120, 240)) / n
    lag = dice.between(0.08, 0.16)
    bones, parent, joint = Bones(palette), "", (0.0, 0.0, 0.0)
    for i in range(n):
        r = fat * math.sqrt(max(1 - ((i - 0.25 * n) / (0.85 * n)) ** 2, 0.1))
        bones.limb(f"body {i}", parent, joint, (0, 0, -step / 2), (r, tall * r if fins else r, 1.05 * step),
                   axis=Y, swing_deg=sway * (0.4 + i / n), phase=-lag * i)
        parent, joint = f"body {i}", (0.0, 0.0, -step)
    bones.ball("snout", "body 0", (0, -0.01, 0.06), (0.7 * fat, 0.6 * fat * (tall if fins else 1), 0.09),
               palette.second)
    if fins:
        for sign in (1, -1):
            bones.limb(f"fluke {sign}", parent, joint, (0, 0.09 * sign, -0.07), (0.018, 0.12, 0.06),
                       palette.accent, rest_deg=(25 * sign, 0, 0), axis=Y, swing_deg=1.5 * sway,
                       phase=-lag * n)
        bones.ball("dorsal", "body 1", (0, tall * fat, -0.05), (0.016, 0.1, 0.12), palette.accent,
                   rest_deg=(-20, 0, 0))
    for side, a in SIDES:
        bones.eye(f"eye {side}", "body 0", (0.72 * fat * a, 0.35 * fat, 0.03), 0.32 * fat, 55 * a)
        if fins:
            bones.limb(f"fin {side}", "body 1", (0.85 * fat * a, -0.2 * fat, 0), (0.08 * a, 0, -0.04),
                       (0.1, 0.014, 0.06), palette.accent, rest_deg=(0, 25 * a, -25 * a), axis=Z,
                       swing_deg=dice.between(10, 35) * a)
        else:
            bones.ball(f"tongue {side}", "body 0", (0.012 * a, -0.02, 0.16), (0.01, 0.008, 0.05), BLACK,
                       rest_deg=(0, 14 * a, 0))
    return Creature(tuple(bones), bob=dice.between(0, 0.02), marking_frequency=dice.between(4, 11))
