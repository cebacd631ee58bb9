"""Draws animals of the training distribution: four-legged, two-legged, winged, six-legged, swimming."""

from __future__ import annotations

import math
from dataclasses import replace

from .anatomy import make_creature
from .creature import Bone, Creature
from .dice import Dice
from .palette import Palette
from .shapes import BLACK, EYE, SIDES, Y, Z, ball, limb, strut


def quadruped(dice: Dice, palette: Palette) -> Creature:
    """Return a walking animal of `make_creature`, two times out of three in the colours of the palette."""
    creature = make_creature(dice.whole(0, 2**31 - 1))
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
    lift, coat = dice.between(-150, 20), {"pattern": palette.pattern}
    w = 0.13 * stout
    bones = [
        ball("hip", "", (0, 0, 0), (w, 0.11, 0.8 * w), palette.second, axis=Y, swing_deg=dice.between(0, 14)),
        limb("torso", "hip", (0, 0.04, 0), (0, 0.15, 0), (1.05 * w, 0.2, 0.75 * w), palette.main, axis=Z,
             swing_deg=dice.between(0, 9), **coat),
        limb("head", "torso", (0, 0.33, 0), (0, 0.8 * head, 0), (head, head * dice.between(0.9, 1.2), head),
             palette.light if dice.chance(0.5) else palette.main, axis=dice.choose((Y, Z)),
             swing_deg=dice.between(2, 16), beats=dice.choose((1, 2))),
        *_face(dice, palette, head),
    ]  # fmt: skip
    for (side, a), phase in zip(SIDES, (0.0, 0.5), strict=True):
        raised = lift if dice.chance(0.7) else 0.0
        bones += [
            limb(f"arm {side}", "torso", (0.95 * w * a, 0.27, 0), (0, -arm / 2, 0), (0.05, 0.65 * arm, 0.05),
                 palette.main, rest_deg=(raised, 0, 14 * a), swing_deg=wave, phase=phase + 0.5, **coat),
            limb(f"forearm {side}", f"arm {side}", (0, -arm, 0), (0, -arm / 2, 0), (0.042, 0.6 * arm, 0.042),
                 palette.second, rest_deg=(-25, 0, 0), swing_deg=-0.5 * wave, phase=phase + 0.4),
            ball(f"hand {side}", f"forearm {side}", (0, -1.1 * arm, 0), 0.058, palette.light),
            limb(f"thigh {side}", "hip", (0.55 * w * a, -0.05, 0), (0, -leg / 2, 0),
                 (0.068, 0.65 * leg, 0.07), palette.second, swing_deg=stride, phase=phase),
            limb(f"shank {side}", f"thigh {side}", (0, -leg, 0), (0, -leg / 2, 0), (0.055, 0.62 * leg, 0.058),
                 palette.second, rest_deg=(stride * 0.7, 0, 0), swing_deg=0.7 * stride, phase=phase - 0.25),
            ball(f"foot {side}", f"shank {side}", (0, -leg, 0.04), (0.062, 0.045, 0.1), palette.dark),
        ]  # fmt: skip
    return Creature(tuple(bones), bob=dice.between(0, 0.03), marking_frequency=dice.between(5, 11))


def _face(dice: Dice, palette: Palette, r: float) -> list[Bone]:
    """Return eyes, nose and either ears, a hat or hair for a round head of radius r."""
    bones = [ball("nose", "head", (0, 0.75 * r, r), (0.2 * r, 0.16 * r, 0.2 * r), palette.accent)]
    topping = dice.choose(("ears", "hat", "hair", "antenna"))
    for side, a in SIDES:
        at = (0.42 * r * a, 1.05 * r, 0.82 * r)
        gaze = {"rest_deg": (-4, 24 * a, 0), "pattern": "eye"}
        bones.append(ball(f"eye {side}", "head", at, (0.22 * r, 0.25 * r, 0.2 * r), EYE, **gaze))
        if topping == "ears":
            ear = (0.75 * r * a, 1.6 * r, 0)
            bones.append(ball(f"ear {side}", "head", ear, (0.4 * r, 0.42 * r, 0.2 * r), palette.second))
    if topping == "hat":
        bones.append(ball("brim", "head", (0, 1.45 * r, 0), (1.2 * r, 0.12 * r, 1.2 * r), palette.accent))
        bones.append(ball("crown", "head", (0, 1.75 * r, 0), (0.7 * r, 0.55 * r, 0.7 * r), palette.accent))
    if topping == "hair":
        bones.append(ball("hair", "head", (0, 1.1 * r, -0.2 * r), (1.08 * r, r, 0.98 * r), palette.dark))
        bones.append(ball("bun", "head", (0, 1.75 * r, -0.7 * r), 0.45 * r, palette.dark))
    if topping == "antenna":
        bones.append(strut("rod", "head", (0, 1.6 * r, 0), (0, 2.4 * r, 0), 0.1 * r, palette.dark))
        bones.append(ball("bulb", "head", (0, 2.5 * r, 0), 0.22 * r, palette.accent))
    return bones


def runner(dice: Dice, palette: Palette) -> Creature:
    """Return an animal on two legs with a long tail: from ostrich to dinosaur."""
    neck, n_neck, n_tail = dice.between(0.06, 0.12), dice.whole(2, 4), dice.whole(2, 5)
    leg, stride, sway = dice.between(0.17, 0.27), dice.between(18, 36), dice.between(3, 12)
    lean, coat = dice.between(10, 60), {"pattern": palette.pattern}
    fat, bend = dice.between(0.8, 1.2), dice.between(-20, 15)
    bones = [
        ball(
            "body", "", (0, 0, 0), (0.15 * fat, 0.16 * fat, 0.24), palette.main, swing_deg=4, beats=2, **coat
        )
    ]
    parent, joint = "body", (0.0, 0.06, 0.17)
    for i in range(n_neck):
        rest = (lean if i == 0 else bend, 0.0, 0.0)
        r = 0.1 - 0.01 * i
        bones.append(limb(f"neck {i}", parent, joint, (0, neck / 2, 0), (r, 0.06 + 0.5 * neck, r),
                          palette.main,
                          rest_deg=rest, swing_deg=sway, beats=2, phase=-0.1 * i, **coat))  # fmt: skip
        parent, joint = f"neck {i}", (0.0, neck, 0.0)
    level = -lean - (n_neck - 1) * bend
    bones.append(ball("head", parent, (0, neck + 0.04, 0.03), (0.095, 0.09, 0.12), palette.main,
                      rest_deg=(level, 0, 0), swing_deg=5, beats=2, **coat))  # fmt: skip
    bones.append(ball("snout", "head", (0, -0.02, 0.13), (0.06, 0.045, 0.1), palette.accent))
    if dice.chance(0.5):
        bones.append(ball("crest", "head", (0, 0.09, -0.02), (0.02, 0.08, 0.09), palette.accent))
    parent, joint = "body", (0.0, 0.04, -0.18)
    for i in range(n_tail):
        r = 0.1 * fat * (1 - i / (n_tail + 1))
        bones.append(limb(f"tail {i}", parent, joint, (0, 0, -0.07), (r, r, 0.12), palette.main, axis=Y,
                          rest_deg=(dice.between(-8, 14), 0, 0), swing_deg=1.5 * sway, phase=-0.1 * i,
                          **coat))  # fmt: skip
        parent, joint = f"tail {i}", (0.0, 0.0, -0.14)
    for (side, a), phase in zip(SIDES, (0.0, 0.5), strict=True):
        gaze = {"rest_deg": (-4, 50 * a, 0), "pattern": "eye"}
        bones += [
            ball(f"eye {side}", "head", (0.068 * a, 0.035, 0.055), 0.036, EYE, **gaze),
            limb(f"arm {side}", "body", (0.14 * a, 0.0, 0.1), (0, -0.08, -0.05), (0.03, 0.08, 0.13),
                 palette.second, rest_deg=(-10, 0, 10 * a), axis=Z, swing_deg=sway * a, beats=2),
            limb(f"thigh {side}", "body", (0.1 * fat * a, -0.05, 0), (0, -leg / 2, 0),
                 (0.06, 0.7 * leg, 0.08),
                 palette.main, rest_deg=(-18, 0, 0), swing_deg=stride, phase=phase, **coat),
            limb(f"shank {side}", f"thigh {side}", (0, -leg, 0), (0, -leg / 2, 0), (0.036, 0.62 * leg, 0.04),
                 palette.second, rest_deg=(34, 0, 0), swing_deg=0.8 * stride, phase=phase - 0.25),
            ball(f"foot {side}", f"shank {side}", (0, -leg, 0.05), (0.06, 0.025, 0.1), palette.second,
                 rest_deg=(-16, 0, 0)),
        ]  # fmt: skip
    return Creature(tuple(bones), bob=dice.between(0.005, 0.03), marking_frequency=dice.between(5, 11))


def flier(dice: Dice, palette: Palette) -> Creature:
    """Return a bird, bat or dragon that beats its wings, each of two pieces."""
    span, chord, beat = dice.between(0.2, 0.36), dice.between(0.09, 0.18), dice.between(15, 48)
    fat, head, pitch = dice.between(0.75, 1.3), dice.between(0.08, 0.13), dice.between(-35, 10)
    coat, n_tail = {"pattern": palette.pattern}, dice.whole(1, 4)
    bones = [
        ball("body", "", (0, 0, 0), (0.11 * fat, 0.11 * fat, 0.22), palette.main, rest_deg=(pitch, 0, 0),
             swing_deg=4, phase=0.5, **coat),
        ball("head", "body", (0, 0.07, 0.22), head, palette.main, rest_deg=(-pitch, 0, 0), axis=Y,
             swing_deg=dice.between(0, 20), **coat),
        ball("beak", "head", (0, -0.01, head), (0.35 * head, 0.3 * head, 0.7 * head), palette.accent),
    ]  # fmt: skip
    parent, joint = "body", (0.0, 0.02, -0.17)
    for i in range(n_tail):
        bones.append(limb(f"tail {i}", parent, joint, (0, 0, -0.06), (0.08 - 0.012 * i, 0.025, 0.1),
                          palette.second, swing_deg=dice.between(5, 16), phase=-0.15 * i))  # fmt: skip
        parent, joint = f"tail {i}", (0.0, 0.0, -0.11)
    sweep, fold = dice.between(-25, 20), dice.between(-0.25, -0.08)
    for side, a in SIDES:
        wing, tip = f"wing {side}", f"wing tip {side}"
        flap = {"axis": Z, "swing_deg": beat * a}
        gaze = {"rest_deg": (-5, 40 * a, 0), "pattern": "eye"}
        bones += [
            ball(f"eye {side}", "head", (0.6 * head * a, 0.3 * head, 0.62 * head), 0.28 * head, EYE, **gaze),
            limb(wing, "body", (0.07 * fat * a, 0.04, 0.06), (span / 2 * a, 0, -0.02),
                 (0.62 * span, 0.022, chord), palette.main, rest_deg=(0, sweep * a, 8 * a), **flap, **coat),
            limb(tip, wing, (span * a, 0, 0), (span / 2 * a, 0, -0.05), (0.62 * span, 0.016, 0.8 * chord),
                 palette.second, rest_deg=(0, 14 * a, -6 * a), phase=fold, **flap),
            ball(f"feather {side}", tip, (0.75 * span * a, 0, -0.08), (0.3 * span, 0.018, 0.5 * chord),
                 palette.dark),
            strut(f"leg {side}", "body", (0.05 * a, -0.07, -0.04), (0.05 * a, -0.17, -0.1), 0.018,
                  palette.accent, swing_deg=8),
        ]  # fmt: skip
    return Creature(tuple(bones), bob=dice.between(0, 0.03), marking_frequency=dice.between(5, 11))


def insect(dice: Dice, palette: Palette) -> Creature:
    """Return a beetle, ant, spider or bee: three or four pairs of legs, with or without wings."""
    n_pairs, winged, coat = dice.choose((3, 3, 4)), dice.chance(0.45), {"pattern": palette.pattern}
    back, slim = dice.between(0.13, 0.22), dice.between(0.75, 1.15)
    reach, stride, hum = dice.between(0.13, 0.22), dice.between(10, 24), dice.between(20, 45)
    bones = [
        ball("thorax", "", (0, 0, 0), (0.11 * slim, 0.09, 0.12), palette.second),
        limb("abdomen", "thorax", (0, 0.01, -0.08), (0, 0.02, -0.9 * back),
             (0.8 * slim * back, 0.75 * back, back),
             palette.main, swing_deg=dice.between(1, 8), beats=2, **coat),
        limb("head", "thorax", (0, 0.01, 0.1), (0, 0, 0.06), (0.1, 0.085, 0.09), palette.dark, axis=Y,
             swing_deg=dice.between(3, 14)),
    ]  # fmt: skip
    for side, a in SIDES:
        gaze = {"rest_deg": (0, 45 * a, 0), "pattern": "eye"}
        bones.append(ball(f"eye {side}", "head", (0.07 * a, 0.04, 0.09), 0.04, EYE, **gaze))
        bones.append(strut(f"feeler {side}", "head", (0.04 * a, 0.06, 0.1), (0.13 * a, 0.17, 0.24), 0.013,
                           palette.accent, swing_deg=10, beats=2, phase=0.2 * a))  # fmt: skip
        for i in range(n_pairs):
            spread = 55 - 110 * i / (n_pairs - 1)
            phase = 0.5 * ((i + (a > 0)) % 2)
            leg = f"leg {i} {side}"
            bones.append(limb(leg, "thorax", (0.07 * a, -0.01, 0.07 - 0.14 * i / (n_pairs - 1)),
                              (reach / 2 * a, 0, 0), (0.62 * reach, 0.024, 0.024), palette.dark, axis=Y,
                              rest_deg=(0, -spread * a, 24 * a), swing_deg=stride, phase=phase))  # fmt: skip
            bones.append(limb(f"foot {i} {side}", leg, (reach * a, 0, 0), (reach / 2 * a, 0, 0),
                              (0.65 * reach, 0.018, 0.018), palette.accent, axis=Z, rest_deg=(0, 0, -88 * a),
                              swing_deg=0.6 * stride * a, phase=phase + 0.25))  # fmt: skip
        if winged:
            bones.append(limb(f"wing {side}", "thorax", (0.04 * a, 0.08, 0), (0.19 * a, 0, -0.05),
                              (0.2, 0.012, 0.09), palette.light, axis=Z, rest_deg=(0, 25 * a, 25 * a),
                              swing_deg=hum * a, beats=2))  # fmt: skip
    return Creature(tuple(bones), marking_frequency=dice.between(5, 12))


def swimmer(dice: Dice, palette: Palette) -> Creature:
    """Return a fish, eel or snake: a chain that bends from side to side, the wave running to its tail."""
    n, fat, tall = dice.whole(4, 11), dice.between(0.10, 0.19), dice.between(0.7, 1.6)
    fins = n <= 7
    fat, step = (fat, 0.12) if fins else (0.65 * fat, 0.09)
    sway = (dice.between(60, 130) if fins else dice.between(120, 240)) / n
    lag = dice.between(0.08, 0.16)
    coat = {"pattern": palette.pattern}
    bones, parent, joint = [], "", (0.0, 0.0, 0.0)
    for i in range(n):
        r = fat * math.sqrt(max(1 - ((i - 0.25 * n) / (0.85 * n)) ** 2, 0.1))
        bones.append(limb(f"body {i}", parent, joint, (0, 0, -step / 2),
                          (r, tall * r if fins else r, 1.05 * step),
                          palette.main, axis=Y, swing_deg=sway * (0.4 + i / n), phase=-lag * i,
                          **coat))  # fmt: skip
        parent, joint = f"body {i}", (0.0, 0.0, -step)
    bones.append(ball("snout", "body 0", (0, -0.01, 0.06),
                      (0.7 * fat, 0.6 * fat * (tall if fins else 1), 0.09), palette.second))  # fmt: skip
    if fins:
        for sign in (1, -1):
            bones.append(limb(f"fluke {sign}", parent, joint, (0, 0.09 * sign, -0.07), (0.018, 0.12, 0.06),
                              palette.accent, rest_deg=(25 * sign, 0, 0), axis=Y, swing_deg=1.5 * sway,
                              phase=-lag * n))  # fmt: skip
        bones.append(ball("dorsal", "body 1", (0, tall * fat, -0.05), (0.016, 0.1, 0.12), palette.accent,
                          rest_deg=(-20, 0, 0)))  # fmt: skip
    for side, a in SIDES:
        gaze = {"rest_deg": (0, 55 * a, 0), "pattern": "eye"}
        bones.append(
            ball(f"eye {side}", "body 0", (0.72 * fat * a, 0.35 * fat, 0.03), 0.32 * fat, EYE, **gaze)
        )
        if fins:
            bones.append(limb(f"fin {side}", "body 1", (0.85 * fat * a, -0.2 * fat, 0), (0.08 * a, 0, -0.04),
                              (0.1, 0.014, 0.06), palette.accent, rest_deg=(0, 25 * a, -25 * a), axis=Z,
                              swing_deg=dice.between(10, 35) * a))  # fmt: skip
        else:
            bones.append(ball(f"tongue {side}", "body 0", (0.012 * a, -0.02, 0.16), (0.01, 0.008, 0.05),
                              BLACK, rest_deg=(0, 14 * a, 0)))  # fmt: skip
    return Creature(tuple(bones), bob=dice.between(0, 0.02), marking_frequency=dice.between(4, 11))
