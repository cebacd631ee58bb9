"""Draws a four-legged animal from a seed: proportions, coat and gait."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .creature import Bone, Creature, Parts, Vector, parts_at
from .dice import Dice

# RGB of base, markings, underside.
_PALETTES: tuple[tuple[Vector, Vector, Vector], ...] = (
    ((0.88, 0.46, 0.16), (0.36, 0.15, 0.07), (0.97, 0.88, 0.76)),  # fox
    ((0.95, 0.66, 0.22), (0.20, 0.12, 0.08), (0.98, 0.90, 0.74)),  # tiger
    ((0.42, 0.58, 0.82), (0.16, 0.25, 0.52), (0.86, 0.91, 0.97)),  # blue
    ((0.76, 0.68, 0.58), (0.25, 0.18, 0.15), (0.90, 0.84, 0.76)),  # sand
    ((0.48, 0.72, 0.40), (0.14, 0.40, 0.24), (0.90, 0.90, 0.58)),  # green
    ((0.92, 0.55, 0.60), (0.62, 0.22, 0.36), (0.98, 0.82, 0.78)),  # pink
    ((0.58, 0.37, 0.23), (0.24, 0.13, 0.08), (0.88, 0.76, 0.60)),  # brown
    ((0.60, 0.46, 0.80), (0.30, 0.17, 0.52), (0.90, 0.83, 0.95)),  # violet
    ((0.56, 0.58, 0.62), (0.20, 0.22, 0.28), (0.86, 0.86, 0.84)),  # grey
)
_EYE = ((0.97, 0.97, 0.95), (0.06, 0.05, 0.06), (1.0, 1.0, 1.0))
_NOSE = ((0.14, 0.11, 0.11),) * 3
_GAITS = {  # phase of front left, front right, hind left, hind right
    "trot": (0.0, 0.5, 0.5, 0.0),
    "walk": (0.25, 0.75, 0.0, 0.5),
}
# The whole walk stays in a box of this extent and a ball of this radius around the origin. A camera at
# radius 2 with a field of view of 33.8 degrees sees a ball of 2 sin(16.9 deg) = 0.581.
_EXTENT = 1.0
_BALL = 0.55


def make_creature(seed: int) -> Creature:
    """Return the animal of a seed, walking on the spot: the same on every machine.

    It looks across the input view, half towards the camera, and stays within a unit box around the origin.
    """
    dice = Dice(seed)
    palette = _jittered(_PALETTES[seed % len(_PALETTES)], dice)
    pattern = dice.choose(("stripes", "spots", "patches"))
    body = _body(dice)
    gait = dice.choose(tuple(_GAITS.values()))
    bones = (*body, *_head(dice), *_legs(dice, gait), *_tail(dice))
    bones = tuple(_painted(bone, palette, pattern) for bone in bones)
    creature = Creature(
        bones=bones,
        heading_deg=dice.choose((-1, 1)) * dice.between(35, 75),
        cycles=dice.choose((1, 2)),
        bob=dice.between(0.012, 0.022),
        marking_frequency={"stripes": 6.5, "spots": 6.0, "patches": 5.0}[pattern] * dice.between(0.85, 1.15),
        marking_phases=(dice.between(0, 6.28), dice.between(0, 6.28), dice.between(0, 6.28)),
    )
    return fitted(creature)


def _body(dice: Dice) -> tuple[Bone, ...]:
    """Return the trunk: a belly with chest and rump on it, about 0.9 long."""
    stout, long = dice.between(0.85, 1.15), dice.between(0.92, 1.12)
    w, h = 0.185 * stout, 0.195 * stout
    return (
        Bone("belly", "", (0, 0, 0), (0, 0, 0), (w, h, 0.36 * long), swing_deg=2.0, beats=2, phase=0.15),
        Bone("chest", "belly", (0, 0.015, 0.17 * long), (0, 0, 0), (1.04 * w, 1.1 * h, 0.23 * long)),
        Bone("rump", "belly", (0, 0.01, -0.18 * long), (0, 0, 0), (1.01 * w, 1.05 * h, 0.21 * long)),
    )


def _head(dice: Dice) -> tuple[Bone, ...]:
    """Return neck, head, muzzle, nose, eyes and ears."""
    size, neck = dice.between(0.9, 1.12), dice.between(0.10, 0.22)
    muzzle, ears = dice.between(0.09, 0.16), dice.choose(("pointed", "round", "long", "floppy"))
    lean = dice.between(25, 45)
    r = 0.17 * size
    bones = [
        Bone(
            "neck", "chest", (0, 0.08, 0.08), (0, neck / 2, 0), (0.105, 0.09 + neck / 2, 0.115),
            rest_deg=(lean, 0, 0), axis=(0, 1, 0), swing_deg=dice.between(4, 10),
        ),
        Bone(
            "head", "neck", (0, neck + 0.06, 0.02), (0, 0.05, 0.04), (0.98 * r, 0.92 * r, r),
            rest_deg=(-lean, 0, 0), swing_deg=dice.between(3, 7), beats=2,
        ),
        Bone(
            "muzzle", "head", (0, 0.005, 0.04 + 0.75 * r), (0, 0, 0.3 * muzzle),
            (0.56 * r, 0.44 * r, 0.05 + 0.6 * muzzle),
        ),
        Bone(
            "nose", "muzzle", (0, 0.26 * r, 0.035 + 0.85 * muzzle), (0, 0, 0),
            (0.21 * r, 0.16 * r, 0.16 * r),
        ),
    ]  # fmt: skip
    for side, sign in (("left", 1), ("right", -1)):
        bones.append(
            Bone(
                f"eye {side}",
                "head",
                (sign * 0.56 * r, 0.05 + 0.3 * r, 0.04 + 0.72 * r),
                (0, 0, 0),
                (0.25 * r, 0.29 * r, 0.2 * r),
                rest_deg=(-4, sign * 30, 0),
                pattern="eye",
            )  # fmt: skip
        )
        joint = (sign * 0.55 * r, 0.05 + 0.68 * r, 0.01)
        flap = {"axis": (0.0, 0.0, 1.0), "swing_deg": sign * dice.between(4, 9), "beats": 2}
        length, radii, rest = {
            "pointed": (0.42, (0.36, 0.62, 0.18), (-5, sign * 15, -sign * 16)),
            "round": (0.22, (0.46, 0.46, 0.17), (-5, sign * 15, -sign * 38)),
            "long": (0.95, (0.26, 1.05, 0.17), (-14, sign * 10, -sign * 14)),
            "floppy": (0.55, (0.30, 0.75, 0.16), (0, sign * 20, -sign * 128)),
        }[ears]
        scaled = (radii[0] * r, radii[1] * r, radii[2] * r)
        bones.append(Bone(f"ear {side}", "head", joint, (0, length * r, 0), scaled, rest, **flap))
    return tuple(bones)


def _legs(dice: Dice, gait: tuple[float, ...]) -> tuple[Bone, ...]:
    """Return four legs of thigh, shank and paw.

    A positive angle swings a leg backwards. The knee bends most while the leg swings forwards, a quarter of
    a cycle before the hip.
    """
    upper, lower = dice.between(0.19, 0.25), dice.between(0.17, 0.24)
    thick, stride, lift = dice.between(0.9, 1.15), dice.between(24, 34), dice.between(16, 26)
    bones = []
    for (end, side, sign), phase in zip(
        (("front", "left", 1), ("front", "right", -1), ("hind", "left", 1), ("hind", "right", -1)),
        gait,
        strict=True,
    ):
        front = end == "front"
        trunk, joint = (
            ("chest", (sign * 0.105, -0.07, 0.03)) if front else ("rump", (sign * 0.105, -0.05, -0.04))
        )
        leg, heavy = f"{end} {side}", 1.0 if front else 1.2
        bones += [
            Bone(
                f"thigh {leg}", trunk, joint, (0, -upper / 2, 0),
                (0.075 * thick, 0.62 * upper, 0.085 * thick * heavy),
                rest_deg=(0 if front else -12, 0, 0), swing_deg=stride, phase=phase,
            ),
            Bone(
                f"shank {leg}", f"thigh {leg}", (0, -upper, 0), (0, -lower / 2, 0),
                (0.052 * thick, 0.62 * lower, 0.055 * thick),
                rest_deg=(lift if front else lift + 8, 0, 0), swing_deg=lift, phase=phase - 0.25,
            ),
            Bone(
                f"paw {leg}", f"shank {leg}", (0, -lower, 0), (0, -0.01, 0.025),
                (0.062 * thick, 0.042 * thick, 0.085 * thick),
                rest_deg=(-lift if front else -lift + 4, 0, 0), swing_deg=0.6 * lift, phase=phase + 0.25,
            ),
        ]  # fmt: skip
    return tuple(bones)


def _tail(dice: Dice) -> tuple[Bone, ...]:
    """Return a tail of three wagging pieces, each a little behind the one before."""
    length, thick, lift = dice.between(0.12, 0.19), dice.between(0.032, 0.055), dice.between(15, 55)
    wag, tuft = dice.between(14, 24), dice.between(0.8, 1.7)
    bones, parent, joint, rest = [], "rump", (0.0, 0.09, -0.13), (lift - 20, 0.0, 0.0)
    for i, radius in enumerate((thick, 0.9 * thick, tuft * thick)):
        bones.append(
            Bone(
                f"tail {i}",
                parent,
                joint,
                (0, 0, -length / 2),
                (radius, radius, 0.6 * length),
                rest_deg=rest,
                axis=(0, 1, 0),
                swing_deg=wag,
                phase=-0.12 * i,
            )  # fmt: skip
        )
        parent, joint, rest = f"tail {i}", (0.0, 0.0, -length), (lift / 2, 0.0, 0.0)
    return tuple(bones)


def _painted(bone: Bone, palette: tuple[Vector, Vector, Vector], pattern: str) -> Bone:
    """Return the bone in its colours: coat everywhere but on eyes, nose, muzzle, paws and ears."""
    base, marking, underside = palette
    kind = bone.name.split()[0]
    if kind == "eye":
        return replace(bone, colours=_EYE)
    plain = {"nose": _NOSE, "muzzle": (underside,) * 3, "paw": (marking,) * 3, "ear": (marking,) * 3}
    if kind in plain:
        return replace(bone, colours=plain[kind])
    if bone.name == "tail 2":
        return replace(bone, colours=(marking,) * 3)
    return replace(
        bone, colours=(base, marking, base if kind in ("thigh", "shank") else underside), pattern=pattern
    )


def _jittered(palette: tuple[Vector, Vector, Vector], dice: Dice) -> tuple[Vector, Vector, Vector]:
    """Return the palette with every channel moved by up to 0.05."""

    def moved(colour: Vector) -> Vector:
        r, g, b = (min(max(c + dice.between(-0.05, 0.05), 0.0), 1.0) for c in colour)
        return r, g, b

    base, marking, underside = palette
    return moved(base), moved(marking), moved(underside)


def fitted(creature: Creature, n_times: int = 33) -> Creature:
    """Return the creature moved and scaled so that its motion fits the unit box and the ball of the view.

    Its former scale and origin do not matter. The motion is looked at ``n_times`` times.
    """
    unscaled = replace(creature, heading_deg=0.0, scale=1.0, origin=(0.0, 0.0, 0.0))
    cloud = surface_points(parts_at(unscaled, torch.linspace(0, 1, n_times)))
    low, high = cloud.amin(0), cloud.amax(0)
    middle = (low + high) / 2
    ball = float((cloud - middle).norm(dim=-1).max())
    scale = min(_EXTENT / float((high - low).max()), _BALL / ball)
    x, y, z = (-scale * middle).tolist()
    return replace(creature, scale=scale, origin=(x, y, z))


def surface_points(parts: Parts, n: int = 128) -> Tensor:
    """Return points [T * P * n, 3] spread evenly over the ellipsoids (a Fibonacci lattice)."""
    i = torch.arange(n, dtype=torch.float64) + 0.5
    height, turn = 1 - 2 * i / n, math.pi * (1 + math.sqrt(5)) * i
    ring = (1 - height.square()).sqrt()
    sphere = torch.stack([ring * turn.cos(), height, ring * turn.sin()], dim=-1)
    local = sphere * parts.radii[:, None, :]  # [P, n, 3]
    points = torch.einsum("tpij,pnj->tpni", parts.rotations, local) + parts.centres[:, :, None]
    return points.reshape(-1, 3)
