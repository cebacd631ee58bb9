"""Prints how the metrics that need no reference respond to growing errors of the views.

For the ten benchmark scenes, spoilt by `corrupt_views`: once with errors that mostly stay over time, as SV4D
2.0's do, once with errors drawn anew for every frame. The fitted 4D scene of the fit residual is the true
one.

    python tests/bench/corruption_response.py
"""

import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.metrics.consistency import fit_residuals
from sv4d2_core.metrics.evaluate import WITHOUT_REFERENCE, evaluate, summarise
from sv4d2_core.world import benchmark_scenes
from sv4d2_core.world.suite import corrupt_views

RIG, SIZE = "sv4d2_8views", 64
STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0)


def main() -> None:
    """Print one Markdown table for each kind of error."""
    torch.set_num_threads(1)
    truth = [scene.views(Cameras.official(RIG), SIZE) for scene in benchmark_scenes()]
    for per_frame, title in ((False, "Errors that mostly stay over time"), (True, "Errors drawn per frame")):
        print(f"\n{title} ({RIG}, {SIZE} px, {len(truth)} scenes)\n")
        print("| strength |", " | ".join(metric.title for metric in WITHOUT_REFERENCE), "| fit residual ↓ |")
        print("|---" * (len(WITHOUT_REFERENCE) + 2) + "|")
        for strength in STRENGTHS:
            spoilt = [corrupt_views(g, seed, strength, per_frame=per_frame) for seed, g in enumerate(truth)]
            summary = summarise([*map(evaluate, spoilt)])
            residuals = [fit_residuals(*pair)[:, 1:].nanmean() for pair in zip(truth, spoilt, strict=True)]
            cells = [f"{summary.value(m.name):.{m.digits}f}" for m in WITHOUT_REFERENCE]
            cells.append(f"{float(torch.stack(residuals).nanmean()):.4f}")
            print(f"| {strength:g} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
