"""Prints what the curation finds of planted defects: precision, recall, and the error of the rectification.

python tests/bench/curation.py [--objects 10] [--first-seed 5000] [--size 64]
"""

from __future__ import annotations

import argparse
from collections import Counter

import torch
from planted_clips import DEFECTS, PlantedClip, planted_defects
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.training.curation import CurationLimits, Rectification, Verdict, judge, pictured


def off_middle(point: Tensor, cameras: Cameras) -> float:
    """Return how far from the middle of the pictures a point is seen, % of a side, mean over the views."""
    return 50 * float(pictured(point[None], cameras).norm(dim=-1).mean())


def rectified_point(point: Tensor, plan: Rectification, old: Cameras) -> float:
    """Return the same after the rectification."""
    places = torch.nn.functional.pad(pictured(point[None], old)[:, 0], (0, 1), value=1.0)
    new = (torch.linalg.inv(plan.to_source) @ places[..., None])[..., 0]
    return 50 * float((new[:, :2] / new[:, 2:]).norm(dim=-1).mean())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=5000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--verbose", action="store_true", help="print every clip")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(args.first_seed, args.first_seed + args.objects)
    results: list[tuple[PlantedClip, Verdict]] = []
    for clip in planted_defects(seeds, args.size):
        verdict = judge(clip.grid, CurationLimits())
        results.append((clip, verdict))
        if args.verbose:
            values = " ".join(
                f"{c.name} {c.found.value:.3f}{'' if c.passed else '!'}" for c in verdict.checks
            )
            print(f"{clip.name:24s} {values} {verdict.faults}", flush=True)
    _print_filters(results)
    _print_rectification(results)


def _print_filters(results: list[tuple[PlantedClip, Verdict]]) -> None:
    print("\n| planted | clips | found | recall | kept | also said |\n|---|---|---|---|---|---|")
    said = [
        ({c.name for c in v.checks if not c.passed} | ({"fault"} if v.faults else set())) for _, v in results
    ]
    for defect, check in DEFECTS.items():
        mine = [(s, v) for (clip, v), s in zip(results, said, strict=True) if clip.defect == defect]
        found = sum(check in s for s, _ in mine)
        kept = sum(v.kept for _, v in mine)
        other = Counter(name for s, _ in mine for name in s - {check})
        recall = f"{found / len(mine):.2f}" if check else ""
        others = ", ".join(f"{name} {count}" for name, count in other.items())
        print(f"| {defect} | {len(mine)} | {found if check else ''} | {recall} | {kept} | {others} |")
    print("\n| check | said | right | precision | recall |\n|---|---|---|---|---|")
    for check in dict.fromkeys(filter(None, DEFECTS.values())):
        right = [
            DEFECTS[clip.defect] == check for (clip, _), s in zip(results, said, strict=True) if check in s
        ]
        total = sum(DEFECTS[clip.defect] == check for clip, _ in results)
        precision = f"{sum(right) / len(right):.2f}" if right else ""
        print(f"| {check} | {len(right)} | {sum(right)} | {precision} | {sum(right) / total:.2f} |")


def _print_rectification(results: list[tuple[PlantedClip, Verdict]]) -> None:
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
    print(
        f"\nThe same object, shifted and not: {apart.mean():.1f} % apart after it (worst {apart.max():.1f})."
    )


if __name__ == "__main__":
    main()
