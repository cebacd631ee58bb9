"""Prints how well fitted 4D scenes show what they were not fitted to, over the benchmark scenes.

    python tests/bench/refine_suite.py [--scenes owl windmill] [--steps 2500] [--rig sv4d2] [--corrupt 1]
        [--set learning_rate_factor=0.3 features=8]

Held-out figures are means over the five cameras of `HELD_OUT`, at the frame times and half-way between them;
"train" is against the true training views, whatever the fit was shown.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from sv4d2_core.cameras import OFFICIAL_AZIMUTHS_DEG, Cameras
from sv4d2_core.metrics.consistency import mean_change, quietest_pixels
from sv4d2_core.metrics.image import mask_iou, psnr
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.dynerf.dynerf import DyNeRF
from sv4d2_core.scene.refine import refine_scene
from sv4d2_core.views import ViewGrid
from sv4d2_core.world.suite import HELD_OUT, SCENE_NAMES, benchmark_scenes, corrupt_views

COLUMNS = ("held-out dB", "between dB", "train dB", "held-out IoU", "flicker", "true flicker", "s", "ms/step")


def measure(scene: DyNeRF, truth: ViewGrid) -> tuple[float, float, float, float]:
    """Return foreground PSNR, mask IoU, flicker and the truth's flicker, means over the novel views."""
    rendering = scene.render(truth.cameras, truth.frame_times(), truth.images.shape[2])
    novel = range(1, truth.n_views + 1)
    pairs = [(rendering.rgb[:, v], rendering.alpha[:, v], *truth.one_view(v)) for v in novel]
    decibels = [float(psnr(rgb, image, mask).mean()) for rgb, _, image, mask in pairs]
    overlaps = [float(mask_iou(alpha, mask).mean()) for _, alpha, _, mask in pairs]
    static = [quietest_pixels(image, mask) for *_, image, mask in pairs]
    own = [mean_change(rgb, still, order=1) for (rgb, *_), still in zip(pairs, static, strict=True)]
    true = [mean_change(image, still, order=1) for (_, _, image, _), still in zip(pairs, static, strict=True)]
    return _mean(decibels), _mean(overlaps), _mean(own), _mean(true)


def _mean(values: Sequence[float]) -> float:
    """Return the mean of what has a value: an object that crosses the picture has no static pixels."""
    return float(torch.tensor(values, dtype=torch.float64).nanmean())


def main() -> None:
    """Fit every scene and print a row for it, then the means."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenes", nargs="+", default=list(SCENE_NAMES), choices=SCENE_NAMES)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rig", default="sv4d2", choices=tuple(OFFICIAL_AZIMUTHS_DEG))
    parser.add_argument("--corrupt", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of RefineConfig")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    config = RefineConfig(weight_by_trust=args.corrupt > 0).with_steps(args.steps, 1)
    fields = {key: json.loads(value) for key, value in (text.split("=") for text in args.set)}
    config = replace(config, **fields)
    print(
        f"{args.rig}, {args.size} px, {args.steps} steps, corruption {args.corrupt:g}, {' '.join(args.set)}\n"
    )
    print("| scene | " + " | ".join(COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    rows = []
    for seed, scene in enumerate(benchmark_scenes()):
        if scene.name not in args.scenes:
            continue
        truth = scene.views(Cameras.official(args.rig), args.size)
        began = time.perf_counter()
        fitted = refine_scene(corrupt_views(truth, seed, args.corrupt), config, input_elevation_deg=0.0)
        seconds = time.perf_counter() - began
        held_out, overlap, own, true = measure(fitted, scene.views(HELD_OUT, args.size))
        between, train = (measure(fitted, x)[0] for x in (scene.between(HELD_OUT, args.size), truth))
        rows.append((held_out, between, train, overlap, own, true, seconds, 1000 * seconds / args.steps))
        print(_row(scene.name, rows[-1]), flush=True)
    print(_row("mean", [_mean(column) for column in zip(*rows, strict=True)]))


def _row(name: str, values: Sequence[float]) -> str:
    digits = (2, 2, 2, 3, 4, 4, 0, 0)
    return f"| {name} | " + " | ".join(f"{v:.{d}f}" for v, d in zip(values, digits, strict=True)) + " |"


if __name__ == "__main__":
    main()
