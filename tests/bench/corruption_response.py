"""Prints how the metrics that need no reference respond to growing errors of the views.

For the ten benchmark scenes, spoilt by `corrupt_views`: once with errors that mostly stay over time, as SV4D
2.0's do, once with errors drawn anew for every frame. The fitted 4D scene of the fit residual is the true
one.

    python tests/bench/corruption_response.py [--rig sv4d2_8views] [--size 64]
"""

from __future__ import annotations

import argparse

import torch

from sv4d2_core.cameras import OFFICIAL_AZIMUTHS_DEG, Cameras
from sv4d2_core.metrics.consistency import fit_residuals
from sv4d2_core.metrics.evaluate import WITHOUT_REFERENCE, Summary, evaluate, summarise
from sv4d2_core.views import ViewGrid
from sv4d2_core.world import benchmark_scenes
from sv4d2_core.world.suite import corrupt_views

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0)


def response(truth: list[ViewGrid], strength: float, per_frame: bool) -> Summary:
    """Return the summary over scenes at one strength; scene i is spoilt with seed i."""
    scores = []
    for seed, grid in enumerate(truth):
        views = corrupt_views(grid, seed, strength, per_frame=per_frame)
        scores.append(evaluate(views, residuals=fit_residuals(grid, views)))
    return summarise(scores)


def main() -> None:
    """Print one Markdown table for each kind of error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rig", default="sv4d2_8views", choices=tuple(OFFICIAL_AZIMUTHS_DEG))
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    truth = [scene.views(Cameras.official(args.rig), args.size) for scene in benchmark_scenes()]
    for per_frame, title in ((False, "Errors that mostly stay over time"), (True, "Errors drawn per frame")):
        print(f"\n{title} ({args.rig}, {args.size} px, {len(truth)} scenes)\n")
        print("| strength |", " | ".join(metric.title for metric in WITHOUT_REFERENCE), "|")
        print("|---" * (len(WITHOUT_REFERENCE) + 1) + "|")
        for strength in STRENGTHS:
            summary = response(truth, strength, per_frame)
            cells = [f"{summary.value(m.name):.{m.digits}f}" for m in WITHOUT_REFERENCE]
            print(f"| {strength:g} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
