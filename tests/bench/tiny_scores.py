"""Prints how good a small model's novel views of the 64 held-out procedural objects are.

    python tests/bench/tiny_scores.py [CHECKPOINT] [--objects 64] [--steps 20] [--seed 0]

Rows: the model, the model given the true views of the first frame, copies of the input view in place of all
others, and white pictures. Means over objects with the middle 95 % of the mean under their resampling,
and of the paired difference between the model and each baseline.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from measure import interval
from tqdm import tqdm

from sv4d2_core.diffusion.checkpoint import load_checkpoint
from sv4d2_core.shipped import TINY_MODEL
from sv4d2_core.training.scores import score_model

COLUMNS = ("psnr", "foreground_psnr", "iou")


def cell(values: torch.Tensor) -> str:
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
        print(f"| {method} | {' | '.join(cell(getattr(found, name)) for name in COLUMNS)} |")
    for baseline in ("copy", "white", "with_references"):
        pairs = [getattr(scores["model"], n) - getattr(scores[baseline], n) for n in COLUMNS]
        print(f"| model - {baseline} | {' | '.join(cell(pair) for pair in pairs)} |")


if __name__ == "__main__":
    main()
