"""Draws jointed machines of the training distribution: arms, cranes, diggers, mobiles and big wheels."""

from __future__ import annotations

from .creature import Bone, Creature, Vector
from .dice import Dice
from .palette import Palette
from .shapes import SIDES, Y, Z, ball, limb, on_circle, strut


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
