"""Draws jointed machines of the training distribution: arms, cranes, diggers, mobiles and big wheels."""

from __future__ import annotations

import math

from .body import (
    BLACK,
    BLUE,
    CREAM,
    EYE,
    GOLD,
    GREY,
    RED,
    SIDES,
    STEEL,
    WHITE,
    WOOD,
    Bone,
    Creature,
    Dice,
    Paint,
    Palette,
    Vector,
    Y,
    Z,
    ball,
    fitted,
    limb,
    on_circle,
    plain,
    strut,
)


def arm(dice: Dice, palette: Palette) -> Creature:
    """Return an arm of two to five links on a base, each hinge with its own direction, reach and phase."""
    n, swing, thick = dice.whole(2, 5), dice.between(8, 34), dice.between(0.8, 1.3)
    coat = {"pattern": palette.pattern}
    bones = [
        ball("base", "", (0, 0, 0), (0.22 * thick, 0.08, 0.22 * thick), palette.main, **coat),
        ball("turret", "base", (0, 0.1, 0), (0.13, 0.1, 0.13), palette.dark, axis=Y,
             swing_deg=dice.between(0, 50), phase=dice.between(0, 1)),
    ]  # fmt: skip
    parent, joint, lean = "turret", (0.0, 0.06, 0.0), dice.between(-30, 10)
    for i in range(n):
        long, r = dice.between(0.5, 0.9) / n + 0.08, thick * (0.085 - 0.009 * i)
        motion = {"rest_deg": (lean, 0, dice.between(-12, 12)), "swing_deg": swing * dice.between(0.4, 1.0)}
        motion |= {"axis": Z if dice.chance(0.25) else (1.0, 0.0, 0.0), "phase": dice.between(0, 1)}
        bones.append(ball(f"joint {i}", parent, joint, (1.3 * r, r, r), palette.dark, **motion))
        bones.append(strut(f"link {i}", f"joint {i}", (0, 0, 0), (0, long, 0), r,
                           (palette.main, palette.second)[i % 2], **coat))  # fmt: skip
        parent, joint, lean = f"link {i}", (0.0, long, 0.0), dice.between(15, 70)
    return _finished([*bones, *_tool(dice, palette, parent, joint)], dice)


def _tool(dice: Dice, palette: Palette, parent: str, joint: Vector) -> list[Bone]:
    """Return what the arm holds: a gripper, a lamp, a brush or a ball."""
    x, y, z = joint
    kind, hand = dice.choose(("gripper", "lamp", "ball", "scoop")), {"phase": dice.between(0, 1)}
    bones = [ball("wrist", parent, (x, y, z), 0.06, palette.dark, axis=dice.choose((Y, Z)),
                  swing_deg=dice.between(5, 40), **hand)]  # fmt: skip
    if kind == "gripper":
        n = dice.whole(2, 4)
        for i in range(n):
            root = on_circle(i, n, 0.04, 0.04)
            bones.append(limb(f"finger {i}", "wrist", root, (0, 0.06, 0), (0.022, 0.08, 0.022),
                              palette.accent,
                              rest_deg=(35, 360 * i / n, 0), swing_deg=18, beats=1, **hand))  # fmt: skip
            bones.append(limb(f"tip {i}", f"finger {i}", (0, 0.12, 0), (0, 0.05, 0), (0.018, 0.07, 0.018),
                              palette.light, rest_deg=(-50, 0, 0)))  # fmt: skip
    elif kind == "lamp":
        bones.append(ball("shade", "wrist", (0, 0.09, 0), (0.15, 0.07, 0.15), palette.accent))
        bones.append(ball("bulb", "wrist", (0, 0.14, 0), 0.07, palette.light))
    elif kind == "ball":
        bones.append(ball("load", "wrist", (0, 0.12, 0), dice.between(0.08, 0.15), palette.accent))
    else:
        bones.append(ball("scoop", "wrist", (0, 0.1, 0.05), (0.12, 0.1, 0.09), palette.accent))
        for i in range(3):
            tooth = (0.07 * (i - 1), 0.19, 0.08)
            bones.append(ball(f"tooth {i}", "wrist", tooth, (0.02, 0.05, 0.02), palette.light))
    return bones


def crane(dice: Dice, palette: Palette) -> Creature:
    """Return a crane: a mast, a jib that turns about it, and a load that swings on a rope."""
    high, reach, rope = dice.between(0.5, 0.85), dice.between(0.35, 0.6), dice.between(0.15, 0.4)
    coat, sway = (
        {"pattern": palette.pattern},
        {"swing_deg": dice.between(6, 30), "beats": dice.choose((1, 2))},
    )
    yaw = (
        {"turns": dice.choose((-1, 1)) * dice.between(0.2, 0.8)}
        if dice.chance(0.3)
        else {"swing_deg": dice.between(10, 70)}
    )
    bones = [
        ball("foot", "", (0, 0, 0), (0.22, 0.06, 0.22), palette.dark),
        strut("mast", "foot", (0, 0, 0), (0, high, 0), 0.06, palette.main, **coat),
        ball("cabin", "foot", (0, high, 0), (0.1, 0.11, 0.12), palette.second, axis=Y, **yaw),
        ball("window", "cabin", (0, 0.02, 0.05), (0.08, 0.06, 0.09), palette.light),
        strut("jib", "cabin", (0, 0.07, 0), (0, 0.13, reach), 0.035, palette.main, **coat),
        strut("back", "cabin", (0, 0.07, 0), (0, 0.1, -0.45 * reach), 0.035, palette.main, **coat),
        ball("weight", "cabin", (0, 0.04, -0.45 * reach), (0.08, 0.09, 0.06), palette.accent),
        strut("peak", "cabin", (0, 0.07, 0), (0, 0.3, 0), 0.025, palette.main),
        strut("stay", "cabin", (0, 0.3, 0), (0, 0.13, 0.8 * reach), 0.012, palette.dark),
        strut("back stay", "cabin", (0, 0.3, 0), (0, 0.1, -0.42 * reach), 0.012, palette.dark),
        limb("rope", "cabin", (0, 0.13, 0.9 * reach), (0, -rope / 2, 0), (0.014, 0.52 * rope, 0.014),
             palette.dark, axis=dice.choose(((1.0, 0.0, 0.0), Z)), **sway),
        ball("load", "rope", (0, -rope - 0.05, 0), (dice.between(0.06, 0.12), 0.07, dice.between(0.06, 0.12)),
             palette.accent),
    ]  # fmt: skip
    return _finished(bones, dice)


def digger(dice: Dice, palette: Palette) -> Creature:
    """Return a digger on tracks: cab and arm turn, boom, stick and bucket bend."""
    dig, coat = dice.between(8, 24), {"pattern": palette.pattern}
    boom, stick, start = dice.between(0.3, 0.42), dice.between(0.22, 0.34), dice.between(0, 1)
    bones = [ball("carriage", "", (0, 0, 0), (0.14, 0.06, 0.2), palette.dark)]
    for side, a in SIDES:
        bones.append(
            ball(f"track {side}", "carriage", (0.15 * a, -0.03, 0), (0.05, 0.08, 0.26), palette.dark)
        )
        for i in range(3):
            roller = (0.175 * a, -0.03, 0.14 * (i - 1))
            bones.append(ball(f"roller {i} {side}", "carriage", roller, (0.035, 0.05, 0.05), palette.light))
    bones += [
        ball("house", "carriage", (0, 0.14, -0.03), (0.17, 0.11, 0.22), palette.main, axis=Y,
             swing_deg=dice.between(0, 60), phase=dice.between(0, 1), **coat),
        ball("cab", "house", (0.08, 0.13, 0.06), (0.08, 0.13, 0.1), palette.second),
        ball("window", "house", (0.08, 0.16, 0.09), (0.07, 0.08, 0.085), palette.light),
        strut("exhaust", "house", (-0.08, 0.08, -0.12), (-0.08, 0.2, -0.12), 0.022, palette.dark),
        limb("boom", "house", (-0.06, 0.04, 0.14), (0, boom / 2, 0), (0.045, 0.58 * boom, 0.055),
             palette.main, rest_deg=(38, 0, 0), swing_deg=dig, phase=start, **coat),
        limb("stick", "boom", (0, boom, 0), (0, stick / 2, 0), (0.035, 0.6 * stick, 0.042), palette.main,
             rest_deg=(85, 0, 0), swing_deg=1.3 * dig, phase=start + 0.2, **coat),
        limb("bucket", "stick", (0, stick, 0), (0, 0.05, -0.04), (0.1, 0.085, 0.08), palette.accent,
             rest_deg=(25, 0, 0), swing_deg=1.8 * dig, phase=start + 0.4),
    ]  # fmt: skip
    for i in range(3):
        tooth = (0.06 * (i - 1), 0.12, -0.06)
        bones.append(ball(f"tooth {i}", "bucket", tooth, (0.018, 0.05, 0.018), palette.light))
    return _finished(bones, dice)


def mobile(dice: Dice, palette: Palette) -> Creature:
    """Return a hanging mobile: a ring of arms turns, and toys swing on strings below it."""
    n, r, spin = dice.whole(3, 6), dice.between(0.26, 0.4), dice.choose((-1, 1)) * dice.between(0.1, 0.9)
    bones = [
        ball("hub", "", (0, 0, 0), (0.08, 0.05, 0.08), palette.main, axis=Y, turns=spin),
        strut("hook", "hub", (0, 0, 0), (0, 0.22, 0), 0.018, palette.dark),
    ]
    paints = (palette.second, palette.accent, palette.main, palette.light)
    for i in range(n):
        drop, tip = dice.between(0.12, 0.45), on_circle(i, n, r, -0.02)
        bones.append(strut(f"arm {i}", "hub", (0, 0, 0), tip, 0.022, palette.dark))
        bones.append(limb(f"string {i}", "hub", tip, (0, -drop / 2, 0), (0.009, drop / 2, 0.009),
                          palette.dark, rest_deg=(0, 360 * i / n, 0), swing_deg=dice.between(4, 22),
                          phase=dice.between(0, 1)))  # fmt: skip
        shape = dice.choose(((0.08, 0.08, 0.08), (0.03, 0.1, 0.1), (0.1, 0.04, 0.1), (0.05, 0.11, 0.05)))
        bones.append(ball(f"toy {i}", f"string {i}", (0, -drop - 0.05, 0), shape, paints[i % 4], axis=Y,
                          turns=dice.between(-1, 1), pattern=palette.pattern))  # fmt: skip
    return _finished(bones, dice)


def big_wheel(dice: Dice, palette: Palette) -> Creature:
    """Return a wheel on a stand: a fan, a water wheel, or a big wheel whose gondolas hang upright."""
    n, r, turns = dice.whole(4, 7), dice.between(0.3, 0.42), dice.choose((-1, 1)) * dice.between(0.15, 0.9)
    kind = dice.choose(("gondolas", "blades", "paddles"))
    bones = [
        ball("ground", "", (0, -r - 0.12, 0), (0.3, 0.04, 0.22), palette.dark),
        ball("hub", "ground", (0, r + 0.12, 0), (0.06, 0.06, 0.1), palette.accent, axis=Z, turns=turns),
    ]
    for side, a in SIDES:
        top = (0, r + 0.12, -0.07)
        bones.append(strut(f"stand {side}", "ground", (0.18 * a, 0, -0.07), top, 0.03, palette.main))
    paints = (palette.main, palette.second, palette.accent)
    for i in range(n):
        spoke, turned = f"spoke {i}", {"rest_deg": (0, 0, 360 * i / n)}
        bones.append(
            limb(spoke, "hub", (0, 0, 0.02), (0, r / 2, 0), (0.02, 0.52 * r, 0.02), palette.dark, **turned)
        )
        if kind == "gondolas":
            level = {"rest_deg": (0, 0, -360 * i / n), "axis": Z, "turns": -turns}
            bones.append(
                limb(
                    f"gondola {i}",
                    spoke,
                    (0, r, 0),
                    (0, -0.06, 0.02),
                    (0.07, 0.06, 0.07),
                    paints[i % 3],
                    **level,
                )
            )
            bones.append(
                ball(f"roof {i}", f"gondola {i}", (0, 0.02, 0.02), (0.08, 0.02, 0.08), palette.light)
            )
        elif kind == "blades":
            bones.append(ball(f"blade {i}", spoke, (0.02, 0.62 * r, 0), (0.11, 0.42 * r, 0.02), paints[i % 3],
                              rest_deg=(0, 25, 0), pattern=palette.pattern))  # fmt: skip
        else:
            bones.append(ball(f"paddle {i}", spoke, (0, r, 0.02), (0.02, 0.1, 0.12), paints[i % 3]))
            bones.append(
                ball(f"rim {i}", spoke, (0.22 * r, 0.93 * r, 0), (0.35 * r, 0.025, 0.03), palette.light)
            )
    return _finished(bones, dice)


def _finished(bones: list[Bone], dice: Dice) -> Creature:
    return Creature(tuple(bones), marking_frequency=dice.between(5, 12))


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
    return _finished_statues(bones, dice)


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
    return _finished_statues(bones, dice)


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
        return _finished_statues(bones, dice)
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
    return _finished_statues(bones, dice)


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
    return _finished_statues(bones, dice)


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


def _finished_statues(bones: list[Bone], dice: Dice) -> Creature:
    return Creature(tuple(bones), bob=dice.choose((0.0, 0.0, 0.02)), marking_frequency=dice.between(4, 11))


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
