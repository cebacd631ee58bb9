"""Prints what each part of the refiner is worth: one row per way to fit, with equal numbers of steps.

    python tests/bench/refine_ablations.py [--arms stage1 oracle-0.5 ...] [--scenes owl] [--steps 1000]
        [--corrupt 1] [--per-scene] [--rig sv4d2] [--set learning_rate_factor=0.3 features=8]

Figures are means over the scenes, of the five cameras of `HELD_OUT` at the frame times; "between" half-way
between them; "floaters" is the opacity more than two pixels outside the true mask, as a share of the mask.

The resynthesisers of the second stage: ``oracle-S`` knows the truth and returns it with errors of strength S
(1: as large as SV4D 2.0's), drawn anew per round; ``blind`` averages the scene's own pictures over neighbour
views; ``polish`` keeps the given views and only weighs them by visibility.
"""

import argparse
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch.nn import functional as F

from sv4d2_core.cameras import OFFICIAL_AZIMUTHS_DEG, Cameras
from sv4d2_core.metrics.consistency import fit_residuals
from sv4d2_core.metrics.evaluate import evaluate
from sv4d2_core.metrics.image import psnr
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.refine import refine_scene
from sv4d2_core.scene.scene import Scene4D
from sv4d2_core.views import ViewGrid
from sv4d2_core.world.suite import HELD_OUT, SCENE_NAMES, BenchmarkScene, benchmark_scenes, corrupt_views

METRICS = ("PSNR fg", "mask IoU", "flicker", "acceleration", "warping", "tangency")
COLUMNS = (*METRICS, "between", "input PSNR fg", "fit residual", "floaters", "s")
DIGITS = (2, 3, 4, 4, 4, 2, 2, 2, 4, 4, 0)
ARMS = {
    "stage1": {"rounds": 0},
    "stage1-untrusted": {"rounds": 0, "weight_by_trust": False},
    "progressive": {"rounds": 0, "progressive": True},
    "not-progressive": {"rounds": 0, "progressive": False},
    "canonical": {"rounds": 0, "field": "canonical"},
    "gaussians": {"rounds": 0, "backend": "gaussians"},
    "polish": {},
    "polish-unweighted": {"weight_by_visibility": False},
    "blind": {},
    "oracle-0": {},
    "oracle-0.25": {},
    "oracle-0.5": {},
    "oracle-1": {},
    "oracle-2": {},
    "oracle-0.5-unweighted": {"weight_by_visibility": False},
}


def resynthesizer(arm: str, scene: BenchmarkScene, size: int, latest: deque[Scene4D]) -> Callable | None:
    """Return what an arm makes views anew with; None: nothing."""
    kind, _, rest = arm.partition("-")
    if kind == "oracle":
        strength, rounds = float(rest.partition("-")[0]), iter(range(1000, 2000))
        return lambda rendered, _: corrupt_views(scene.views(rendered.cameras, size), next(rounds), strength)
    if kind == "blind":
        return lambda rendered, _: averaged(rendered, latest[-1])
    return None


def averaged(rendered: ViewGrid, scene: Scene4D) -> ViewGrid:
    """Return a scene's pictures, each pixel averaged with what the two nearest cameras see of its surface."""
    size, cameras = rendered.images.shape[2], rendered.cameras
    depths = scene.render(cameras, rendered.frame_times(), size).depth
    origins, directions = (x.float() for x in cameras.rays(size))
    to_pixels = (cameras.intrinsics(size) @ cameras.w2c_opencv()[:, :3]).float()
    apart = torch.cdist(cameras.eyes(), cameras.eyes())
    images = rendered.images.clone()
    for view in range(1, cameras.n_views + 1):
        points = origins[view] + directions[view] * depths[:, view, ..., None]
        total, count = rendered.images[:, view].clone(), torch.ones_like(depths[:, view, ..., None])
        for other in apart[view].argsort()[1:3].tolist():
            pixels = points @ to_pixels[other, :, :3].T + to_pixels[other, :, 3]
            places = pixels[..., :2] / pixels[..., 2:] * (2 / size) - 1
            maps = torch.cat([rendered.images[:, other], depths[:, other, ..., None]], -1).movedim(-1, 1)
            seen = F.grid_sample(maps, places, align_corners=False).movedim(1, -1)
            near = ((points - origins[other]).norm(dim=-1) - seen[..., 3]).abs() < 0.02
            shown = (near & (depths[:, view] > 0))[..., None]
            total, count = total + seen[..., :3] * shown, count + shown
        images[:, view] = total / count
    return replace(rendered, images=images)


def measure(scene: BenchmarkScene, fitted: Scene4D, shown: ViewGrid, size: int) -> list[float]:
    """Return the figures of one fit, the seconds left out."""
    truth, between = scene.views(HELD_OUT, size), scene.between(HELD_OUT, size)
    grid = pictures(fitted, truth)
    scores = evaluate(grid, truth)
    values = [float(scores.values[name].nanmean()) for name in METRICS]
    later = pictures(fitted, between)
    pairs = [(later.one_view(v), between.one_view(v)) for v in range(1, HELD_OUT.n_views + 1)]
    decibels = [float(psnr(ours[0], true[0], true[1]).mean()) for ours, true in pairs]
    own = pictures(fitted, shown)
    at_input = float(psnr(own.images[:, 0], shown.images[:, 0], shown.masks[:, 0]).mean())
    residual = float(fit_residuals(own, shown).nanmean())
    wide = F.max_pool2d(truth.masks.flatten(0, 1)[:, None], 5, 1, 2)[:, 0].unflatten(0, truth.masks.shape[:2])
    floaters = float((grid.masks * (wide < 0.01))[:, 1:].sum() / truth.masks[:, 1:].sum())
    return [*values, sum(decibels) / len(decibels), at_input, residual, floaters]


def pictures(scene: Scene4D, like: ViewGrid) -> ViewGrid:
    """Return a scene's pictures for every one of a grid."""
    rendering = scene.render(like.cameras, like.frame_times(), like.images.shape[2])
    return replace(like, images=rendering.rgb.clamp(0, 1), masks=rendering.alpha.clamp(0, 1))


def main() -> None:
    """Fit every scene in every way and print the means."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=tuple(ARMS))
    parser.add_argument("--scenes", nargs="+", default=list(SCENE_NAMES), choices=SCENE_NAMES)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--corrupt", type=float, default=1.0)
    parser.add_argument("--per-scene", action="store_true")
    parser.add_argument("--rig", default="sv4d2", choices=tuple(OFFICIAL_AZIMUTHS_DEG))
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of RefineConfig")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    fields = {key: json.loads(value) for key, value in (text.split("=") for text in args.set)}
    print(f"{vars(args)}\n")
    print("| arm | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    scenes = [(i, scene) for i, scene in enumerate(benchmark_scenes()) if scene.name in args.scenes]
    for arm in args.arms:
        base = RefineConfig(weight_by_trust=args.corrupt > 0)
        config = replace(base, **ARMS[arm])
        config = replace(config.with_steps(args.steps, 2 if config.rounds else 1), **fields)
        rows = []
        for seed, scene in scenes:
            shown = corrupt_views(scene.views(Cameras.official(args.rig), args.size), seed, args.corrupt)
            latest: deque[Scene4D] = deque(maxlen=1)
            began = time.perf_counter()
            again = resynthesizer(arm, scene, args.size, latest)
            keep = partial(lambda latest, _step, _total, now: latest.append(now.scene), latest)
            fitted = refine_scene(shown, config, input_elevation_deg=0.0, resynthesize=again, callback=keep)
            seconds = time.perf_counter() - began
            rows.append([*measure(scene, fitted, shown, args.size), seconds])
            if args.per_scene:
                print(_row(f"{arm}, {scene.name}", rows[-1]), flush=True)
        means = torch.tensor(rows, dtype=torch.float64).nanmean(dim=0).tolist()
        print(_row(arm, means), flush=True)


def _row(name: str, values: list[float]) -> str:
    return f"| {name} | " + " | ".join(f"{v:.{d}f}" for v, d in zip(values, DIGITS, strict=True)) + " |"


if __name__ == "__main__":
    main()
