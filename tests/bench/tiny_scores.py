"""Prints how good a small model's novel views of the 64 held-out procedural objects are.

    python tests/bench/tiny_scores.py [CHECKPOINT] [--objects 64] [--steps 20] [--seed 0]

Rows: the model, the model given the true views of the first frame, copies of the input view in place of all
others, and white pictures. Means over objects with the middle 95 % of the mean under their resampling,
and of the paired difference between the model and each baseline.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from measure import interval
from torch import Tensor
from tqdm import tqdm

from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion.checkpoint import load_checkpoint
from sv4d2_core.diffusion.model import Backend
from sv4d2_core.diffusion.novel_views import sample_views
from sv4d2_core.metrics.image import mask_iou, psnr
from sv4d2_core.shipped import TINY_MODEL
from sv4d2_core.training.scenes import held_out_views
from sv4d2_core.video.foreground import near_white_masks

METHODS = ("model", "with_references", "copy", "white")
COLUMNS = ("psnr", "foreground_psnr", "iou")


def score_model(
    model: Backend,
    n_objects: int,
    *,
    steps: int = 20,
    seed: int = 0,
    methods: tuple[str, ...] = METHODS,
    callback: Callable[[int], object] = lambda done: None,
) -> dict[str, dict[str, Tensor]]:
    """Return the means over frames and novel views of each held-out object, [N] per method and column.

    Args:
        model: makes windows of T frames from its default orbit.
        n_objects: at most 64.
        steps: of the sampler.
        seed: of the noise.
        methods: out of ``METHODS``: the model without and with true reference views of the first frame, the
            input view in place of all others, and white pictures.
        callback: called with the number of objects done.
    """
    config = model.config
    rows: dict[str, list[list[float]]] = {method: [] for method in methods}
    for number in range(n_objects):
        truth = held_out_views(number, config.n_frames, Cameras.default(config.n_views), config.size)
        given, novel = truth.images[:, 0], truth.images[:, 1:]
        for method in methods:
            if method == "copy":
                made = given[:, None].expand_as(novel)
            elif method == "white":
                made = torch.ones_like(novel)
            else:
                known = novel[0] if method == "with_references" else None
                views = sample_views(
                    model, given, truth.cameras, steps=steps, seed=seed, reference_views=known
                )
                made = views.images[:, 1:]
            images, true = made.flatten(0, 1).contiguous(), novel.flatten(0, 1)
            scores = (
                psnr(images, true),
                psnr(images, true, truth.masks[:, 1:].flatten(0, 1)),
                mask_iou(near_white_masks(images), near_white_masks(true)),
            )
            rows[method].append([float(score.mean()) for score in scores])
        callback(number + 1)
    return {
        method: dict(zip(COLUMNS, torch.tensor(row, dtype=torch.float64).T, strict=True))
        for method, row in rows.items()
    }


def cell(values: Tensor) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(values.mean(), *interval(values))


def main() -> None:
    """Score the model and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=TINY_MODEL)
    parser.add_argument("--objects", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(args.checkpoint)
    with tqdm(total=args.objects) as bar:
        scores = score_model(
            model,
            args.objects,
            steps=args.steps,
            seed=args.seed,
            callback=lambda done: bar.update(done - bar.n),
        )
    print("| | PSNR, dB | PSNR of the foreground, dB | IoU of the silhouette |\n|---|---|---|---|")
    for method, found in scores.items():
        print(f"| {method} | {' | '.join(cell(found[name]) for name in COLUMNS)} |")
    for baseline in ("copy", "white", "with_references"):
        pairs = [scores["model"][n] - scores[baseline][n] for n in COLUMNS]
        print(f"| model - {baseline} | {' | '.join(cell(pair) for pair in pairs)} |")


if __name__ == "__main__":
    main()
