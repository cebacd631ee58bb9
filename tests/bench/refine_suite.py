"""Prints how well fitted 4D scenes show what they were not fitted to, over the benchmark scenes.

    python tests/bench/refine_suite.py [--scenes owl windmill] [--steps 2500] [--set rounds=0 features=8]

Held-out figures are means over the five cameras of `HELD_OUT`, at the frame times and half-way between them;
"train" is against the training views.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.metrics.consistency import mean_change, quietest_pixels
from sv4d2_core.metrics.image import mask_iou, psnr
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.refine import refine_scene
from sv4d2_core.scene.scene import Scene4D
from sv4d2_core.views import ViewGrid
from sv4d2_core.world.suite import HELD_OUT, SCENE_NAMES, benchmark_scenes

RIG, SIZE = "sv4d2", 64
COLUMNS = ("held-out dB", "between dB", "train dB", "held-out IoU", "flicker", "true flicker", "s", "ms/step")
DIGITS = (2, 2, 2, 3, 4, 4, 0, 0)


def measure(scene: Scene4D, truth: ViewGrid) -> list[float]:
    """Return foreground PSNR, mask IoU, flicker and the truth's flicker, means over the novel views."""
    rendering = scene.render(truth.cameras, truth.frame_times(), truth.images.shape[2])
    rows = []
    for v in range(1, truth.n_views + 1):
        rgb, (image, mask) = rendering.rgb[:, v], truth.one_view(v)
        static = quietest_pixels(image, mask)
        flicker = [mean_change(pictures, static, order=1) for pictures in (rgb, image)]
        overlap = mask_iou(rendering.alpha[:, v], mask).mean()
        rows.append([float(x) for x in (psnr(rgb, image, mask).mean(), overlap, *flicker)])
    return means(rows)


def means(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the means of what has a value: an object that crosses the picture has no static pixels."""
    return torch.tensor(rows, dtype=torch.float64).nanmean(dim=0).tolist()


def heading(first: str, columns: Sequence[str]) -> str:
    """Return the first two lines of a Markdown table."""
    return f"| {first} | {' | '.join(columns)} |\n" + "|---" * (len(columns) + 1) + "|"


def row(name: str, values: Sequence[float], digits: Sequence[int]) -> str:
    """Return a line of a Markdown table."""
    return f"| {name} | " + " | ".join(f"{v:.{d}f}" for v, d in zip(values, digits, strict=True)) + " |"


def main() -> None:
    """Fit every scene and print a row for it, then the means."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenes", nargs="+", default=list(SCENE_NAMES), choices=SCENE_NAMES)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of RefineConfig")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    fields = {key: json.loads(value) for key, value in (text.split("=") for text in args.set)}
    config = replace(RefineConfig(weight_by_trust=False).with_steps(args.steps, 1), **fields)
    print(f"{RIG}, {SIZE} px, {args.steps} steps, {' '.join(args.set)}\n\n{heading('scene', COLUMNS)}")
    rows = []
    for scene in benchmark_scenes():
        if scene.name not in args.scenes:
            continue
        truth = scene.views(Cameras.official(RIG), SIZE)
        began = time.perf_counter()
        fitted = refine_scene(truth, config, input_elevation_deg=0.0)
        seconds = time.perf_counter() - began
        held_out, *others = measure(fitted, scene.views(HELD_OUT, SIZE))
        between, train = (measure(fitted, x)[0] for x in (scene.between(HELD_OUT, SIZE), truth))
        rows.append([held_out, between, train, *others, seconds, 1000 * seconds / args.steps])
        print(row(scene.name, rows[-1], DIGITS), flush=True)
    print(row("mean", means(rows), DIGITS))


if __name__ == "__main__":
    main()
