"""Machines and vehicles of the training distribution, and the robot arm of the benchmark."""

from __future__ import annotations

from .body import SIDES, Bones, Creature, Vector, Y, Z, fitted, on_circle
from .coat import BLACK, BLUE, GREY, STEEL, Dice, Paint, Palette, plain

# One part of an object stands on one line where it fits; ruff would spread the others over ten.
# fmt: off
_HAZARD: Paint = ((0.97, 0.78, 0.10), (0.09, 0.09, 0.10), (0.97, 0.78, 0.10))
_ORANGE = plain(0.95, 0.45, 0.08)


def arm(dice: Dice, palette: Palette) -> Creature:
    """Return an arm of two to five links on a base, each hinge with its own direction, reach and phase."""
    n, swing, thick = dice.whole(2, 5), dice.between(8, 34), dice.between(0.8, 1.3)
    coat = {"pattern": palette.pattern}
    bones = Bones(palette)
    bones.ball("base", "", (0, 0, 0), (0.22 * thick, 0.08, 0.22 * thick))
    bones.ball("turret", "base", (0, 0.1, 0), (0.13, 0.1, 0.13), palette.dark, axis=Y,
               swing_deg=dice.between(0, 50), phase=dice.between(0, 1))
    parent, joint, lean = "turret", (0.0, 0.06, 0.0), dice.between(-30, 10)
    for i in range(n):
        long, r = dice.between(0.5, 0.9) / n + 0.08, thick * (0.085 - 0.009 * i)
        motion = {"rest_deg": (lean, 0, dice.between(-12, 12)), "swing_deg": swing * dice.between(0.4, 1.0)}
        motion |= {"axis": Z if dice.chance(0.25) else (1.0, 0.0, 0.0), "phase": dice.between(0, 1)}
        bones.ball(f"joint {i}", parent, joint, (1.3 * r, r, r), palette.dark, **motion)
        bones.strut(f"link {i}", f"joint {i}", (0, 0, 0), (0, long, 0), r,
                    (palette.main, palette.second)[i % 2], **coat)
        parent, joint, lean = f"link {i}", (0.0, long, 0.0), dice.between(15, 70)
    bones += _tool(dice, palette, parent, joint)
    return _machine(bones, dice)


def _tool(dice: Dice, palette: Palette, parent: str, joint: Vector) -> Bones:
    """Return what the arm holds: a gripper, a lamp, a brush or a ball."""
    x, y, z = joint
    kind, hand = dice.choose(("gripper", "lamp", "ball", "scoop")), {"phase": dice.between(0, 1)}
    bones = Bones(palette)
    bones.ball("wrist", parent, (x, y, z), 0.06, palette.dark, axis=dice.choose((Y, Z)),
               swing_deg=dice.between(5, 40), **hand)
    if kind == "gripper":
        n = dice.whole(2, 4)
        for i in range(n):
            root = on_circle(i, n, 0.04, 0.04)
            bones.limb(f"finger {i}", "wrist", root, (0, 0.06, 0), (0.022, 0.08, 0.022), palette.accent,
                       rest_deg=(35, 360 * i / n, 0), swing_deg=18, beats=1, **hand)
            bones.limb(f"tip {i}", f"finger {i}", (0, 0.12, 0), (0, 0.05, 0), (0.018, 0.07, 0.018),
                       palette.light, rest_deg=(-50, 0, 0))
    elif kind == "lamp":
        bones.ball("shade", "wrist", (0, 0.09, 0), (0.15, 0.07, 0.15), palette.accent)
        bones.ball("bulb", "wrist", (0, 0.14, 0), 0.07, palette.light)
    elif kind == "ball":
        bones.ball("load", "wrist", (0, 0.12, 0), dice.between(0.08, 0.15), palette.accent)
    else:
        bones.ball("scoop", "wrist", (0, 0.1, 0.05), (0.12, 0.1, 0.09), palette.accent)
        for i in range(3):
            tooth = (0.07 * (i - 1), 0.19, 0.08)
            bones.ball(f"tooth {i}", "wrist", tooth, (0.02, 0.05, 0.02), palette.light)
    return bones


def crane(dice: Dice, palette: Palette) -> Creature:
    """Return a crane: a mast, a jib that turns about it, and a load that swings on a rope."""
    high, reach, rope = dice.between(0.5, 0.85), dice.between(0.35, 0.6), dice.between(0.15, 0.4)
    sway = {"swing_deg": dice.between(6, 30), "beats": dice.choose((1, 2))}
    if dice.chance(0.3):
        yaw = {"turns": dice.choose((-1, 1)) * dice.between(0.2, 0.8)}
    else:
        yaw = {"swing_deg": dice.between(10, 70)}
    bones = Bones(palette)
    bones.ball("foot", "", (0, 0, 0), (0.22, 0.06, 0.22), palette.dark)
    bones.strut("mast", "foot", (0, 0, 0), (0, high, 0), 0.06)
    bones.ball("cabin", "foot", (0, high, 0), (0.1, 0.11, 0.12), palette.second, axis=Y, **yaw)
    bones.ball("window", "cabin", (0, 0.02, 0.05), (0.08, 0.06, 0.09), palette.light)
    bones.strut("jib", "cabin", (0, 0.07, 0), (0, 0.13, reach), 0.035)
    bones.strut("back", "cabin", (0, 0.07, 0), (0, 0.1, -0.45 * reach), 0.035)
    bones.ball("weight", "cabin", (0, 0.04, -0.45 * reach), (0.08, 0.09, 0.06), palette.accent)
    bones.strut("peak", "cabin", (0, 0.07, 0), (0, 0.3, 0), 0.025, palette.main)
    bones.strut("stay", "cabin", (0, 0.3, 0), (0, 0.13, 0.8 * reach), 0.012, palette.dark)
    bones.strut("back stay", "cabin", (0, 0.3, 0), (0, 0.1, -0.42 * reach), 0.012, palette.dark)
    bones.limb("rope", "cabin", (0, 0.13, 0.9 * reach), (0, -rope / 2, 0), (0.014, 0.52 * rope, 0.014),
               palette.dark, axis=dice.choose(((1.0, 0.0, 0.0), Z)), **sway)
    bones.ball("load", "rope", (0, -rope - 0.05, 0),
               (dice.between(0.06, 0.12), 0.07, dice.between(0.06, 0.12)), palette.accent)
    return _machine(bones, dice)


def digger(dice: Dice, palette: Palette) -> Creature:
    """Return a digger on tracks: cab and arm turn, boom, stick and bucket bend."""
    dig = dice.between(8, 24)
    boom, stick, start = dice.between(0.3, 0.42), dice.between(0.22, 0.34), dice.between(0, 1)
    bones = Bones(palette)
    bones.ball("carriage", "", (0, 0, 0), (0.14, 0.06, 0.2), palette.dark)
    for side, a in SIDES:
        bones.ball(f"track {side}", "carriage", (0.15 * a, -0.03, 0), (0.05, 0.08, 0.26), palette.dark)
        for i in range(3):
            roller = (0.175 * a, -0.03, 0.14 * (i - 1))
            bones.ball(f"roller {i} {side}", "carriage", roller, (0.035, 0.05, 0.05), palette.light)
    bones.ball("house", "carriage", (0, 0.14, -0.03), (0.17, 0.11, 0.22), axis=Y,
               swing_deg=dice.between(0, 60), phase=dice.between(0, 1))
    bones.ball("cab", "house", (0.08, 0.13, 0.06), (0.08, 0.13, 0.1), palette.second)
    bones.ball("window", "house", (0.08, 0.16, 0.09), (0.07, 0.08, 0.085), palette.light)
    bones.strut("exhaust", "house", (-0.08, 0.08, -0.12), (-0.08, 0.2, -0.12), 0.022, palette.dark)
    bones.limb("boom", "house", (-0.06, 0.04, 0.14), (0, boom / 2, 0), (0.045, 0.58 * boom, 0.055),
               rest_deg=(38, 0, 0), swing_deg=dig, phase=start)
    bones.limb("stick", "boom", (0, boom, 0), (0, stick / 2, 0), (0.035, 0.6 * stick, 0.042),
               rest_deg=(85, 0, 0), swing_deg=1.3 * dig, phase=start + 0.2)
    bones.limb("bucket", "stick", (0, stick, 0), (0, 0.05, -0.04), (0.1, 0.085, 0.08), palette.accent,
               rest_deg=(25, 0, 0), swing_deg=1.8 * dig, phase=start + 0.4)
    for i in range(3):
        tooth = (0.06 * (i - 1), 0.12, -0.06)
        bones.ball(f"tooth {i}", "bucket", tooth, (0.018, 0.05, 0.018), palette.light)
    return _machine(bones, dice)


def mobile(dice: Dice, palette: Palette) -> Creature:
    """Return a hanging mobile: a ring of arms turns, and toys swing on strings below it."""
    n, r, spin = dice.whole(3, 6), dice.between(0.26, 0.4), dice.choose((-1, 1)) * dice.between(0.1, 0.9)
    bones = Bones(palette)
    bones.ball("hub", "", (0, 0, 0), (0.08, 0.05, 0.08), palette.main, axis=Y, turns=spin)
    bones.strut("hook", "hub", (0, 0, 0), (0, 0.22, 0), 0.018, palette.dark)
    paints = (palette.second, palette.accent, palette.main, palette.light)
    for i in range(n):
        drop, tip = dice.between(0.12, 0.45), on_circle(i, n, r, -0.02)
        bones.strut(f"arm {i}", "hub", (0, 0, 0), tip, 0.022, palette.dark)
        bones.limb(f"string {i}", "hub", tip, (0, -drop / 2, 0), (0.009, drop / 2, 0.009), palette.dark,
                   rest_deg=(0, 360 * i / n, 0), swing_deg=dice.between(4, 22), phase=dice.between(0, 1))
        shape = dice.choose(((0.08, 0.08, 0.08), (0.03, 0.1, 0.1), (0.1, 0.04, 0.1), (0.05, 0.11, 0.05)))
        bones.ball(f"toy {i}", f"string {i}", (0, -drop - 0.05, 0), shape, paints[i % 4], axis=Y,
                   turns=dice.between(-1, 1), pattern=palette.pattern)
    return _machine(bones, dice)


def big_wheel(dice: Dice, palette: Palette) -> Creature:
    """Return a wheel on a stand: a fan, a water wheel, or a big wheel whose gondolas hang upright."""
    n, r, turns = dice.whole(4, 7), dice.between(0.3, 0.42), dice.choose((-1, 1)) * dice.between(0.15, 0.9)
    kind = dice.choose(("gondolas", "blades", "paddles"))
    bones = Bones(palette)
    bones.ball("ground", "", (0, -r - 0.12, 0), (0.3, 0.04, 0.22), palette.dark)
    bones.ball("hub", "ground", (0, r + 0.12, 0), (0.06, 0.06, 0.1), palette.accent, axis=Z, turns=turns)
    for side, a in SIDES:
        top = (0, r + 0.12, -0.07)
        bones.strut(f"stand {side}", "ground", (0.18 * a, 0, -0.07), top, 0.03, palette.main)
    paints = (palette.main, palette.second, palette.accent)
    for i in range(n):
        spoke, turned = f"spoke {i}", {"rest_deg": (0, 0, 360 * i / n)}
        bones.limb(spoke, "hub", (0, 0, 0.02), (0, r / 2, 0), (0.02, 0.52 * r, 0.02), palette.dark, **turned)
        if kind == "gondolas":
            level = {"rest_deg": (0, 0, -360 * i / n), "axis": Z, "turns": -turns}
            bones.limb(f"gondola {i}", spoke, (0, r, 0), (0, -0.06, 0.02), (0.07, 0.06, 0.07), paints[i % 3],
                       **level)
            bones.ball(f"roof {i}", f"gondola {i}", (0, 0.02, 0.02), (0.08, 0.02, 0.08), palette.light)
        elif kind == "blades":
            bones.ball(f"blade {i}", spoke, (0.02, 0.62 * r, 0), (0.11, 0.42 * r, 0.02), paints[i % 3],
                       rest_deg=(0, 25, 0), pattern=palette.pattern)
        else:
            bones.ball(f"paddle {i}", spoke, (0, r, 0.02), (0.02, 0.1, 0.12), paints[i % 3])
            bones.ball(f"rim {i}", spoke, (0.22 * r, 0.93 * r, 0), (0.35 * r, 0.025, 0.03), palette.light)
    return _machine(bones, dice)


def robot_arm() -> Creature:
    """Return an industrial robot arm that swings a ball slowly from side to side."""
    droop = {"rest_deg": (70, 0, 0), "swing_deg": 12}
    bones = Bones()
    bones.ball("base", "", (0, 0, 0), (0.27, 0.09, 0.27), _HAZARD, pattern="stripes")
    bones.ball("turret", "base", (0, 0.11, 0), (0.17, 0.12, 0.17), GREY, axis=Y, swing_deg=28, phase=0.1)
    bones.ball("shoulder", "turret", (0, 0.17, 0), (0.15, 0.10, 0.10), STEEL, swing_deg=7, phase=0.3)
    bones.strut("upper arm", "shoulder", (0, 0, 0), (0, 0.46, -0.16), 0.085, _ORANGE)
    bones.ball("elbow", "upper arm", (0, 0.49, 0), (0.115, 0.075, 0.075), STEEL, swing_deg=9, phase=0.55)
    bones.strut("forearm", "elbow", (0, 0, 0), (0, 0.10, 0.46), 0.066, _ORANGE)
    bones.ball("motor", "elbow", (0, 0.03, -0.10), (0.06, 0.06, 0.09), GREY)
    bones.ball("wrist", "forearm", (0, 0.48, 0), (0.07, 0.05, 0.05), STEEL, **droop)
    bones.strut("hand", "wrist", (0, 0, 0), (0, 0.1, 0), 0.04, GREY)
    bones.ball("load", "hand", (0, 0.19, 0), 0.085, BLUE)
    for i, (a, b) in enumerate(((1, 0), (-1, 0), (0, 1), (0, -1))):
        root, knuckle, tip = (0.03 * a, 0.08, 0.03 * b), (0.1 * a, 0.17, 0.1 * b), (0.07 * a, 0.27, 0.07 * b)
        bones.strut(f"finger {i}", "hand", root, knuckle, 0.02, BLACK)
        bones.strut(f"tip {i}", "hand", knuckle, tip, 0.018, BLACK)
    return fitted(Creature(tuple(bones), heading_deg=50.0, marking_frequency=9.0))


def car(dice: Dice, palette: Palette) -> Creature:
    """Return a car, truck, tractor or cart with four turning wheels on a body that rocks a little."""
    long, wide, high = dice.between(0.26, 0.44), dice.between(0.13, 0.2), dice.between(0.07, 0.13)
    front, hind = dice.between(0.09, 0.16), dice.between(0.09, 0.2)
    turns = dice.between(0.5, 1.6)
    bones = Bones(palette)
    bones.ball("chassis", "", (0, 0, 0), (0.8 * wide, 0.05, long), palette.dark)
    bones.ball("body", "chassis", (0, high, 0), (wide, high, 1.02 * long), swing_deg=dice.between(0, 4),
               beats=2)
    bones.ball("bonnet", "body", (0, 0.01, 0.5 * long), (0.95 * wide, 0.8 * high, 0.5 * long))
    rider = dice.choose(("cabin", "cabin", "load", "driver"))
    if rider == "cabin":
        h, z = dice.between(0.1, 0.2), dice.between(-0.4, 0.3) * long
        bones.ball("cabin", "body", (0, high + 0.3 * h, z), (0.88 * wide, h, 0.5 * long), palette.second)
        bones.ball("windscreen", "body", (0, high + 0.5 * h, z + 0.22 * long),
                   (0.7 * wide, 0.6 * h, 0.3 * long), palette.light)
        bones.ball("windows", "body", (0, high + 0.5 * h, z), (0.91 * wide, 0.5 * h, 0.26 * long),
                   palette.light)
    elif rider == "load":
        for i in range(dice.whole(3, 7)):
            r = dice.between(0.07, 0.13)
            at = (dice.between(-0.6, 0.6) * wide, high + 0.6 * r, dice.between(-0.7, 0.5) * long)
            bones.ball(f"load {i}", "body", at, r,
                       dice.choose((palette.second, palette.accent, palette.light)))
    else:
        bones.ball("driver", "body", (0, high + 0.1, -0.1), (0.08, 0.14, 0.08), palette.second)
        bones.ball("head", "body", (0, high + 0.28, -0.1), 0.085, palette.light, axis=Y, swing_deg=25)
        bones.ball("cap", "body", (0, high + 0.34, -0.1), (0.09, 0.05, 0.1), palette.accent)
        bones.ball("wheel", "body", (0, high + 0.12, 0.06), (0.06, 0.06, 0.015), palette.dark,
                   rest_deg=(-35, 0, 0))
    for side, a in SIDES:
        bones.ball(f"lamp {side}", "body", (0.6 * wide * a, 0, 0.93 * long), 0.035, palette.light)
        for end, r, z in (("front", front, 0.62 * long), ("hind", hind, -0.62 * long)):
            at = (1.05 * wide * a, -0.09 + r - min(front, hind), z)
            bones += _wheel(f"{end} {side}", "chassis", at, r, turns * min(front, hind) / r, palette)
    if dice.chance(0.4):
        low, top = (0.06, high, 0.5 * long), (0.06, high + 0.2, 0.5 * long)
        bones.strut("pipe", "body", low, top, 0.03, palette.accent)
    return Creature(tuple(bones), bob=dice.between(0, 0.006), marking_frequency=dice.between(5, 11))


def train(dice: Dice, palette: Palette) -> Creature:
    """Return a steam engine with one or two wagons that bend at their couplings."""
    turns, bend = dice.between(0.5, 1.5), dice.between(2, 16)
    boiler, r = dice.between(0.09, 0.13), dice.between(0.07, 0.1)
    bones = Bones(palette)
    bones.ball("frame", "", (0, 0, 0), (0.1, 0.045, 0.3), palette.dark)
    bones.ball("boiler", "frame", (0, 0.1, 0.08), (boiler, boiler, 0.26), rest_deg=(0, 0, 0))
    bones.ball("cab", "frame", (0, 0.17, -0.19), (0.13, 0.19, 0.11), palette.second)
    bones.ball("roof", "frame", (0, 0.33, -0.19), (0.16, 0.03, 0.14), palette.accent)
    bones.ball("band", "frame", (0, 0.1, 0.12), (1.04 * boiler, 1.04 * boiler, 0.03), palette.accent)
    bones.strut("chimney", "frame", (0, 0.17, 0.22), (0, 0.32, 0.22), 0.045, palette.dark)
    bones.ball("dome", "frame", (0, 0.1 + boiler, 0.04), 0.055, palette.accent)
    bones.ball("lamp", "frame", (0, 0.12, 0.34), 0.045, palette.light)
    bones.strut("catcher", "frame", (0, -0.02, 0.28), (0, -0.07, 0.38), 0.06, palette.accent)
    for side, a in SIDES:
        for i, z in enumerate((0.17, -0.01, -0.2)):
            bones += _wheel(f"wheel {i} {side}", "frame", (0.11 * a, -0.04, z), r, turns, palette, 1, 0.03)
    parent, joint = "frame", (0.0, 0.0, -0.33)
    for i in range(dice.whole(1, 2)):
        wagon = f"wagon {i}"
        paint = dice.choose((palette.main, palette.second, palette.accent))
        bones.limb(wagon, parent, joint, (0, 0.08, -0.2), (0.12, 0.11, 0.2), paint, axis=Y, swing_deg=bend,
                   phase=-0.15 * i)
        bones.ball(f"top {i}", wagon, (0, 0.17, -0.2), (0.11, dice.between(0.03, 0.1), 0.17), palette.light)
        for side, a in SIDES:
            for k, z in enumerate((-0.1, -0.3)):
                at = (0.11 * a, -0.04, z)
                bones += _wheel(f"{wagon} {k} {side}", wagon, at, r, turns, palette, 1, 0.03)
        parent, joint = wagon, (0.0, 0.0, -0.43)
    return Creature(tuple(bones), bob=dice.between(0, 0.004), marking_frequency=dice.between(5, 11))


def bicycle(dice: Dice, palette: Palette) -> Creature:
    """Return a bicycle or a penny-farthing with a rider's hat on the saddle, leaning from side to side."""
    front, hind, turns = dice.between(0.16, 0.28), dice.between(0.12, 0.22), dice.between(0.4, 1.2)
    gap, pipe = front + hind + 0.1, 0.024
    hub, rear = (0.0, front, 0.0), (0.0, hind, -gap)
    head, seat, crank = (0.0, front + 0.22, -0.1), (0.0, front + 0.2, -0.62 * gap), (0.0, hind, -0.55 * gap)
    bones = Bones(palette)
    bones.ball("saddle", "", seat, (0.05, 0.03, 0.1), palette.dark, axis=Z, swing_deg=dice.between(1, 9))
    frame = ((head, seat), (head, crank), (seat, crank), (crank, rear), (seat, rear), (head, hub))

    def below(at: Vector) -> Vector:
        return at[0] - seat[0], at[1] - seat[1], at[2] - seat[2]

    for i, (start, end) in enumerate(frame):
        bones.strut(f"tube {i}", "saddle", below(start), below(end), pipe, palette.main)
    bar = below((0.0, head[1] + 0.07, head[2]))
    bones.ball("handlebar", "saddle", bar, (0.17, 0.022, 0.022), palette.second, axis=Y,
               swing_deg=dice.between(0, 12))
    bones.ball("hat", "saddle", (0, 0.08, 0), (0.09, 0.06, 0.09), palette.accent)
    bones.ball("basket", "saddle", (0, bar[1] - 0.02, bar[2] + 0.1), (0.09, 0.07, 0.07), palette.second)
    bones += _wheel("front wheel", "saddle", below(hub), front, turns * hind / front, palette, 3, 0.022)
    bones += _wheel("hind wheel", "saddle", below(rear), hind, turns, palette, 3, 0.022)
    bones.ball("crank", "saddle", below(crank), (0.03, 0.09, 0.02), palette.second, turns=turns)
    for side, a in SIDES:
        bones.ball(f"pedal {side}", "crank", (0.06 * a, 0.09 * a, 0), (0.05, 0.015, 0.03), palette.dark)
    return Creature(tuple(bones), marking_frequency=dice.between(5, 11))


def helicopter(dice: Dice, palette: Palette) -> Creature:
    """Return a helicopter or a propeller plane: blades turn, the body sways."""
    n_blades, turns = dice.whole(2, 4), dice.between(0.3, 1.4)
    fat, boom, reach = dice.between(0.12, 0.18), dice.between(0.2, 0.34), dice.between(0.26, 0.44)
    bones = Bones(palette)
    bones.ball("body", "", (0, 0, 0), (fat, fat, 1.5 * fat), axis=Z, swing_deg=dice.between(1, 10))
    bones.ball("glass", "body", (0, 0.03, 0.62 * fat), (0.82 * fat, 0.75 * fat, 0.95 * fat), palette.light)
    bones.strut("boom", "body", (0, 0.02, -1.1 * fat), (0, 0.06, -1.3 * fat - boom), 0.045, palette.main)
    bones.ball("fin", "body", (0, 0.12, -1.3 * fat - boom), (0.018, 0.1, 0.06), palette.accent,
               rest_deg=(-20, 0, 0))
    bones.ball("tail rotor", "body", (0.05, 0.06, -1.3 * fat - boom), (0.012, 0.13, 0.022), palette.dark,
               turns=2 * turns)
    bones.strut("mast", "body", (0, fat, 0), (0, fat + 0.07, 0), 0.03, palette.dark)
    bones.ball("rotor", "body", (0, fat + 0.08, 0), (0.05, 0.03, 0.05), palette.accent, axis=Y, turns=turns)
    for i in range(n_blades):
        bones.limb(f"blade {i}", "rotor", (0, 0, 0), (0, 0, reach / 2), (0.04, 0.012, 0.55 * reach),
                   palette.second if i else palette.dark, rest_deg=(0, 360 * i / n_blades, 0))
    for side, a in SIDES:
        bones.ball(f"skid {side}", "body", (0.1 * a, -fat - 0.08, 0), (0.02, 0.02, 0.24), palette.dark)
        for end, z in (("front", 0.09), ("hind", -0.09)):
            top, foot = (0.07 * a, -0.7 * fat, z), (0.1 * a, -fat - 0.08, z)
            bones.strut(f"leg {end} {side}", "body", top, foot, 0.015, palette.dark)
    return Creature(tuple(bones), bob=dice.between(0, 0.04), marking_frequency=dice.between(5, 11))


def _wheel(name: str, parent: str, at: Vector, r: float, turns: float, palette: Palette,
           n_spokes: int = 2, width: float = 0.04) -> Bones:
    """Return a wheel about x whose spokes stand out of the tyre on both sides, so that its turn is seen."""
    bones = Bones(palette)
    bones.ball(name, parent, at, (width, r, r), palette.dark, turns=turns)
    for i in range(n_spokes):
        spoke = (1.15 * width, 0.72 * r, 0.16 * r)
        paint = palette.light if i else palette.accent
        bones.ball(f"{name} spoke {i}", name, (0, 0, 0), spoke, paint, rest_deg=(180 * i / n_spokes, 0, 0))
    return bones


def _machine(bones: Bones, dice: Dice) -> Creature:
    return Creature(tuple(bones), marking_frequency=dice.between(5, 12))
