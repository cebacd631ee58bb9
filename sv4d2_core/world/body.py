"""What a creature's surface looks like: procedural markings in body coordinates, and how light falls on it.

Nothing here depends on the viewer. Two cameras that see the same surface point see the same colour, so a
rendering is exact ground truth for multi-view consistency.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..cameras import Cameras

_Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Light:
    """Light that is fixed in the world, so that a surface point looks the same to every camera.

    By default the key stands to the upper right of the input camera, the rim behind the object so that its
    outline is readable against the dark side.

    Args:
        key_direction: towards the soft main light, of any length.
        key: RGB of the main light.
        rim_direction: towards the light that draws the outline, of any length.
        rim: RGB of that light.
        sky: RGB of the light that comes from everywhere, on a surface that looks up.
        ground: the same on a surface that looks down.
    """

    key_direction: _Triple = (0.45, 0.80, 0.55)
    key: _Triple = (0.56, 0.54, 0.50)
    rim_direction: _Triple = (-0.55, 0.35, -0.75)
    rim: _Triple = (0.22, 0.25, 0.30)
    sky: _Triple = (0.62, 0.63, 0.66)
    ground: _Triple = (0.40, 0.38, 0.37)


PATTERNS = ("plain", "stripes", "spots", "patches", "eye")

_KEY_WRAP = 0.3
# Where on an eyeball, in its own frame, the pupil looks and the highlight sits; both are cosines of an angle.
_GAZE = (0.0, 0.0, 1.0)
_GLINT = (0.35, 0.60, 0.72)


@dataclass(frozen=True)
class Coat:
    """Colours and markings of P ellipsoids.

    The markings are functions of the rest pose, so that they run on from one part to the next and move with
    the parts.

    Args:
        colours: [P, 3, 3] RGB in 0..1 of the base, of the markings, and of the underside (of an eye: white,
            pupil, glint).
        patterns: [P] index into ``PATTERNS``.
        rest_centres: [P, 3] centres in the rest pose.
        rest_rotations: [P, 3, 3] local-to-creature rotations in the rest pose.
        frequency: markings per unit of length.
        phases: [3] radians, shift the markings.
    """

    colours: Tensor
    patterns: Tensor
    rest_centres: Tensor
    rest_rotations: Tensor
    frequency: float
    phases: Tensor

    @classmethod
    def plain(cls, colours: Tensor) -> Coat:
        """Return a coat of one colour per part, colours [P, 3]."""
        n = len(colours)
        return cls(
            colours=colours[:, None].expand(n, 3, 3),
            patterns=torch.zeros(n, dtype=torch.long),
            rest_centres=colours.new_zeros(n, 3),
            rest_rotations=torch.eye(3, dtype=colours.dtype).expand(n, 3, 3),
            frequency=1.0,
            phases=colours.new_zeros(3),
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> Coat:
        """Return the coat on a device, its real numbers in a dtype."""
        return Coat(
            self.colours.to(device, dtype),
            self.patterns.to(device),
            self.rest_centres.to(device, dtype),
            self.rest_rotations.to(device, dtype),
            self.frequency,
            self.phases.to(device, dtype),
        )

    def albedo(self, part: Tensor, on_sphere: Tensor, radii: Tensor) -> Tensor:
        """Return the unlit colour of surface points, [N, 3].

        Args:
            part: [N] which ellipsoid.
            on_sphere: [N, 3] the point in the ellipsoid's frame, divided by the radii: on the unit sphere.
            radii: [P, 3] of all ellipsoids.
        """
        local = on_sphere * radii[part]
        at_rest = torch.einsum("nij,nj->ni", self.rest_rotations[part], local) + self.rest_centres[part]
        base, marking, underside = self.colours[part].unbind(1)
        pattern = self.patterns[part]
        amount = self._markings(pattern, at_rest, on_sphere)
        under = torch.where(
            pattern == PATTERNS.index("eye"),
            _ramp(_cosine(on_sphere, _GLINT), 0.93, 0.95),
            _ramp(-on_sphere[:, 1], 0.25, 0.75),
        )
        return torch.lerp(torch.lerp(base, marking, amount[:, None]), underside, under[:, None])

    def _markings(self, pattern: Tensor, at_rest: Tensor, on_sphere: Tensor) -> Tensor:
        """Return how much of the marking colour shows, [N] in 0..1."""
        x, y, z = (2 * torch.pi * self.frequency * at_rest).unbind(-1)
        p, q, r = self.phases.unbind()
        wobble = 0.7 * torch.sin(0.45 * y + 0.3 * z + q) + 0.5 * torch.sin(0.6 * x + r)
        stripes = torch.sin(0.9 * z + 0.45 * y + p + wobble)
        # Three waves along tilted axes: their common crests are blobs on no visible lattice.
        blobs = (
            torch.sin(0.93 * z + 0.35 * y + p)
            + torch.sin(0.85 * y - 0.42 * x + q)
            + torch.sin(0.80 * x + 0.55 * z - 0.3 * y + r)
        )
        slow = torch.sin(0.42 * z + p) + torch.sin(0.38 * y + 0.3 * x + q) + 0.4 * torch.sin(0.8 * x + r)
        amounts = torch.stack(
            [
                torch.zeros_like(x),
                _ramp(stripes, 0.25, 0.5),
                _ramp(blobs, 0.75, 1.0),
                _ramp(slow, 0.3, 0.45),
                _ramp(_cosine(on_sphere, _GAZE), 0.62, 0.68),
            ],
            dim=-1,
        )
        return amounts.gather(-1, pattern[:, None])[:, 0]


def shade(albedo: Tensor, normals: Tensor, light: Light) -> Tensor:
    """Return lit colours [N, 3] in 0..1: hemispheric ambient light, a soft key light and a rim light."""
    like = {"device": albedo.device, "dtype": albedo.dtype}
    sky, ground = torch.tensor(light.sky, **like), torch.tensor(light.ground, **like)
    key = ((_cosine(normals, light.key_direction) + _KEY_WRAP) / (1 + _KEY_WRAP)).clamp(min=0)[:, None]
    rim = _cosine(normals, light.rim_direction).clamp(min=0).square()[:, None]
    lit = torch.lerp(ground, sky, 0.5 + 0.5 * normals[:, 1:2])
    lit = lit + key * torch.tensor(light.key, **like) + rim * torch.tensor(light.rim, **like)
    return (albedo * lit).clamp(0, 1)


def _cosine(vectors: Tensor, direction: tuple[float, float, float]) -> Tensor:
    """Return the cosine between unit vectors [N, 3] and one direction, [N]."""
    d = torch.tensor(direction, device=vectors.device, dtype=vectors.dtype)
    return vectors @ (d / d.norm())


def _ramp(x: Tensor, low: float, high: float) -> Tensor:
    """Return the smooth step from 0 at ``low`` to 1 at ``high``."""
    s = ((x - low) / (high - low)).clamp(0, 1)
    return s * s * (3 - 2 * s)


Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Bone:
    """One ellipsoid and the hinge that joins it to its parent.

    The hinge angle is ``swing_deg * sin(2 pi (beats * cycles * t + phase)) + 360 turns * cycles * t`` about
    ``axis``, on top of the rest rotation.

    Args:
        name: unique within the creature.
        parent: name of an earlier bone, or "" for the root.
        joint: the hinge in the parent's frame, lengths.
        centre: the ellipsoid's centre in the bone's own frame, whose origin is the hinge.
        radii: half axes.
        rest_deg: rest rotation, applied about z, then x, then y.
        axis: unit axis of the hinge in the bone's own frame.
        swing_deg: amplitude.
        phase: part of a cycle in 0..1.
        beats: swings per walk cycle, a whole number so that the motion stays periodic.
        colours: RGB of base, markings and underside (`Coat`).
        pattern: one of ``PATTERNS``.
        turns: turns per walk cycle, for wheels; a whole number where the motion shall be periodic.
    """

    name: str
    parent: str
    joint: Vector
    centre: Vector
    radii: Vector
    rest_deg: Vector = (0.0, 0.0, 0.0)
    axis: Vector = (1.0, 0.0, 0.0)
    swing_deg: float = 0.0
    phase: float = 0.0
    beats: int = 1
    colours: tuple[Vector, Vector, Vector] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    pattern: str = "plain"
    turns: float = 0.0


@dataclass(frozen=True)
class Creature:
    """A skeleton that moves on the spot or along a path; `make_creature` draws an animal from a seed.

    Args:
        bones: parents before children, the root first.
        heading_deg: azimuth the animal looks to (0: to the input camera, 90: to +x).
        cycles: walk cycles in the time from 0 to 1; a whole number where the motion shall be periodic.
        bob: amplitude of the body's rise and fall, two per cycle, in the bones' lengths.
        scale: world units per length of the bones.
        origin: [3] where the root rests, in the creature frame, world units.
        marking_frequency: markings per world unit.
        marking_phases: radians.
        path: how far the root travels from time 0 to 1, straight and evenly, half before its place of rest
            and half after; in the creature frame and the bones' lengths.
        light: what lights it.
    """

    bones: tuple[Bone, ...]
    heading_deg: float = 0.0
    cycles: float = 1
    bob: float = 0.0
    scale: float = 1.0
    origin: Vector = (0.0, 0.0, 0.0)
    marking_frequency: float = 6.0
    marking_phases: Vector = (0.0, 0.0, 0.0)
    path: Vector = (0.0, 0.0, 0.0)
    light: Light = Light()


@dataclass(frozen=True)
class Parts:
    """P ellipsoids at T times, in the world; float64 on the CPU.

    Args:
        centres: [T, P, 3] world units.
        rotations: [T, P, 3, 3] from the ellipsoid's own axes to the world.
        radii: [P, 3] half axes, world units.
        coat: the colours.
        light: what lights them.
    """

    centres: Tensor
    rotations: Tensor
    radii: Tensor
    coat: Coat
    light: Light = Light()


def parts_at(creature: Creature, times: Tensor) -> Parts:
    """Return the creature's ellipsoids at ``times`` [T] in 0..1.

    Float64 on the CPU: a few dozen numbers per time, which the renderer moves to its device.
    """
    times = times.detach().to("cpu", torch.float64)
    centres, rotations = _pose(creature, times, motion=1.0)
    rest_centres, rest_rotations = _pose(creature, times.new_zeros(1), motion=0.0)
    heading = _rotation((0.0, 1.0, 0.0), torch.deg2rad(torch.tensor(creature.heading_deg).double()))
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
    cycle = creature.cycles * times  # [T]
    bob = motion * creature.bob * torch.sin(4 * torch.pi * cycle)
    travel = motion * (times - 0.5)
    root = _table(creature.origin) + creature.scale * bob[:, None] * _table((0.0, 1.0, 0.0))
    root = root + creature.scale * travel[:, None] * _table(creature.path)
    frames = {"": (root, torch.eye(3, dtype=torch.float64).expand(len(times), 3, 3))}
    centres, rotations = [], []
    for bone in creature.bones:
        origin, rotation = frames[bone.parent]
        origin = origin + creature.scale * rotation @ _table(bone.joint)
        swing = motion * torch.sin(2 * torch.pi * (bone.beats * cycle + bone.phase))
        turn = motion * 360 * bone.turns * cycle
        hinge = _rotation(bone.axis, torch.deg2rad(bone.swing_deg * swing + turn))
        rotation = rotation @ _rest_rotation(bone.rest_deg) @ hinge
        frames[bone.name] = origin, rotation
        centres.append(origin + creature.scale * rotation @ _table(bone.centre))
        rotations.append(rotation)
    return torch.stack(centres, dim=1), torch.stack(rotations, dim=1)


def _rest_rotation(angles_deg: Vector) -> Tensor:
    x, y, z = torch.deg2rad(_table(angles_deg)).unbind()
    return _rotation((0.0, 1.0, 0.0), y) @ _rotation((1.0, 0.0, 0.0), x) @ _rotation((0.0, 0.0, 1.0), z)


def _rotation(axis: Vector, angle: Tensor) -> Tensor:
    """Return rotations [..., 3, 3] about a unit axis by ``angle`` [...] radians (Rodrigues' formula)."""
    x, y, z = axis
    cross = _table(((0.0, -z, y), (z, 0.0, -x), (-y, x, 0.0)))
    sin, cos = angle.sin()[..., None, None], angle.cos()[..., None, None]
    return torch.eye(3, dtype=torch.float64) + sin * cross + (1 - cos) * (cross @ cross)


def _table(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


Option = TypeVar("Option")


class Dice:
    """Random numbers from one seed, independent of torch's global generator and the same on every machine.

    Only the lower 32 bits of the seed count.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def between(self, low: float, high: float) -> float:
        """Return a number from ``low`` to ``high``."""
        return low + (high - low) * float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def whole(self, low: int, high: int) -> int:
        """Return a whole number from ``low`` to ``high``, both included."""
        return low + int(torch.randint(high - low + 1, (), generator=self._generator))

    def chance(self, probability: float) -> bool:
        """Return whether something happens that has this probability."""
        return self.between(0, 1) < probability

    def choose(self, options: Sequence[Option]) -> Option:
        """Return one of the options, all alike likely."""
        return options[self.whole(0, len(options) - 1)]


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


Y, Z = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)  # axes; hinges turn about x where nothing is said
Paint = tuple[Vector, Vector, Vector]  # RGB of base, markings and underside
SIDES = (("left", 1), ("right", -1))  # the sign of x


def plain(r: float, g: float, b: float) -> Paint:
    """Return a paint of one colour."""
    return (r, g, b), (r, g, b), (r, g, b)


WHITE, CREAM, BLACK = plain(0.95, 0.94, 0.91), plain(0.96, 0.88, 0.70), plain(0.09, 0.09, 0.11)
RED, GOLD, BLUE = plain(0.82, 0.13, 0.12), plain(0.93, 0.68, 0.16), plain(0.16, 0.36, 0.72)
GREY, STEEL, WOOD = plain(0.36, 0.38, 0.42), plain(0.66, 0.70, 0.75), plain(0.55, 0.33, 0.16)
EYE: Paint = ((0.97, 0.97, 0.95), (0.06, 0.05, 0.06), (1.0, 1.0, 1.0))


def ball(name: str, parent: str, at: Vector, radii: float | Vector, paint: Paint, **bone: Any) -> Bone:
    """Return an ellipsoid that hinges on its own centre; further fields as in `Bone`."""
    half_axes = radii if isinstance(radii, tuple) else (radii, radii, radii)
    return limb(name, parent, at, (0.0, 0.0, 0.0), half_axes, paint, **bone)


def limb(
    name: str, parent: str, joint: Vector, centre: Vector, radii: Vector, paint: Paint, **bone: Any
) -> Bone:
    """Return an ellipsoid that hinges on a joint beside its centre; all fields as in `Bone`."""
    return Bone(name, parent, joint, centre, radii, colours=paint, **bone)


def strut(
    name: str, parent: str, start: Vector, end: Vector, radius: float, paint: Paint, **bone: Any
) -> Bone:
    """Return a long ellipsoid from ``start`` to ``end``, hinged at ``start``; its own +y points to ``end``.

    It reaches beyond both by a tenth of its length, so that struts in a row overlap.
    """
    x, y, z = (b - a for a, b in zip(start, end, strict=True))
    length = math.hypot(x, y, z)
    rest_deg = (math.degrees(math.acos(y / length)), math.degrees(math.atan2(x, z)), 0.0)
    radii = (radius, 0.6 * length, radius)
    centre = (0.0, length / 2, 0.0)
    return limb(name, parent, start, centre, radii, paint, rest_deg=rest_deg, **bone)


def on_circle(i: int, n: int, radius: float, height: float) -> Vector:
    """Return the place of the i-th of n things that stand evenly around the y axis, the first in front."""
    angle = 2 * math.pi * i / n
    return radius * math.sin(angle), height, radius * math.cos(angle)


_STYLES = {  # saturation from and to, value from and to
    "vivid": (0.55, 0.88, 0.72, 0.97),
    "pastel": (0.25, 0.50, 0.84, 0.96),
    "muted": (0.25, 0.55, 0.45, 0.75),
    "deep": (0.45, 0.80, 0.32, 0.55),
    "neutral": (0.02, 0.18, 0.20, 0.88),
}
_EARTH = (0.10, 0.28)  # hues of wood, fur and sand
# The painter's colour wheel: red, orange, yellow, green, blue, violet and red again in even steps, as hues of
# HSV, in which green would fill a third of the wheel.
_WHEEL = (0.0, 0.09, 0.155, 0.36, 0.60, 0.78, 1.0)


@dataclass(frozen=True)
class Palette:
    """The paints of one object.

    Args:
        main: the largest parts, with markings and an underside.
        second: one colour beside it.
        accent: one colour against it.
        light: nearly white.
        dark: nearly black.
        pattern: of the main paint, one of ``PATTERNS``.
    """

    main: Paint
    second: Paint
    accent: Paint
    light: Paint
    dark: Paint
    pattern: str


def draw_palette(dice: Dice) -> Palette:
    """Return a random palette: one hue, a second that harmonises with it, and an accent."""
    hue = dice.between(*_EARTH) if dice.chance(0.25) else dice.between(0, 1)
    offset = dice.choose((0.5, 0.33, -0.33, 0.09, -0.09, 0.42))
    base = _colour(dice, hue, dice.choose(tuple(_STYLES)))
    second = _colour(dice, hue + offset, dice.choose(("vivid", "pastel", "muted", "deep")))
    accent = _colour(dice, hue + dice.choose((0.5, 0.17, -0.17)), "vivid")
    marking = second if dice.chance(0.4) else _against(base, dice.between(0.45, 0.75))
    underside = base if dice.chance(0.5) else _mixed(base, (0.97, 0.94, 0.88), dice.between(0.3, 0.8))
    return Palette(
        (base, marking, underside),
        plain(*second),
        plain(*accent),
        plain(*_colour(dice, hue, "neutral", value=(0.86, 0.95))),
        plain(*_colour(dice, hue, "neutral", value=(0.07, 0.24))),
        dice.choose(("plain", "stripes", "spots", "patches")),
    )


def _colour(dice: Dice, hue: float, style: str, value: tuple[float, float] | None = None) -> Vector:
    """Return a colour of a style; the hue counts turns of the painter's wheel."""
    low, high, dark, bright = _STYLES[style]
    place, share = divmod(hue % 1.0 * (len(_WHEEL) - 1), 1.0)
    hue = _WHEEL[int(place)] + share * (_WHEEL[int(place) + 1] - _WHEEL[int(place)])
    return colorsys.hsv_to_rgb(hue % 1.0, dice.between(low, high), dice.between(*(value or (dark, bright))))


def _against(colour: Vector, amount: float) -> Vector:
    """Return a colour darker than a light one or lighter than a dark one."""
    return _mixed(colour, (0.06, 0.04, 0.06) if max(colour) > 0.55 else (0.97, 0.94, 0.88), amount)


def _mixed(a: Vector, b: Vector, amount: float) -> Vector:
    r, g, c = (x + amount * (y - x) for x, y in zip(a, b, strict=True))
    return r, g, c


# Nearer parts grow faster than the object: each round corrects what the one before could not foresee.
_ROUNDS = 4


def framed(parts: Parts, cameras: Cameras, fill: float) -> Parts:
    """Return the object centred and scaled so that in the tightest picture it fills a share of the frame.

    Args:
        parts: at all the times that will be seen.
        cameras: all cameras that will see it.
        fill: reach of the object from the middle of the picture, as a share of half the picture's side.
    """
    points = surface_points(parts)
    middle = (points.amin(0) + points.amax(0)) / 2
    points = points - middle
    scale = 1.0
    for _ in range(_ROUNDS):
        scale *= fill / _reach(scale * points, cameras)
    coat = replace(
        parts.coat,
        rest_centres=parts.coat.rest_centres * scale,
        frequency=parts.coat.frequency / scale,
    )
    centres = (parts.centres - middle) * scale
    return replace(parts, centres=centres, radii=parts.radii * scale, coat=coat)


def _reach(points: torch.Tensor, cameras: Cameras) -> float:
    """Return how far points [N, 3] reach from the middle of any picture, in halves of its side."""
    to_camera = cameras.w2c_opencv()  # [V + 1, 4, 4]
    seen = torch.einsum("vij,nj->vni", to_camera[:, :3, :3], points) + to_camera[:, None, :3, 3]
    half = math.tan(math.radians(cameras.fov_deg) / 2)
    return float((seen[..., :2].abs() / seen[..., 2:]).max()) / half
