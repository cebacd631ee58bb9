"""Prints what each part of the refiner is worth: one row per way to fit, with equal numbers of steps.

    python tests/bench/refine_ablations.py [--arms stage1 polish oracle-0.5] [--scenes owl] [--steps 1000]
        [--corrupt 1] [--seed 0] [--per-scene] [--rig sv4d2]
        [--set field='"canonical"' weight_by_visibility=false]

Figures are means over the suite's scenes, of five held-out cameras at the frame times; "between" are
foreground PSNR and mask IoU half-way between them; "floaters" is the opacity more than two pixels outside the
true mask, as a share of the mask; "ceiling" is what true views can give without a prior (see `ceiling`).
"perceptual" is built as LPIPS, over the shipped model's autoencoder and without trained weights of channels;
"FHD-F" to "FH4D", Frechet distances of all scenes' clips together, are in rows of all scenes only. Real
assets have rows of their own: their shape and further views, so ceiling and oracles, are not known.

``stage1`` has no second stage. In that of ``oracle-S`` views are made anew by who knows the truth, with
errors of strength S (1: as large as SV4D 2.0's), drawn anew per round; ``polish`` keeps the given views and
only weighs them by visibility.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from assets import ASSET_NAMES, AssetScene
from ceiling import ceiling
from torch import Tensor
from torch.nn import functional as F

from sv4d2_core.cameras import OFFICIAL_AZIMUTHS_DEG, Cameras
from sv4d2_core.diffusion.checkpoint import load_checkpoint
from sv4d2_core.diffusion.sampling import to_network_images
from sv4d2_core.diffusion.vae import VAEEncoder
from sv4d2_core.metrics.consistency import fit_residuals
from sv4d2_core.metrics.evaluate import FHD_NAMES, Networks, SceneScores, evaluate, summarise, written
from sv4d2_core.metrics.image import mask_iou, psnr
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.refine import refine_scene
from sv4d2_core.scene.scene import Scene4D
from sv4d2_core.shipped import TINY_MODEL
from sv4d2_core.views import ViewGrid
from sv4d2_core.world.suite import HELD_OUT, SCENE_NAMES, BenchmarkScene, benchmark_scenes, corrupt_views

METRICS = ("PSNR fg", "PSNR union", "mask IoU", "flicker", "acceleration", "warping", "tangency")
COLUMNS = (
    *METRICS,
    *("between", "between IoU", "input PSNR fg", "fit residual", "floaters", "perceptual", "ceiling", "s"),
    *FHD_NAMES.values(),
)
DIGITS = (2, 2, 3, 4, 4, 4, 2, 2, 3, 2, 4, 4, 4, 2, 0, *(4 for _ in FHD_NAMES))
Scene = BenchmarkScene | AssetScene
ARMS = ("stage1", "polish", *(f"oracle-{strength}" for strength in ("0", "0.25", "0.5", "1", "2")))


def oracle(scene: Scene, strength: float, size: int) -> Callable[[ViewGrid, Scene4D], ViewGrid]:
    """Return what makes true views with errors of a strength, in every round others."""
    rounds = iter(range(1000, 2000))
    return lambda shown, _: corrupt_views(scene.views(shown.cameras, size), next(rounds), strength)


class Perceptual:
    """The distance of images [N, H, W, 3] to references, [N]: squared, of an encoder's unit features."""

    def __init__(self, encoder: VAEEncoder) -> None:
        self._first, self._levels = encoder.encoder.conv_in, encoder.encoder.down

    @torch.no_grad()
    def __call__(self, images: Tensor, references: Tensor) -> Tensor:
        x = self._first(to_network_images(torch.cat([images, references])))
        distances = []
        for level in self._levels:
            x = level(x)
            ours, true = F.normalize(x, dim=1).chunk(2)
            distances.append((ours - true).square().sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(distances).sum(dim=0)


def measure(
    scene: Scene, fitted: Scene4D, shown: ViewGrid, size: int, networks: Networks
) -> tuple[list[float], SceneScores]:
    """Return the figures of one fit, up to the ceiling, and its scores with the features of its clips."""
    cameras = HELD_OUT if isinstance(scene, BenchmarkScene) else scene.held_out
    truth, between = scene.views(cameras, size), scene.between(cameras, size)
    grid = pictures(fitted, truth)
    scores = evaluate(grid, truth, networks, scene=scene.name)
    values = [float(scores.values[name].nanmean()) for name in METRICS]
    ours, ours_masks = pictures(fitted, between).all_views(include_input=False)
    true, true_masks = between.all_views(include_input=False)
    later = [float(psnr(ours, true, true_masks).mean()), float(mask_iou(ours_masks, true_masks).mean())]
    own = pictures(fitted, shown)
    at_input = float(psnr(own.images[:, 0], shown.images[:, 0], shown.masks[:, 0]).mean())
    residual = float(fit_residuals(own, shown)[:, 1:].nanmean())
    wide = F.max_pool2d(truth.masks.flatten(0, 1)[:, None], 5, 1, 2)[:, 0].unflatten(0, truth.masks.shape[:2])
    floaters = float((grid.masks * (wide < 0.01))[:, 1:].sum() / truth.masks[:, 1:].sum())
    perceptual = float(scores.values["LPIPS"].nanmean())
    return [*values, *later, at_input, residual, floaters, perceptual], scores


def pictures(scene: Scene4D, like: ViewGrid) -> ViewGrid:
    """Return a scene's pictures for every one of a grid."""
    rendering = scene.render(like.cameras, like.frame_times(), like.images.shape[2], normals=False)
    return replace(like, images=rendering.rgb.clamp(0, 1), masks=rendering.alpha.clamp(0, 1))


def main() -> None:
    """Fit every scene in every way and print the means."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    names = (*SCENE_NAMES, *ASSET_NAMES)
    parser.add_argument("--scenes", nargs="+", default=names, choices=names)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--corrupt", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the fits and of the views' errors")
    parser.add_argument("--per-scene", action="store_true")
    parser.add_argument("--rig", default="sv4d2", choices=(*OFFICIAL_AZIMUTHS_DEG, "4d"))
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of RefineConfig")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    fields = {key: json.loads(value) for key, value in (text.split("=") for text in args.set)}
    print(f"{vars(args)}\n")
    print("| arm | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    everything: list[Scene] = [*benchmark_scenes(), *map(AssetScene, ASSET_NAMES)]
    scenes = [(i + 100 * args.seed, scene) for i, scene in enumerate(everything) if scene.name in args.scenes]
    networks = Networks(lpips=Perceptual(load_checkpoint(TINY_MODEL).view_encoder))
    rig = Cameras.for_scenes() if args.rig == "4d" else Cameras.official(args.rig)
    true_views = {scene.name: scene.views(rig, args.size) for _, scene in scenes}
    known = [scene for _, scene in scenes if isinstance(scene, BenchmarkScene)]
    best = {scene.name: ceiling(scene, true_views[scene.name])[0] for scene in known}
    for arm in args.arms:
        config = RefineConfig(weight_by_trust=args.corrupt > 0, seed=args.seed)
        config = replace(config.with_steps(args.steps, 1 if arm == "stage1" else 2), **fields)
        strength = arm.removeprefix("oracle-")
        rows, all_scores = [], []
        for seed, scene in scenes:
            is_asset = isinstance(scene, AssetScene)
            if is_asset and strength != arm:
                continue
            shown = corrupt_views(true_views[scene.name], seed, args.corrupt)
            began = time.perf_counter()
            again = None if strength == arm else oracle(scene, float(strength), args.size)
            fitted = refine_scene(shown, config, input_elevation_deg=0.0, resynthesize=again)
            seconds = time.perf_counter() - began
            figures, scores = measure(scene, fitted, shown, args.size, networks)
            row = [*figures, best.get(scene.name, math.nan), seconds]
            if not is_asset:
                rows.append(row)
                all_scores.append(scores)
            if is_asset or args.per_scene:
                print(_row(f"{arm}, {scene.name}", [*row, *(math.nan for _ in FHD_NAMES)]), flush=True)
        if rows:
            means = torch.tensor(rows, dtype=torch.float64).nanmean(dim=0).tolist()
            summary = summarise(all_scores)
            print(_row(arm, [*means, *(summary.value(name) for name in FHD_NAMES.values())]), flush=True)


def _row(name: str, values: list[float]) -> str:
    return f"| {name} | " + " | ".join(map(written, values, DIGITS)) + " |"


if __name__ == "__main__":
    main()
