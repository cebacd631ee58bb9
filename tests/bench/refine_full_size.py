"""Prints time and memory of a fit at full size: 21 frames of 5 views at 576 pixels, fitted at up to 512.

    python tests/bench/refine_full_size.py [--device cuda] [--backend dynerf] [--steps 2500] [--size 512]

With fewer steps than 2,500 the time for 2,500 is extrapolated and said to be so.
"""

from __future__ import annotations

import argparse
import time

import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.metrics.image import psnr
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.fit import Fit
from sv4d2_core.scene.schedule import schedule
from sv4d2_core.scene.targets import checked_views
from sv4d2_core.world.body import make_creature
from sv4d2_core.world.render import render_views

RECIPE_STEPS = 2500


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", default="dynerf", choices=("dynerf", "gaussians"))
    parser.add_argument("--steps", type=int, default=RECIPE_STEPS)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--memory-gb", type=float, default=0.0)
    args = parser.parse_args()
    device = torch.device(args.device)
    views = checked_views(render_views(make_creature(10), Cameras.official("sv4d2"), 21, 576)).resized(
        args.size
    )
    config = RefineConfig(backend=args.backend, weight_by_trust=False, memory_gb=args.memory_gb)
    config = config.with_steps(args.steps, 1)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    fit = Fit(views, config, device)
    prepared = time.perf_counter()
    for step in schedule(fit.config, views):
        fit.take(step)
    done = time.perf_counter()
    rendering = fit.scene.render(views.cameras, [0.5], args.size, views=[0, 1])
    rendered = time.perf_counter()
    middle = views.n_frames // 2
    assert views.masks is not None
    shown = psnr(rendering.rgb[0], views.images[middle, :2], views.masks[middle, :2])
    print(f"{args.backend}, {device}, 21 frames x 5 views at {args.size} px, {args.steps} steps")
    print(f"preparation {prepared - began:.1f} s, steps {done - prepared:.1f} s")
    print(
        f"{1000 * (done - prepared) / args.steps:.1f} ms per step; one picture {(rendered - done) / 2:.2f} s"
    )
    if args.steps != RECIPE_STEPS:
        whole = (done - prepared) * RECIPE_STEPS / args.steps / 60
        print(f"extrapolated: {whole:.1f} minutes for {RECIPE_STEPS} steps")
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB")
    print(f"foreground PSNR of the middle frame: input {shown[0]:.2f} dB, view 1 {shown[1]:.2f} dB")


if __name__ == "__main__":
    main()
