"""Skeletons of ellipsoids that move, where they are at a time, and the walking animal of a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..cameras import Cameras
from .coat import EYE, PATTERNS, Coat, Dice, Light, Paint, Palette, Vector, plain

Y, Z = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)  # axes; hinges turn about x where nothing is said
SIDES = (("left", 1), ("right", -1))  # the sign of x


@dataclass(frozen=True)
class Bone:
    """One ellipsoid and the hinge that joins it to its parent.

    The hinge angle is ``swing_deg * sin(2 pi (beats * cycles * t + phase)) + 360 turns * cycles * t`` about
    ``axis``, on top of the rest rotation.
    """

    name: str  # unique within the creature
    parent: str  # name of an earlier bone, or "" for the root
    joint: Vector  # the hinge in the parent's frame
    centre: Vector  # of the ellipsoid in the bone's own frame, whose origin is the hinge
    radii: Vector  # half axes
    rest_deg: Vector = (0.0, 0.0, 0.0)  # rest rotation, applied about z, then x, then y
    axis: Vector = (1.0, 0.0, 0.0)  # unit axis of the hinge in the bone's own frame
    swing_deg: float = 0.0  # amplitude
    phase: float = 0.0  # part of a cycle in 0..1
    beats: int = 1  # swings per walk cycle, a whole number so that the motion stays periodic
    colours: Paint = plain(0.5, 0.5, 0.5)
    pattern: str = "plain"  # one of PATTERNS
    turns: float = 0.0  # turns per walk cycle, for wheels; a whole number where the motion is periodic


class Bones(list[Bone]):
    """A skeleton in the making: each method adds an ellipsoid; further fields as in `Bone`.

    Parts without a paint of their own have the palette's main one, with its pattern.
    """

    def __init__(self, palette: Palette | None = None) -> None:
        super().__init__()
        self._coat = {} if palette is None else {"colours": palette.main, "pattern": palette.pattern}

    def limb(
        self,
        name: str,
        parent: str,
        joint: Vector,
        centre: Vector,
        radii: Vector,
        paint: Paint | None = None,
        **more: Any,
    ) -> None:
        """Add an ellipsoid that hinges on a joint beside its centre."""
        look = self._coat if paint is None else {"colours": paint}
        self.append(Bone(name, parent, joint, centre, radii, **look, **more))

    def ball(
        self,
        name: str,
        parent: str,
        at: Vector,
        radii: float | Vector,
        paint: Paint | None = None,
        **more: Any,
    ) -> None:
        """Add an ellipsoid that hinges on its own centre."""
        half_axes = radii if isinstance(radii, tuple) else (radii, radii, radii)
        self.limb(name, parent, at, (0.0, 0.0, 0.0), half_axes, paint, **more)

    def eye(
        self, name: str, parent: str, at: Vector, radii: float | Vector, turn_deg: float, tilt_deg: float = 0
    ) -> None:
        """Add an eye that looks along +z of its parent, turned about y and then tilted about x."""
        self.ball(name, parent, at, radii, EYE, rest_deg=(tilt_deg, turn_deg, 0), pattern="eye")

    def strut(
        self,
        name: str,
        parent: str,
        start: Vector,
        end: Vector,
        radius: float,
        paint: Paint | None = None,
        **more: Any,
    ) -> None:
        """Add a long ellipsoid hinged at ``start``, whose own +y points to ``end``.

        It reaches beyond both by a tenth of its length, so that struts in a row overlap.
        """
        x, y, z = (b - a for a, b in zip(start, end, strict=True))
        length = math.hypot(x, y, z)
        rest_deg = (math.degrees(math.acos(y / length)), math.degrees(math.atan2(x, z)), 0.0)
        radii = (radius, 0.6 * length, radius)
        self.limb(name, parent, start, (0.0, length / 2, 0.0), radii, paint, rest_deg=rest_deg, **more)


def on_circle(i: int, n: int, radius: float, height: float) -> Vector:
    """Return the place of the i-th of n things that stand evenly around the y axis, the first in front."""
    angle = 2 * math.pi * i / n
    return radius * math.sin(angle), height, radius * math.cos(angle)


@dataclass(frozen=True)
class Creature:
    """A skeleton that moves on the spot or along a path; `make_creature` draws an animal from a seed."""

    bones: tuple[Bone, ...]  # parents before children, the root first
    heading_deg: float = 0.0  # azimuth the animal looks to (0: to the input camera, 90: to +x)
    cycles: float = 1  # walk cycles from time 0 to 1; a whole number where the motion is periodic
    bob: float = 0.0  # amplitude of the body's rise and fall, two per cycle, in the bones' lengths
    scale: float = 1.0  # world units per length of the bones
    origin: Vector = (0.0, 0.0, 0.0)  # where the root rests, in the creature frame, world units
    marking_frequency: float = 6.0  # markings per world unit
    marking_phases: Vector = (0.0, 0.0, 0.0)  # radians
    path: Vector = (0.0, 0.0, 0.0)  # way of the root from time 0 to 1, its rest half-way; bones' lengths
    light: Light = Light()


@dataclass(frozen=True)
class Parts:
    """P ellipsoids at T times, in the world; float64 on the CPU."""

    centres: Tensor  # [T, P, 3] world units
    rotations: Tensor  # [T, P, 3, 3] from the ellipsoid's own axes to the world
    radii: Tensor  # [P, 3] half axes, world units
    coat: Coat
    light: Light = Light()


def parts_at(creature: Creature, times: Tensor) -> Parts:
    """Return the ellipsoids at ``times`` [T] in 0..1, on the CPU: a few dozen numbers per time."""
    times = times.detach().to("cpu", torch.float64)
    centres, rotations = _pose(creature, times, motion=1.0)
    rest_centres, rest_rotations = _pose(creature, times.new_zeros(1), motion=0.0)
    heading = _rotation(_table(Y), torch.deg2rad(torch.tensor(creature.heading_deg).double()))
    bones = creature.bones
    return Parts(
        centres=centres @ heading.T,
        rotations=heading @ rotations,
        radii=_table([bone.radii for bone in bones]) * creature.scale,
        coat=Coat(
            colours=_table([bone.colours for bone in bones]),
            patterns=torch.tensor([PATTERNS.index(bone.pattern) for bone in bones]),
            rest_centres=rest_centres[0],
            rest_rotations=rest_rotations[0],
            frequency=creature.marking_frequency,
            phases=_table(creature.marking_phases),
        ),
        light=creature.light,
    )


def _pose(creature: Creature, times: Tensor, motion: float) -> tuple[Tensor, Tensor]:
    """Return centres [T, P, 3] and rotations [T, P, 3, 3] in the creature frame, swings times ``motion``."""
    bones, scale = creature.bones, creature.scale
    cycle = creature.cycles * times  # [T]
    bob = motion * creature.bob * torch.sin(4 * torch.pi * cycle)
    travel = motion * (times - 0.5)
    root = _table(creature.origin) + scale * bob[:, None] * _table(Y)
    root = root + scale * travel[:, None] * _table(creature.path)
    hinges = _table([(bone.beats, bone.phase, bone.swing_deg, bone.turns) for bone in bones])
    beats, phases, swings_deg, turns = hinges.T[..., None]  # [P, 1] each
    swing = motion * torch.sin(2 * torch.pi * (beats * cycle + phases))
    angles = torch.deg2rad(swings_deg * swing + motion * 360 * turns * cycle)  # [P, T]
    x, y, z = torch.deg2rad(_table([bone.rest_deg for bone in bones])).T
    rest = _rotation(_table(Y), y) @ _rotation(_table((1.0, 0.0, 0.0)), x) @ _rotation(_table(Z), z)
    turned = rest[:, None] @ _rotation(_table([bone.axis for bone in bones])[:, None], angles)
    joints = scale * _table([bone.joint for bone in bones])
    centres = scale * _table([bone.centre for bone in bones])
    frames = {"": (root, torch.eye(3, dtype=torch.float64).expand(len(times), 3, 3))}
    for bone, joint, local in zip(bones, joints, turned, strict=True):
        origin, rotation = frames[bone.parent]
        frames[bone.name] = origin + rotation @ joint, rotation @ local
    del frames[""]
    origins, rotations = (torch.stack(column, dim=1) for column in zip(*frames.values(), strict=True))
    return origins + (rotations @ centres[..., None])[..., 0], rotations


def _rotation(axis: Tensor, angle: Tensor) -> Tensor:
    """Return rotations [..., 3, 3] about unit axes [..., 3] by ``angle`` [...] radians (Rodrigues)."""
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    sin, cos = angle.sin()[..., None, None], angle.cos()[..., None, None]
    return torch.eye(3, dtype=torch.float64) + sin * cross + (1 - cos) * (cross @ cross)


def _table(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def surface_points(parts: Parts, n: int = 128) -> Tensor:
    """Return points [T * P * n, 3] spread evenly over the ellipsoids (a Fibonacci lattice)."""
    return _surface_points(parts.centres, parts.rotations, parts.radii, n)


def _surface_points(centres: Tensor, rotations: Tensor, radii: Tensor, n: int = 128) -> Tensor:
    i = torch.arange(n, dtype=torch.float64) + 0.5
    height, turn = 1 - 2 * i / n, math.pi * (1 + math.sqrt(5)) * i
    ring = (1 - height.square()).sqrt()
    sphere = torch.stack([ring * turn.cos(), height, ring * turn.sin()])  # [3, n]
    # Coordinate by coordinate in memory: their extremes are what is asked for.
    axes = (rotations * radii[:, None, :]).flatten(0, 1).transpose(0, 1)  # [3, T * P, 3]
    return (axes @ sphere + centres.flatten(0, 1).T[..., None]).flatten(1).T


# The whole walk stays in a box of this extent and a ball of this radius around the origin. A camera at
# radius 2 with a field of view of 33.8 degrees sees a ball of 2 sin(16.9 deg) = 0.581.
_EXTENT = 1.0
_BALL = 0.55


def fitted(creature: Creature, n_times: int = 33) -> Creature:
    """Return the creature moved and scaled so that its motion fits the unit box and the ball of the view."""
    unscaled = replace(creature, heading_deg=0.0, scale=1.0, origin=(0.0, 0.0, 0.0))
    times = torch.linspace(0, 1, n_times).double()
    cloud = _surface_points(*_pose(unscaled, times, motion=1.0), _table([b.radii for b in creature.bones]))
    low, high = cloud.amin(0), cloud.amax(0)
    middle = (low + high) / 2
    ball = float((cloud - middle).T.square().sum(0).max().sqrt())
    scale = min(_EXTENT / float((high - low).max()), _BALL / ball)
    x, y, z = (-scale * middle).tolist()
    return replace(creature, scale=scale, origin=(x, y, z))


_ROUNDS = 4  # nearer parts grow faster than the object: each round corrects the one before


def framed(parts: Parts, cameras: Cameras, fill: float) -> Parts:
    """Return the object centred and scaled so that in the tightest picture it reaches to ``fill``.

    It is a share of half the picture's side, at all times of the parts and for all cameras.
    """
    points = surface_points(parts)
    middle = (points.amin(0) + points.amax(0)) / 2
    to_camera = cameras.w2c_opencv()  # [V + 1, 4, 4]
    turned, shift = to_camera[:, :3, :3] @ (points - middle).T, to_camera[:, :3, 3:]
    half = math.tan(math.radians(cameras.fov_deg) / 2)
    scale = 1.0
    for _ in range(_ROUNDS):
        seen = scale * turned + shift  # [V + 1, 3, N]
        # How far the points reach from the middle of any picture, in halves of its side.
        scale *= fill * half / float((seen[:, :2].abs().amax(1) / seen[:, 2]).max())
    coat, centres = parts.coat, (parts.centres - middle) * scale
    coat = replace(coat, rest_centres=coat.rest_centres * scale, frequency=coat.frequency / scale)
    return replace(parts, centres=centres, radii=parts.radii * scale, coat=coat)


_PALETTES: tuple[Paint, ...] = (
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
_NOSE = plain(0.14, 0.11, 0.11)
_GAITS = {  # phase of front left, front right, hind left, hind right
    "trot": (0.0, 0.5, 0.5, 0.0),
    "walk": (0.25, 0.75, 0.0, 0.5),
}


def make_creature(seed: int) -> Creature:
    """Return the animal of a seed, walking on the spot: the same on every machine.

    It looks across the input view, half towards the camera, and stays within a unit box around the origin.
    """
    return fitted(walking_animal(seed))


def walking_animal(seed: int) -> Creature:
    """Return the animal of `make_creature`, of any size."""
    dice = Dice(seed)
    coat = _jittered(_PALETTES[seed % len(_PALETTES)], dice)
    marking, underside = (plain(*colour) for colour in coat[1:])
    pattern = dice.choose(("stripes", "spots", "patches"))
    palette = Palette(coat, marking, marking, underside, _NOSE, pattern)
    body = _body(dice, palette)
    gait = dice.choose(tuple(_GAITS.values()))
    return Creature(
        (*body, *_head(dice, palette), *_legs(dice, palette, gait), *_tail(dice, palette)),
        heading_deg=dice.choose((-1, 1)) * dice.between(35, 75),
        cycles=dice.choose((1, 2)),
        bob=dice.between(0.012, 0.022),
        marking_frequency={"stripes": 6.5, "spots": 6.0, "patches": 5.0}[pattern] * dice.between(0.85, 1.15),
        marking_phases=(dice.between(0, 6.28), dice.between(0, 6.28), dice.between(0, 6.28)),
    )


# One part of an animal stands on as few lines as it needs; ruff would spread it over ten.
# fmt: off
def _body(dice: Dice, palette: Palette) -> Bones:
    """Return the trunk: a belly with chest and rump on it, about 0.9 long."""
    stout, long = dice.between(0.85, 1.15), dice.between(0.92, 1.12)
    w, h = 0.185 * stout, 0.195 * stout
    bones = Bones(palette)
    bones.ball("belly", "", (0, 0, 0), (w, h, 0.36 * long), swing_deg=2.0, beats=2, phase=0.15)
    bones.ball("chest", "belly", (0, 0.015, 0.17 * long), (1.04 * w, 1.1 * h, 0.23 * long))
    bones.ball("rump", "belly", (0, 0.01, -0.18 * long), (1.01 * w, 1.05 * h, 0.21 * long))
    return bones


def _head(dice: Dice, palette: Palette) -> Bones:
    """Return neck, head, muzzle, nose, eyes and ears."""
    size, neck = dice.between(0.9, 1.12), dice.between(0.10, 0.22)
    muzzle, ears = dice.between(0.09, 0.16), dice.choose(("pointed", "round", "long", "floppy"))
    lean = dice.between(25, 45)
    r = 0.17 * size
    bones = Bones(palette)
    bones.limb("neck", "chest", (0, 0.08, 0.08), (0, neck / 2, 0), (0.105, 0.09 + neck / 2, 0.115),
               rest_deg=(lean, 0, 0), axis=Y, swing_deg=dice.between(4, 10))
    bones.limb("head", "neck", (0, neck + 0.06, 0.02), (0, 0.05, 0.04), (0.98 * r, 0.92 * r, r),
               rest_deg=(-lean, 0, 0), swing_deg=dice.between(3, 7), beats=2)
    bones.limb("muzzle", "head", (0, 0.005, 0.04 + 0.75 * r), (0, 0, 0.3 * muzzle),
               (0.56 * r, 0.44 * r, 0.05 + 0.6 * muzzle), palette.light)
    tip = (0, 0.26 * r, 0.035 + 0.85 * muzzle)
    bones.ball("nose", "muzzle", tip, (0.21 * r, 0.16 * r, 0.16 * r), palette.dark)
    for side, a in SIDES:
        at = (a * 0.56 * r, 0.05 + 0.3 * r, 0.04 + 0.72 * r)
        bones.eye(f"eye {side}", "head", at, (0.25 * r, 0.29 * r, 0.2 * r), a * 30, -4)
        length, (x, y, z), rest = {
            "pointed": (0.42, (0.36, 0.62, 0.18), (-5, a * 15, -a * 16)),
            "round": (0.22, (0.46, 0.46, 0.17), (-5, a * 15, -a * 38)),
            "long": (0.95, (0.26, 1.05, 0.17), (-14, a * 10, -a * 14)),
            "floppy": (0.55, (0.30, 0.75, 0.16), (0, a * 20, -a * 128)),
        }[ears]
        bones.limb(f"ear {side}", "head", (a * 0.55 * r, 0.05 + 0.68 * r, 0.01), (0, length * r, 0),
                   (x * r, y * r, z * r), palette.second, rest_deg=rest, axis=Z,
                   swing_deg=a * dice.between(4, 9), beats=2)
    return bones


def _legs(dice: Dice, palette: Palette, gait: tuple[float, ...]) -> Bones:
    """Return four legs of thigh, shank and paw; positive angles swing backwards.

    The knee bends most while the leg swings forwards, a quarter of a cycle before the hip.
    """
    upper, lower = dice.between(0.19, 0.25), dice.between(0.17, 0.24)
    thick, stride, lift = dice.between(0.9, 1.15), dice.between(24, 34), dice.between(16, 26)
    base, marking, _ = palette.main
    ends = (  # end, trunk, joint, girth of the thigh, rest of thigh, shank and paw
        ("front", "chest", -0.07, 0.03, 1.0, (0, lift, -lift)),
        ("hind", "rump", -0.05, -0.04, 1.2, (-12, lift + 8, -lift + 4)),
    )
    corners = [(*end, *side) for end in ends for side in SIDES]
    bones = Bones(replace(palette, main=(base, marking, base)))
    for (end, trunk, y, z, heavy, rest, side, a), phase in zip(corners, gait, strict=True):
        leg = f"{end} {side}"
        bones.limb(f"thigh {leg}", trunk, (a * 0.105, y, z), (0, -upper / 2, 0),
                   (0.075 * thick, 0.62 * upper, 0.085 * thick * heavy),
                   rest_deg=(rest[0], 0, 0), swing_deg=stride, phase=phase)
        bones.limb(f"shank {leg}", f"thigh {leg}", (0, -upper, 0), (0, -lower / 2, 0),
                   (0.052 * thick, 0.62 * lower, 0.055 * thick),
                   rest_deg=(rest[1], 0, 0), swing_deg=lift, phase=phase - 0.25)
        bones.limb(f"paw {leg}", f"shank {leg}", (0, -lower, 0), (0, -0.01, 0.025),
                   (0.062 * thick, 0.042 * thick, 0.085 * thick), palette.second,
                   rest_deg=(rest[2], 0, 0), swing_deg=0.6 * lift, phase=phase + 0.25)
    return bones


def _tail(dice: Dice, palette: Palette) -> Bones:
    """Return a tail of three wagging pieces, each a little behind the one before, the last a tuft."""
    length, thick, lift = dice.between(0.12, 0.19), dice.between(0.032, 0.055), dice.between(15, 55)
    wag, tuft = dice.between(14, 24), dice.between(0.8, 1.7)
    bones, parent, joint, rest = Bones(palette), "rump", (0.0, 0.09, -0.13), (lift - 20, 0.0, 0.0)
    for i, (radius, paint) in enumerate(((thick, None), (0.9 * thick, None), (tuft * thick, palette.second))):
        bones.limb(f"tail {i}", parent, joint, (0, 0, -length / 2), (radius, radius, 0.6 * length), paint,
                   rest_deg=rest, axis=Y, swing_deg=wag, phase=-0.12 * i)
        parent, joint, rest = f"tail {i}", (0.0, 0.0, -length), (lift / 2, 0.0, 0.0)
    return bones


# fmt: on
def _jittered(paint: Paint, dice: Dice) -> Paint:
    """Return the paint with every channel moved by up to 0.05."""

    def moved(colour: Vector) -> Vector:
        r, g, b = (min(max(c + dice.between(-0.05, 0.05), 0.0), 1.0) for c in colour)
        return r, g, b

    base, marking, underside = paint
    return moved(base), moved(marking), moved(underside)
