"""Clips of procedural objects with a known defect, to find out what a curation finds."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.training.curation import pictured
from sv4d2_core.video.pictures import with_alpha
from sv4d2_core.views import ViewGrid
from sv4d2_core.world import Parts, draw_object, parts_at, render_parts
from sv4d2_core.world.body import surface_points

# What is planted, and the check that should find it.
DEFECTS = {
    "none": "",
    "off centre": "",
    "drifting scale": "rescaling",
    "jumping scale": "rescaling",
    "frozen": "motion",
    "dark": "dark",
    "blown out": "blown out",
    "cut off": "cut off",
}
# A lens that leaves room around the object, so that it can stand off centre without being cut off.
_FOV_DEG = 48.0
_N_FRAMES = 12
# The share of the surface that counts as static in truth, and how much more than it a point may move.
_STATIC_SHARE, _SAME_MOTION = 0.3, 0.01


@dataclass(frozen=True)
class PlantedClip:
    """A clip and what is wrong with it."""

    name: str  # of the object and the defect
    defect: str  # out of `DEFECTS`
    grid: ViewGrid
    centre: Tensor  # [3] of the most static third of the surface, in truth
    parts: Parts  # the object as it was pictured, before light was changed


def planted_defects(
    seeds: range, size: int = 64, defects: tuple[str, ...] = tuple(DEFECTS)
) -> Iterator[PlantedClip]:
    """Yield a clip of `draw_object` for each seed and each defect, the same on every machine."""
    for seed in seeds:
        for defect in defects:
            yield planted_clip(seed, defect, size)


def planted_clip(seed: int, defect: str, size: int = 64) -> PlantedClip:
    """Return the clip of the object of a seed with one defect."""
    dice = random.Random(f"{seed} {defect}")
    rig = Cameras.official(dice.choice(("sv4d2", "sv4d2_8views")))
    cameras = replace(rig, fov_deg=_FOV_DEG, input_elevation_deg=dice.uniform(-5, 30))
    pace = dice.uniform(0, 0.01) if defect == "frozen" else 1.0
    creature = draw_object(seed)
    parts = parts_at(creature, pace * torch.linspace(0, 1, _N_FRAMES, dtype=torch.float64))
    if defect == "off centre":
        parts = _moved(parts, dice.uniform(0.15, 0.3) * _direction(dice))
    if defect == "cut off":
        parts = _cut_off(parts, cameras, dice)
    rendering = _rendered(parts, _scales(defect, dice), cameras, size)
    gain = {"dark": dice.uniform(0.03, 0.15), "blown out": dice.uniform(4, 10)}.get(defect, 1.0)
    grid = _lit(rendering, gain)
    return PlantedClip(f"{seed}-{defect.replace(' ', '-')}", defect, grid, still_centre(parts), parts)


def _scales(defect: str, dice: random.Random) -> Tensor:
    """Return the factor of the object's size in every frame, [T]; largest over smallest at least 1.16."""
    amount, sign, step = dice.uniform(0.15, 0.4), dice.choice((-1, 1)), dice.randrange(1, _N_FRAMES)
    ramp = torch.linspace(-0.5, 0.5, _N_FRAMES).double()
    if defect == "drifting scale":
        return (sign * amount * ramp).exp()
    if defect == "jumping scale":
        return (sign * amount * ((torch.arange(_N_FRAMES) >= step).double() - 0.5)).exp()
    return torch.ones_like(ramp)


def _rendered(parts: Parts, scales: Tensor, cameras: Cameras, size: int) -> ViewGrid:
    frames = []
    for t, scale in enumerate(scales):
        frame = replace(
            parts,
            centres=scale * parts.centres[t : t + 1],
            rotations=parts.rotations[t : t + 1],
            radii=scale * parts.radii,
        )
        frames.append(render_parts(frame, cameras, size))
    return ViewGrid(torch.cat([f.rgb for f in frames]), cameras, torch.cat([f.mask for f in frames]))


def _lit(grid: ViewGrid, gain: float) -> ViewGrid:
    """Return the views with the light on the object multiplied, cut at white."""
    masks = grid.images.new_zeros(grid.images.shape[:4]) if grid.masks is None else grid.masks
    colour = with_alpha(grid.images, masks)[..., :3]
    alpha = masks[..., None]
    return replace(grid, images=(gain * colour).clamp(max=1) * alpha + 1 - alpha)


def _moved(parts: Parts, shift: Tensor) -> Parts:
    return replace(parts, centres=parts.centres + shift)


def _direction(dice: random.Random) -> Tensor:
    height, turn = dice.uniform(-1, 1), dice.uniform(0, 2 * math.pi)
    ring = math.sqrt(1 - height**2)
    return torch.tensor([ring * math.cos(turn), height, ring * math.sin(turn)], dtype=torch.float64)


def _cut_off(parts: Parts, cameras: Cameras, dice: random.Random) -> Parts:
    """Return the object moved until at least a tenth of its surface lies beyond some picture."""
    direction = _direction(dice)
    direction[1] = 0
    direction /= direction.norm()
    for step in range(30, 150):
        moved = _moved(parts, 0.01 * step * direction)
        places = pictured(surface_points(moved), cameras).unflatten(1, (len(parts.centres), -1))
        if (places.abs().amax(-1) > 1).double().mean(-1).max() > 0.1:
            return moved
    raise ValueError("Expected a direction in which the object leaves a picture.")


def still_centre(parts: Parts) -> Tensor:
    """Return the mean place of the least moving third of the surface, and of all that moves no more."""
    radii = parts.radii.clamp(min=1e-3)
    points = surface_points(parts).unflatten(0, (len(parts.centres), -1))  # [T, P * n, 3]
    count = points.shape[1] // len(radii)
    areas = radii.prod(-1).pow(2 / 3).repeat_interleave(count)
    mean = points.mean(0)
    movement = (points - mean).norm(dim=-1).mean(0)
    order = movement.argsort()
    share = areas[order].cumsum(0) / areas.sum()
    most = movement[order[share <= _STATIC_SHARE]].max() + _SAME_MOTION
    weights = areas * (movement <= most)
    return (weights[:, None] * mean).sum(0) / weights.sum()
