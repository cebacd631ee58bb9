"""Prints what the curation finds of planted defects: precision, recall, and the error of the rectification.

python tests/bench/curation.py [--objects 10] [--first-seed 5000]
"""

from __future__ import annotations

import argparse

import torch
from planted_clips import DEFECTS, PlantedClip, planted_clip
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.training.curation import CurationLimits, Rectification, Verdict, judge, pictured

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
