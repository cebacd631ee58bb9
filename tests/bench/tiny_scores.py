"""Prints how good a small model's novel views of the 64 held-out procedural objects are, and what time buys.

    python tests/bench/tiny_scores.py [CHECKPOINT] [--objects 64] [--steps 20] [--seed 0]
    python tests/bench/tiny_scores.py [CHECKPOINT] --family animals --frames 21 --size 64 --steps 5
    python tests/bench/tiny_scores.py [CHECKPOINT] --frames 21 --windows held
    python tests/bench/tiny_scores.py [CHECKPOINT] --family animals --frames 21 --objects 3 --scenes 600
    python tests/bench/tiny_scores.py [CHECKPOINT] --objects 4 --trade-offs [--only WORD]

Rows: the model, the model given the true views of the first frame, copies of the input view in place of all
others, and white pictures. Means over objects with the middle 95 % of the mean under their resampling,
and of the paired difference between the model and each baseline. Temporal error: the mean absolute difference
of the change from frame to frame to the true one, where the true object is. Seam jump: the change where two
windows meet as a multiple of the change elsewhere. A model of another size than --size sees the clip in its
own size, and its views are enlarged.

--scenes N: the scene that is fitted to the views of a model in N steps, of one stage and of two, and that
fitted to true views, against the truth from cameras that none of them saw.

--trade-offs: one row for each setting that trades accuracy for time, sampled from the same noise. Columns:
evaluations of the network (one half of guidance alone counts a half), processor time as a share of 50 Euler
steps, and the PSNR of the novel views against those of 50 Euler steps, against the equation's solution (60
steps of second order), against the same setting in float32 and against the true views; IoU of the silhouettes
with the true ones. Means over the objects.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import interval
from torch import Tensor
from tqdm import tqdm

from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion.checkpoint import load_checkpoint
from sv4d2_core.diffusion.model import Backend, Model
from sv4d2_core.diffusion.novel_views import WINDOWS, plan_windows, resynthesizer, sample_views
from sv4d2_core.diffusion.speed import keep_in_eight_bits
from sv4d2_core.metrics.image import mask_iou, psnr
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.refine import refine_scene
from sv4d2_core.shipped import TINY_MODEL
from sv4d2_core.training.scenes import held_out_views
from sv4d2_core.video.foreground import near_white_masks
from sv4d2_core.views import ViewGrid
from sv4d2_core.world.suite import FAMILIES, HELD_OUT

METHODS = ("model", "with_references", "copy", "white")
COLUMNS = ("psnr", "foreground_psnr", "iou", "temporal_error", "seam_jump")
HEAD = "| | PSNR, dB | PSNR of the foreground, dB | IoU of the silhouette | temporal error | seam jump |"
FULL, EXACT, SECOND = "euler, 50 steps", "dpmpp_2m, 60 steps", "dpmpp_2m, 20 steps"
WEIGHTS = ("bf16", "fp16", "fp8 weights", "fp8 weights without scales")
SMALLER = "48 pixels for 64"
SHORTCUTS = {
    # Noise levels around those at which guidance does good in images (Kynkäänniemi et al. 2024, EDM2).
    "guidance in 0.3 to 3": {"guidance_interval": (0.3, 3.0)},
    "step cache 0.1": {"step_cache": 0.1},
    "step cache 0.2": {"step_cache": 0.2},
}
# The table's rows; the two that others are compared with come first.
SETTINGS = [
    *(FULL, EXACT),
    *(f"euler, {steps} steps" for steps in (25, 20, 10, 5)),
    *(f"dpmpp_2m, {steps} steps" for steps in (25, 20, 10, 8)),
    *(f"{plain}, {shortcut}" for plain in (FULL, SECOND) for shortcut in SHORTCUTS),
    f"{SECOND}, guidance in 0.3 to 3, step cache 0.2",
    *(f"{SECOND}, {last}" for last in (*WEIGHTS, SMALLER)),
]
GUIDANCE = 2.0


def score_model(
    model: Backend,
    n_objects: int,
    *,
    steps: int = 20,
    seed: int = 0,
    methods: Sequence[str] = METHODS,
    family: str = "animals",
    n_frames: int | None = None,  # None: one window
    size: int | None = None,  # of the pictures that are compared; None: the model's
    windows: str = "official",
) -> dict[str, dict[str, Tensor]]:
    """Return the means over frames and novel views of each held-out object, [N] per method and column."""
    config = model.config
    n_frames, size, cameras = (
        n_frames or config.n_frames,
        size or config.size,
        Cameras.default(config.n_views),
    )
    starts = plan_windows(n_frames, config.n_frames)
    # The first frames that a window makes, but for the first.
    seams = [start + config.n_frames for start in starts[:-1]] if windows == "held" else starts[1:]
    rows: dict[str, list[list[float]]] = {method: [] for method in methods}
    for number in tqdm(range(n_objects)):
        truth = held_out_views(number, n_frames, cameras, size, family)
        given, novel = truth.images[:, 0], truth.images[:, 1:]
        small = truth.resized(config.size).images
        for method in methods:
            if method == "copy":
                made = given[:, None].expand_as(novel)
            elif method == "white":
                made = torch.ones_like(novel)
            else:
                known = small[0, 1:] if method == "with_references" else None
                options = {"steps": steps, "seed": seed, "reference_views": known, "windows": windows}
                views = sample_views(model, small[:, 0], cameras, **options)
                made = views.resized(size).images[:, 1:]
            images, true = made.flatten(0, 1).contiguous(), novel.flatten(0, 1)
            scores = (
                psnr(images, true),
                psnr(images, true, truth.masks[:, 1:].flatten(0, 1)),
                mask_iou(near_white_masks(images), near_white_masks(true)),
            )
            over_time = temporal_error(made, truth), seam_jump(made, seams)
            rows[method].append([*(float(score.mean()) for score in scores), *over_time])
    return {
        method: dict(zip(COLUMNS, torch.tensor(row, dtype=torch.float64).T, strict=True))
        for method, row in rows.items()
    }


def temporal_error(made: Tensor, truth: ViewGrid) -> float:
    """Return how far the changes of views [T, V, H, W, 3] from frame to frame are from the true ones."""
    wrong = (made.diff(dim=0) - truth.images[:, 1:].diff(dim=0)).abs().mean(-1)
    shown = torch.maximum(truth.masks[:-1, 1:], truth.masks[1:, 1:])
    return float((wrong * shown).sum() / shown.sum())


def seam_jump(made: Tensor, seams: Sequence[int]) -> float:
    """Return the mean change of views [T, V, H, W, 3] to the frames ``seams`` over that to all others."""
    change = made.diff(dim=0).abs().flatten(1).mean(1)
    at_seam = torch.isin(torch.arange(1, len(made)), torch.tensor(seams))
    return float(change[at_seam].mean() / change[~at_seam].mean())


def _cells(columns: list[Tensor]) -> str:
    ranges = [(values.mean(), *interval(values)) for values in columns]
    return " | ".join(f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in ranges)


def weights_of(setting: str) -> str:
    """Return in which way a setting has the model's weights."""
    return max((weights for weights in WEIGHTS if setting.endswith(weights)), key=len, default="fp32")


def model_with(weights: str, checkpoint: Path) -> Model:
    """Return the model with its weights in one of the ways."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(weights, torch.float32)
    model = load_checkpoint(checkpoint, dtype=dtype)
    if weights == "fp8 weights":  # as `sv4d2 views --fp8-weights` has it
        keep_in_eight_bits(model.unet)
    if weights == "fp8 weights without scales":  # rounded to float8_e4m3fn, as ComfyUI keeps them
        for parameter in model.unet.parameters():
            parameter.copy_(parameter.to(torch.float8_e4m3fn))
    return model


def novel_views(model: Model, truth: ViewGrid, setting: str) -> tuple[Tensor, float, float]:
    """Return the novel views [T * V, H, W, 3] at the true ones' size, evaluations and seconds they took."""
    sampler, steps, *more = setting.split(", ")
    options: dict[str, Any] = {"sampler": sampler, "steps": int(steps.split()[0])}
    for shortcut in more:
        options |= SHORTCUTS.get(shortcut, {})
    both = 2 * model.config.n_frames * model.config.n_views
    work: list[float] = []
    hook = model.unet.register_forward_hook(lambda _net, inputs, _out: work.append(len(inputs[0]) / both))
    began, size = time.process_time(), truth.images.shape[2]
    given = truth.resized(3 * size // 4) if SMALLER in more else truth
    made = sample_views(model, given.images[:, 0], truth.cameras, cfg=GUIDANCE, **options)
    made = made.resized(size) if SMALLER in more else made
    hook.remove()
    images = made.images[:, 1:].flatten(0, 1).contiguous()
    return images, sum(work), time.process_time() - began


def compared(models: dict[str, Model], truth: ViewGrid, chosen: list[str]) -> list[list[float]]:
    """Return the columns of each setting on one object."""
    made, costs = {}, []
    for setting in chosen:
        made[setting], *cost = novel_views(models[weights_of(setting)], truth, setting)
        costs.append(cost)
    novel = truth.images[:, 1:].flatten(0, 1).contiguous()
    rows = []
    for setting, cost in zip(chosen, costs, strict=True):
        images = made[setting]
        in_fp32 = made[setting.removesuffix(f", {weights_of(setting)}")]
        full, exact, fp32, true = (
            float(psnr(images, other).mean()) for other in (made[FULL], made[EXACT], in_fp32, novel)
        )
        iou = mask_iou(near_white_masks(images), near_white_masks(novel))
        rows.append([*cost, full, exact, fp32, true, float(iou.mean())])
    return rows


def scene_scores(model: Backend, number: int, args: argparse.Namespace) -> list[list[float]]:
    """Return PSNR, that of the foreground and IoU from held-out cameras per way to fit a scene."""
    config, shown = model.config, Cameras.default(model.config.n_views)
    both = Cameras(
        shown.elevations_deg + HELD_OUT.elevations_deg[1:], shown.azimuths_deg + HELD_OUT.azimuths_deg[1:]
    )
    n_frames, last = args.frames or config.n_frames, config.n_views + 1
    truth = held_out_views(number, n_frames, both, config.size, args.family)
    cameras = replace(shown, input_elevation_deg=truth.cameras.input_elevation_deg)
    images, masks = truth.images[:, :last], truth.masks[:, :last]
    made = sample_views(model, images[:, 0], cameras, steps=args.steps, seed=args.seed, fps=truth.fps)
    again = resynthesizer(model, made, steps=2 * args.steps, seed=args.seed)
    ways = (made, 1, None), (made, 2, again), (replace(made, images=images, masks=masks), 1, None)
    rows = []
    for views, stages, remake in ways:
        fit = RefineConfig().with_steps(args.scenes, stages)
        scene = refine_scene(views, fit, resynthesize=remake)
        seen = scene.render(truth.cameras, views.frame_times(), config.size)
        ours, opaque = (x[:, last:].flatten(0, 1).clamp(0, 1) for x in (seen.rgb, seen.alpha))
        true, solid = (x[:, last:].flatten(0, 1) for x in (truth.images, truth.masks))
        scores = psnr(ours, true), psnr(ours, true, solid), mask_iou(opaque, solid)
        rows.append([float(score.mean()) for score in scores])
    return rows


def print_scenes(args: argparse.Namespace) -> None:
    """Print a row for each way to fit a scene."""
    model = load_checkpoint(args.checkpoint)
    rows = torch.tensor([scene_scores(model, i, args) for i in tqdm(range(args.objects))])
    print("| scene of | PSNR, dB | PSNR of the foreground, dB | IoU of the silhouette |\n|---|---|---|---|")
    ways = ("its views", "its views, second stage", "true views")
    for name, found in zip(ways, rows.unbind(1), strict=True):
        print(f"| {name} | {_cells([*found.T])} |")


def print_trade_offs(args: argparse.Namespace) -> None:
    """Print a row for each setting."""
    chosen = [setting for setting in SETTINGS if setting in (FULL, EXACT, SECOND) or args.only in setting]
    models = {weights: model_with(weights, args.checkpoint) for weights in set(map(weights_of, chosen))}
    config = models["fp32"].config
    cameras = Cameras.default(config.n_views)
    what = cameras, config.size, args.family
    truths = (held_out_views(i, config.n_frames, *what) for i in range(args.objects))
    rows = [compared(models, truth, chosen) for truth in tqdm(truths, total=args.objects)]
    found = torch.tensor(rows, dtype=torch.float64)
    print("| | evaluations | time | PSNR to 50 steps | to the solution | to fp32 | to the truth | IoU |")
    print("|---|---|---|---|---|---|---|---|")
    means = found.mean(0)
    for setting, row in zip(chosen, means, strict=True):
        work, seconds, *distances, true, iou = row.tolist()
        shown = " | ".join("-" if x == float("inf") else f"{x:.1f}" for x in distances)
        share = seconds / float(means[0, 1])
        print(f"| {setting} | {work:.1f} | {share:.2f} | {shown} | {true:.2f} | {iou:.3f} |")


def main() -> None:
    """Score the model and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=TINY_MODEL)
    parser.add_argument("--objects", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", choices=FAMILIES, default="animals")
    parser.add_argument("--frames", type=int, help="of the clip (default: one window)")
    parser.add_argument("--size", type=int, help="pixels (default: the model's)")
    parser.add_argument("--windows", choices=WINDOWS, default=WINDOWS[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--scenes", type=int, metavar="STEPS", help="fit scenes in so many steps")
    parser.add_argument("--trade-offs", action="store_true")
    parser.add_argument("--only", default="", help="settings with this word, and what they are compared with")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.scenes:
        print_scenes(args)
        return
    if args.trade_offs:
        print_trade_offs(args)
        return
    model = load_checkpoint(args.checkpoint)
    what = {"family": args.family, "n_frames": args.frames, "size": args.size, "methods": args.methods}
    what |= {"steps": args.steps, "seed": args.seed, "windows": args.windows}
    scores = score_model(model, args.objects, **what)
    print(f"{HEAD}\n|---|---|---|---|---|---|")
    for method, found in scores.items():
        print(f"| {method} | {_cells([found[name] for name in COLUMNS])} |")
    for baseline in [name for name in scores if name != "model" and "model" in scores]:
        better = [scores["model"][name] - scores[baseline][name] for name in COLUMNS]
        print(f"| model - {baseline} | {_cells(better)} |")


if __name__ == "__main__":
    main()
