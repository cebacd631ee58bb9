"""Clips of procedural objects with a known defect, and what the curation finds of them.

    python tests/bench/planted_clips.py [--objects 10] [--first-seed 5000]

Prints precision and recall of every check, and the error of the rectification.
"""

import argparse
import math
import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.training.curation import CurationLimits, Rectification, Verdict, judge, pictured
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

    name: str
    defect: str  # out of `DEFECTS`
    grid: ViewGrid
    centre: Tensor  # [3], of the most static third of the surface, in truth


def planted_clip(seed: int, defect: str, size: int = 64) -> PlantedClip:
    """Return the clip of the object of a seed with one defect."""
    dice = random.Random(f"{seed} {defect}")
    rig = Cameras.official(dice.choice(("sv4d2", "sv4d2_8views")))
    cameras = replace(rig, fov_deg=_FOV_DEG, input_elevation_deg=dice.uniform(-5, 30))
    pace = dice.uniform(0, 0.01) if defect == "frozen" else 1.0
    creature = draw_object(seed)
    parts = parts_at(creature, pace * torch.linspace(0, 1, _N_FRAMES, dtype=torch.float64))
    if defect == "off centre":
        shift = dice.uniform(0.15, 0.3) * _direction(dice)
        parts = replace(parts, centres=parts.centres + shift)
    if defect == "cut off":
        parts = _cut_off(parts, cameras, dice)
    grid = _rendered(parts, _scales(defect, dice), cameras, size)
    gain = {"dark": dice.uniform(0.03, 0.15), "blown out": dice.uniform(4, 10)}.get(defect, 1.0)
    # The light on the object multiplied, cut at white.
    colour, alpha = with_alpha(grid.images, grid.masks).split((3, 1), dim=-1)
    grid = replace(grid, images=(gain * colour).clamp(max=1) * alpha + 1 - alpha)
    return PlantedClip(f"{seed}-{defect.replace(' ', '-')}", defect, grid, still_centre(parts))


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
    for scale, centres, rotations in zip(scales, parts.centres, parts.rotations, strict=True):
        sized = {"centres": scale * centres[None], "radii": scale * parts.radii}
        frames.append(render_parts(replace(parts, rotations=rotations[None], **sized), cameras, size))
    return ViewGrid(torch.cat([f.rgb for f in frames]), cameras, torch.cat([f.mask for f in frames]))


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
        moved = replace(parts, centres=parts.centres + 0.01 * step * direction)
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


Results = list[tuple[PlantedClip, Verdict]]


def off_middle(point: Tensor, cameras: Cameras) -> float:
    """Return how far from the middle of the pictures a point is seen, % of a side, mean over the views."""
    return 50 * float(pictured(point[None], cameras).norm(dim=-1).mean())


def rectified_point(point: Tensor, plan: Rectification, old: Cameras) -> float:
    """Return the same after the rectification."""
    places = torch.nn.functional.pad(pictured(point[None], old)[:, 0], (0, 1), value=1.0)
    new = (torch.linalg.inv(plan.to_source) @ places[..., None])[..., 0]
    return 50 * float((new[:, :2] / new[:, 2:]).norm(dim=-1).mean())


def print_filters(results: Results) -> None:
    """Print what is found of each planted defect, and how often each check is right."""
    failed = {clip.name: {c.name for c in verdict.checks if not c.passed} for clip, verdict in results}
    print("\n| planted | clips | found | recall | kept |\n|---|---|---|---|---|")
    for defect, check in DEFECTS.items():
        mine = [(clip, verdict) for clip, verdict in results if clip.defect == defect]
        found, kept = sum(check in failed[clip.name] for clip, _ in mine), sum(v.kept for _, v in mine)
        shown = f"{found} | {found / len(mine):.2f}" if check else " | "
        print(f"| {defect} | {len(mine)} | {shown} | {kept} |")
    print("\n| check | rejected | rightly | precision | recall |\n|---|---|---|---|---|")
    for check in dict.fromkeys(filter(None, DEFECTS.values())):
        planted = {clip.name for clip, _ in results if DEFECTS[clip.defect] == check}
        rejected = {name for name, checks in failed.items() if check in checks}
        right = len(planted & rejected)
        precision = f"{right / len(rejected):.2f}" if rejected else ""
        print(f"| {check} | {len(rejected)} | {right} | {precision} | {right / len(planted):.2f} |")


def print_rectification(results: Results) -> None:
    """Print where the true static centre lies, and how far apart clips of one object end with their plans."""
    print("\n| clips | off the middle before, % of a side | after | zoom |\n|---|---|---|---|")
    errors: dict[str, list[Tensor]] = {"none": [], "off centre": []}
    for defect, misses in errors.items():
        rows = []
        for clip, verdict in results:
            if clip.defect == defect and verdict.plan is not None:
                cameras = clip.grid.cameras
                after = rectified_point(clip.centre, verdict.plan, cameras)
                rows.append((off_middle(clip.centre, cameras), after, verdict.plan.zoom))
                misses.append(torch.tensor(verdict.plan.centre) - clip.centre)
        table = torch.tensor(rows)
        cells = [f"{m:.1f} (worst {w:.1f})" for m, w in zip(table.mean(0), table.amax(0), strict=True)]
        print(f"| {defect} | {' | '.join(cells)} |")
    pairs = zip(*errors.values(), strict=True)
    apart = torch.tensor([off_middle(a - b, results[0][0].grid.cameras) for a, b in pairs])
    print(f"\nThe same object, shifted and not: {apart.mean():.1f} % apart (worst {apart.max():.1f}).")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=5000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(args.first_seed, args.first_seed + args.objects)
    clips = (planted_clip(seed, defect) for seed in seeds for defect in DEFECTS)
    results = [(clip, judge(clip.grid, CurationLimits())) for clip in clips]
    print_filters(results)
    print_rectification(results)


if __name__ == "__main__":
    main()
