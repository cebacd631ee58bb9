"""Prints what the changes of SV4D 2.0's training are worth at the scale of `sv4d2-tiny`.

    python tests/bench/train_ablations.py FOLDER [--steps 120] [--seeds 0 1] [--arms full view ...]

FOLDER is that of a training from scratch (`sv4d2 train --out FOLDER`): its autoencoder and its scenes are
used. Every arm sees the same number of samples in the same order per seed. Finished runs are kept in
FOLDER/ablations and not repeated. Figures are means over held-out objects and seeds; the intervals hold 95 %
of the paired differences to the arm in question under resampling of the objects.

Arms ``raw``, ``rectified`` and ``curated`` are trained on clips of which most have a planted defect: all of
them as they are, all of them rectified, or only those that the curation keeps, rectified.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from measure import interval
from planted_clips import DEFECTS, planted_clip
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion.checkpoint import load_checkpoint
from sv4d2_core.diffusion.model import Model
from sv4d2_core.diffusion.novel_views import sample_views
from sv4d2_core.diffusion.unet import UNet
from sv4d2_core.files import file_fingerprint, fingerprint_of
from sv4d2_core.metrics.image import psnr
from sv4d2_core.training.batches import EncodedScene, EncodedScenes
from sv4d2_core.training.curation import CurationLimits, judge, rectify
from sv4d2_core.training.recipe import TINY, Recipe, initialise, train_phase
from sv4d2_core.training.scenes import ProceduralScenes, SceneStore, held_out_views
from sv4d2_core.views import ViewGrid

STATIC_SHARE = 0.6
SAMPLER_STEPS = 5
CLIPS = 200
CLIP_SIZE = 64
LIMITS = CurationLimits()


@dataclass(frozen=True)
class Arm:
    """One way to train; the defaults are the full recipe."""

    view_mixing: str = "joint_3d"
    masks: bool = True
    static_share: float = STATIC_SHARE
    clips: str = ""
    against: str = "full"


ARMS = {
    "full": Arm(),
    "view": Arm(view_mixing="view"),
    "unmasked": Arm(masks=False),
    "no-static": Arm(static_share=0.0),
    "raw": Arm(clips="raw", against="curated"),
    "rectified": Arm(clips="rectified", against="curated"),
    "curated": Arm(clips="curated", against="curated"),
}
COLUMNS, DIGITS = ("PSNR fg", "with references", "mask IoU", "temporal error"), (2, 2, 3, 4)


def planted(kind: str, folder: Path, base: Model) -> list[EncodedScene]:
    """Return the encoded clips of an arm; their numbers are kept in a file."""
    names = folder / f"clips_{kind}.json"
    if not names.exists():
        verdicts = ((k, judge(_clip(k), LIMITS)) for k in range(CLIPS))
        kept = [k for k, verdict in verdicts if verdict.plan and (kind != "curated" or verdict.kept)]
        names.write_text(json.dumps(kept))

    def read(index: int) -> tuple[Tensor, Cameras]:
        grid = _clip(index)
        if kind != "raw":
            grid = rectify(grid, judge(grid, LIMITS).plan, TINY.size)
        grid = grid.resized(TINY.size)
        return (grid.images * 255).round().to(torch.uint8), grid.cameras

    store = EncodedScenes(base, read, folder / f"clips_{kind}")
    return [store(index) for index in json.loads(names.read_text())]


def _clip(index: int) -> ViewGrid:
    return planted_clip(20_000 + index, tuple(DEFECTS)[index % len(DEFECTS)], CLIP_SIZE).grid


def trained(
    arm: Arm, base: Model, scenes: Callable[[int], EncodedScene], n: int, steps: int, seed: int
) -> Model:
    """Return a model whose UNet was trained as the arm says."""
    torch.manual_seed(seed)
    config = replace(base.config, unet=replace(base.config.unet, view_mixing=arm.view_mixing))
    unet = UNet(config.unet)
    initialise(unet)
    recipe = Recipe(model=config, seed=seed, n_scenes=n)
    static, motion = recipe.phases
    masks = {} if arm.masks else {"mask_all": 0.0, "mask_view": 0.0}
    model = replace(base, config=config, unet=unet)
    n_static = round(arm.static_share * steps)
    for phase, n_steps in ((static, n_static), (motion, steps - n_static)):
        loop = replace(phase.loop, steps=n_steps, learning_rate=1e-3, warm_up=20, average=0.99)
        draw = replace(phase.draw, **masks)
        if n_steps:
            train_phase(replace(phase, loop=loop, draw=draw), recipe, model, scenes)
    return model


def scores(model: Model, n_objects: int) -> list[list[float]]:
    """Return the figures of ``COLUMNS`` for every held-out object."""
    rows = []
    for number in range(n_objects):
        truth = held_out_views(number, model.config.n_frames, Cameras.default(4), model.config.size)
        novel = truth.images[:, 1:]
        masks = truth.masks[:, 1:]
        made = [
            sample_views(
                model, truth.images[:, 0], truth.cameras, steps=SAMPLER_STEPS, reference_views=references
            )
            for references in (None, novel[0])
        ]
        free = made[0].images[:, 1:]
        # The references are the true views of frame 0, which is therefore left out.
        later = [g.images[1:, 1:].flatten(0, 1) for g in made]
        true = novel[1:].flatten(0, 1), masks[1:].flatten(0, 1)
        foreground = [float(psnr(images, *true).mean()) for images in later]
        shown, covered = made[0].masks[:, 1:] >= 0.5, masks >= 0.5
        temporal = (free.diff(dim=0) - novel.diff(dim=0)).abs().mean()
        rows.append([*foreground, float((shown & covered).sum() / (shown | covered).sum()), float(temporal)])
    return rows


def report(results: dict[str, list[list[list[float]]]]) -> None:
    """Print means and paired intervals; ``results`` holds [seeds][objects][columns] of each arm."""
    means = {name: torch.tensor(runs, dtype=torch.float64).mean(0) for name, runs in results.items()}
    print(f"| arm | seeds | {' | '.join(COLUMNS)} |")
    print("|---|" + "---|" * (len(COLUMNS) + 1))
    for name, table in means.items():
        cells = []
        for column, digits in enumerate(DIGITS):
            cell = f"{table[:, column].mean():.{digits}f}"
            other = ARMS[name].against
            if other != name and other in means:
                low, high = interval(table[:, column] - means[other][:, column])
                cell += f" ({low:+.{digits}f} to {high:+.{digits}f})"
            cells.append(cell)
        print(f"| {name} | {len(results[name])} | {' | '.join(cells)} |")


def main() -> None:
    """Train and score what is not there yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--objects", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    autoencoder = args.folder / "autoencoder.safetensors"
    constants = fingerprint_of(
        file_fingerprint(autoencoder), STATIC_SHARE, SAMPLER_STEPS, CLIPS, asdict(LIMITS)
    )
    place = args.folder / "ablations" / constants
    place.mkdir(parents=True, exist_ok=True)
    base = load_checkpoint(autoencoder)
    settings = json.loads((args.folder / "scenes" / "scenes.json").read_text())
    store = SceneStore(args.folder / "scenes", ProceduralScenes(**settings["procedural"]), settings)
    n_scenes = json.loads((args.folder / "recipe.json").read_text())["n_scenes"]
    clean = EncodedScenes(base, store.read, place / "encoded")
    results: dict[str, list] = {}
    for seed in args.seeds:
        for name in args.arms:
            arm = ARMS[name]
            file = place / f"{name}_{args.steps}_{args.objects}_{seed}.json"
            if not file.exists():
                clips = planted(arm.clips, place, base) if arm.clips else None
                scenes, n = (clips.__getitem__, len(clips)) if clips else (clean, n_scenes)
                model = trained(arm, base, scenes, n, args.steps, seed)
                file.write_text(json.dumps(scores(model, args.objects)))
            results.setdefault(name, []).append(json.loads(file.read_text()))
        report(results)


if __name__ == "__main__":
    main()
