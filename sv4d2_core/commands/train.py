"""`sv4d2 train`: a small model from scratch or a given one fine-tuned, on generated or own renders."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ..cameras import Cameras
from ..diffusion.model import Backend, Model
from ..diffusion.novel_views import sample_views
from ..export.plots import loss_plot
from ..training.loop import Progress, any_process, is_first_process, process_group
from ..training.recipe import Recipe
from ..training.run import OutOfTime, TrainingRun
from ..training.scenes import (
    FolderScenes,
    ProceduralScenes,
    SceneStore,
    check_training_folder,
    held_out_views,
)
from ..video.pictures import to_bytes
from .common import choose_device, exclusive, interrupts_between_steps
from .train_arguments import recipe_of

log = logging.getLogger(__name__)

_PLOT_SIZE, _PLOT_EVERY_S = (900, 420), 60.0
_SAMPLED_OBJECTS = (0, 1, 2, 3)
# Cameras of a generated scene: twelve around hold the orbit of 4 views, only twice as many that of 8.
_CAMERAS, _FEW_VIEWS, _FEWEST_FRAMES = 12, 4, 4


def run(args: argparse.Namespace) -> int:
    """Train and return the exit code.

    Raises:
        ValueError, OSError: bad data or options, a folder with another training, a full disk.
    """
    paths: tuple[Path, ...] = ()
    recipe = recipe_of(args)
    model = recipe.model
    if args.data is not None:
        paths = tuple(
            check_training_folder(args.data, size=model.size, n_views=model.n_views, n_frames=model.n_frames)
        )
        recipe = replace(recipe, n_scenes=len(paths))
    with process_group(choose_device(args.device)) as device:
        first = is_first_process()
        with exclusive(args.out) if first else nullcontext(), interrupts_between_steps() as check:
            return _train(args, recipe, _store(args, recipe, paths), device, check)


def _store(args: argparse.Namespace, recipe: Recipe, paths: tuple[Path, ...]) -> SceneStore:
    model, folder = recipe.model, args.out / "scenes"
    # The autoencoder reads pictures again and again; a diffusion model alone reads each scene once.
    keeps = args.base is None
    if paths:
        renders = FolderScenes(paths, model.size)
        return SceneStore(folder, renders, {"data": renders.identity(), "size": model.size}, keeps)
    source = ProceduralScenes(
        args.seed,
        model.size,
        n_cameras=_CAMERAS if model.n_views <= _FEW_VIEWS else 2 * _CAMERAS,
        n_frames=max(_FEWEST_FRAMES, model.n_frames),
    )
    return SceneStore(folder, source, {"procedural": asdict(source)}, keeps)


def _train(
    args: argparse.Namespace,
    recipe: Recipe,
    store: SceneStore,
    device: torch.device,
    check_interrupt: Callable[[], None],
) -> int:
    watch = _Watch(args.out, args.sample_every, check_interrupt, tqdm(disable=True))
    training = TrainingRun(args.out, recipe, store, device, args.base, args.minutes, watch)
    try:
        with store.made_ahead(recipe.n_scenes, args.workers if is_first_process() else 0):
            result = training.run()
    except OutOfTime as stopped:
        log.info("Time is up after %s. The same command goes on.", stopped)
        return 0
    except KeyboardInterrupt:
        log.warning("The training so far is kept in %s; the same command goes on with it.", args.out)
        raise
    finally:
        watch.bar.close()
    log.info("Trained: %s", result)
    return 0


@dataclass
class _Watch:
    """Shows how a training goes: a bar per stage, its losses, and now and then what the model makes."""

    folder: Path
    sample_every_min: float
    check_interrupt: Callable[[], None]
    bar: tqdm
    stage: str = ""
    plotted: float = field(default_factory=time.monotonic)
    sampled: float = field(default_factory=time.monotonic)

    def __call__(self, stage: str, progress: Progress, model: Model | None) -> None:
        if is_first_process():
            if stage != self.stage:
                self.bar.close()
                self.bar = tqdm(desc=stage, total=progress.total, unit="step", dynamic_ncols=True)
                self.stage = stage
            self.bar.update(progress.step - self.bar.n)
            recent = progress.losses[-50:]
            self.bar.set_postfix_str(f"loss {sum(recent) / len(recent):.4f}", refresh=False)
            self._draw(stage, progress, model)
        # A process that stopped alone would leave the others waiting for its gradients.
        if any_process(self._is_interrupted()):
            raise KeyboardInterrupt

    def _is_interrupted(self) -> bool:
        try:
            self.check_interrupt()
        except KeyboardInterrupt:
            return True
        return False

    def _draw(self, stage: str, progress: Progress, model: Model | None) -> None:
        now, at_end = time.monotonic(), progress.step == progress.total
        if at_end or now - self.plotted > _PLOT_EVERY_S:
            steps = list(enumerate(progress.losses, start=1))
            loss_plot(steps, *_PLOT_SIZE).save(self.folder / f"{stage}_loss.png")
            self.plotted = now
        if model is not None and (at_end or now - self.sampled > 60 * self.sample_every_min):
            with progress.averaged():
                sheet = sample_sheet(model, _SAMPLED_OBJECTS)
            sheet.save(self.folder / f"{stage}_{progress.step:06d}.png")
            self.sampled = time.monotonic()


# Small pictures are shown at about this size.
_SHOWN, _GAP, _TEXT, _LABELS = 96, 6, 13, 64


def sample_sheet(model: Backend, objects: Sequence[int], *, steps: int = 20, seed: int = 0) -> Image.Image:
    """Return a picture of held-out objects: per object a row of true views and one of what a model makes.

    A row is all views of the first frame, then of the last.

    Args:
        model: makes the views.
        objects: numbers of held-out objects.
        steps: of the sampler.
        seed: of the noise.
    """
    config, rows = model.config, []
    for number in objects:
        true = held_out_views(number, config.n_frames, Cameras.default(config.n_views), config.size)
        made = sample_views(model, true.images[:, 0], true.cameras, steps=steps, seed=seed)
        for word, grid in (("true", true), ("made", made)):
            rows.append((word, torch.cat([view for frame in (0, -1) for view in grid.images[frame]], dim=1)))
    cell = max(1, round(_SHOWN / config.size))
    height, width = config.size * cell, rows[0][1].shape[1] * cell
    sheet = Image.new("RGB", (_LABELS + width + _GAP, _GAP + len(rows) * (height + _GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    for k, (word, row) in enumerate(rows):
        y = _GAP + k * (height + _GAP)
        draw.text((_GAP, y + height // 2), word, "black", font, anchor="lm")
        picture = Image.fromarray(to_bytes(row)).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(picture, (_LABELS, y))
        if word == "made":
            y += height + _GAP // 2
            draw.line((0, y, sheet.width, y), (222, 222, 222))
    return sheet
