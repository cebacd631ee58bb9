"""Prints what each setting that trades accuracy for time costs and saves, on the small model of the pack.

    python tests/bench/trade_offs.py [CHECKPOINT] [--objects 4] [--cfg 2] [--only WORD]

Every setting samples the same held-out objects from the same noise. Columns: evaluations of the network (one
half of guidance alone counts a half), processor time as a share of 50 Euler steps, and the PSNR of the novel
views against those of 50 Euler steps, against the equation's solution (60 steps of second order), against the
same setting in float32 and against the true views; IoU of the silhouettes with the true ones. Means over the
objects.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion.checkpoint import load_checkpoint
from sv4d2_core.diffusion.model import Model
from sv4d2_core.diffusion.novel_views import sample_views
from sv4d2_core.diffusion.speed import keep_in_eight_bits
from sv4d2_core.metrics.image import mask_iou, psnr
from sv4d2_core.shipped import TINY_MODEL
from sv4d2_core.training.scenes import held_out_views
from sv4d2_core.video.foreground import near_white_masks
from sv4d2_core.views import ViewGrid

FULL, EXACT = "euler, 50 steps", "dpmpp_2m, 60 steps"
# Noise levels around those at which guidance does good in images (Kynkäänniemi et al. 2024, EDM2).
INTERVAL = (0.3, 3.0)


class Setting(NamedTuple):
    """One row of the table."""

    name: str
    options: dict[str, Any]  # of `sample_views`
    model: str = "fp32"  # a key of `MODELS`
    size: float = 1.0  # pixels, as a share of the model's


class Row(NamedTuple):
    """The measurements of a setting on one object."""

    evaluations: float
    seconds: float
    psnr_full: float
    psnr_exact: float
    psnr_fp32: float
    psnr_truth: float
    iou: float


def settings() -> Iterator[Setting]:
    """Yield the settings in the table's order; the two that others are compared with come first."""
    yield Setting(FULL, {"steps": 50})
    yield Setting(EXACT, {"sampler": "dpmpp_2m", "steps": 60})
    for sampler, counts in (("euler", (25, 20, 10, 5)), ("dpmpp_2m", (25, 20, 10, 8))):
        for steps in counts:
            yield Setting(f"{sampler}, {steps} steps", {"sampler": sampler, "steps": steps})
    second = {"sampler": "dpmpp_2m", "steps": 20}
    shortcuts: dict[str, dict[str, Any]] = {
        "guidance in 0.3 to 3": {"guidance_interval": INTERVAL},
        "step cache 0.1": {"step_cache": 0.1},
        "step cache 0.2": {"step_cache": 0.2},
    }
    for name, shortcut in shortcuts.items():
        yield Setting(f"{FULL}, {name}", {"steps": 50, **shortcut})
    for name, shortcut in shortcuts.items():
        yield Setting(f"dpmpp_2m, 20 steps, {name}", {**second, **shortcut})
    both = {**shortcuts["guidance in 0.3 to 3"], **shortcuts["step cache 0.2"]}
    yield Setting("dpmpp_2m, 20 steps, guidance in 0.3 to 3, step cache 0.2", {**second, **both})
    for model in ("bf16", "fp16", "fp8 weights", "fp8 weights without scales"):
        yield Setting(f"dpmpp_2m, 20 steps, {model}", second, model)
    yield Setting("dpmpp_2m, 20 steps, 24 pixels for 32", second, size=0.75)


def with_fp8_weights(checkpoint: Path) -> Model:
    """Return the model as `sv4d2 views --fp8-weights` has it."""
    model = load_checkpoint(checkpoint)
    keep_in_eight_bits(model.unet)
    return model


def with_plain_fp8_weights(checkpoint: Path) -> Model:
    """Return the model with its UNet's weights rounded to float8_e4m3fn, as ComfyUI keeps them."""
    model = load_checkpoint(checkpoint)
    with torch.no_grad():
        for parameter in model.unet.parameters():
            parameter.copy_(parameter.to(torch.float8_e4m3fn))
    return model


MODELS: dict[str, Callable[[Path], Model]] = {
    "fp32": load_checkpoint,
    "bf16": lambda file: load_checkpoint(file, dtype=torch.bfloat16),
    "fp16": lambda file: load_checkpoint(file, dtype=torch.float16),
    "fp8 weights": with_fp8_weights,
    "fp8 weights without scales": with_plain_fp8_weights,
}


@contextmanager
def counted(model: Model) -> Iterator[list[float]]:
    """Yield a list that gets the work of each evaluation of the network: 1, or a half for one half."""
    both = 2 * model.config.n_frames * model.config.n_views
    work: list[float] = []
    hook = model.unet.register_forward_hook(lambda _net, inputs, _out: work.append(len(inputs[0]) / both))
    try:
        yield work
    finally:
        hook.remove()


def novel_views(model: Model, truth: ViewGrid, setting: Setting, cfg: float) -> Tensor:
    """Return the novel views [T * V, H, W, 3] that a setting makes, at the true ones' size."""
    size = truth.images.shape[2]
    given = truth if setting.size == 1 else truth.resized(round(setting.size * size))
    made = sample_views(model, given.images[:, 0], truth.cameras, cfg=cfg, **setting.options)
    return (made if setting.size == 1 else made.resized(size)).images[:, 1:].flatten(0, 1).contiguous()


def measure(models: dict[str, Model], truth: ViewGrid, chosen: list[Setting], cfg: float) -> list[Row]:
    """Return a row for each setting on one object."""
    made: dict[str, Tensor] = {}
    costs: list[tuple[float, float]] = []
    for setting in chosen:
        with counted(models[setting.model]) as work:
            began = time.process_time()
            made[setting.name] = novel_views(models[setting.model], truth, setting, cfg)
            costs.append((sum(work), time.process_time() - began))
    novel = truth.images[:, 1:].flatten(0, 1).contiguous()
    rows = []
    for setting, cost in zip(chosen, costs, strict=True):
        images = made[setting.name]
        in_fp32 = made[setting.name.removesuffix(f", {setting.model}")]
        full, exact, fp32, true = (
            float(psnr(images, other).mean()) for other in (made[FULL], made[EXACT], in_fp32, novel)
        )
        iou = mask_iou(near_white_masks(images), near_white_masks(novel))
        rows.append(Row(*cost, full, exact, fp32, true, float(iou.mean())))
    return rows


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=TINY_MODEL)
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument(
        "--only",
        default="",
        help="settings with this word in their name, and those that they are compared with",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    always = (FULL, EXACT, "dpmpp_2m, 20 steps")
    chosen = [s for s in settings() if s.name in always or args.only in s.name]
    models = {name: MODELS[name](args.checkpoint) for name in {setting.model for setting in chosen}}
    config = models["fp32"].config
    cameras = Cameras.default(config.n_views)
    truths = (held_out_views(i, config.n_frames, cameras, config.size) for i in range(args.objects))
    rows = [measure(models, truth, chosen, args.cfg) for truth in tqdm(truths, total=args.objects)]
    found = torch.tensor(rows, dtype=torch.float64)
    print("| | evaluations | time | PSNR to 50 steps | to the solution | to fp32 | to the truth | IoU |")
    print("|---|---|---|---|---|---|---|---|")
    means = found.mean(0)
    for setting, row in zip(chosen, means, strict=True):
        work, seconds, *distances, true, iou = row.tolist()
        shown = " | ".join("-" if x == float("inf") else f"{x:.1f}" for x in distances)
        share = seconds / float(means[0, 1])
        print(f"| {setting.name} | {work:.1f} | {share:.2f} | {shown} | {true:.2f} | {iou:.3f} |")


if __name__ == "__main__":
    main()
