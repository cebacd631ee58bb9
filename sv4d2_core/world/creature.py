"""Creatures of hinged ellipsoids: the skeleton and its motion in closed form.

Creature frame: +z forward, +y up, +x to the animal's own left. The heading turns it about +y in the world.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .coat import PATTERNS, Coat
from .light import Light

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
