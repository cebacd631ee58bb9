"""`sv4d2 train`: a small model from scratch, or a given one fine-tuned; `sv4d2 curate`: clips for that."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from ..cameras import Cameras
from ..data.reader import find_scenes
from ..diffusion.config import VIEW_MIXINGS, ModelConfig
from ..diffusion.layout import read_config
from ..diffusion.model import Backend, Model
from ..diffusion.novel_views import sample_views
from ..diffusion.safetensors_stream import read_header
from ..export.plots import loss_plot
from ..files import exclusive, if_possible, remove_unfinished
from ..training.batches import DrawConfig
from ..training.curate import PAGE_FILE, curate
from ..training.curation import CurationLimits
from ..training.device_scenes import DeviceScenes
from ..training.loop import LoopConfig, any_process, is_first_process, process_group
from ..training.loop import Progress as TrainingProgress
from ..training.recipe import DTYPES, RECIPES, Phase, Recipe
from ..training.run import OutOfTime, TrainingRun
from ..training.scenes import (
    FolderScenes,
    ProceduralScenes,
    SceneStore,
    check_training_folder,
    held_out_views,
)
from ..video.pictures import to_bytes, write_picture
from .common import (
    LARGEST_SIZE,
    MINUTES,
    Options,
    Progress,
    at_least,
    checkpoint_file,
    choose_device,
    interrupts_between_steps,
    made_with,
    of_setting,
    refuse_idle,
    refuse_odd,
    refuse_overlap,
    user_path,
)

log = logging.getLogger(__name__)

# Of a given checkpoint, and of low-rank parts of one; from scratch the recipe says more.
_FINE_TUNING_STEPS = 1000
_FINE_TUNING_RATE, _LORA_RATE = 1e-5, 1e-4
_PLOT_SIZE, _PLOT_EVERY_S = (900, 420), 60.0
_SAMPLE_SHARE = 9.0  # times what a sheet of samples takes is trained before the next
_LONG = 100_000_000  # scenes at most
_SAMPLED_OBJECTS = (0, 1, 2, 3)
# Twice the recipe's cameras around hold the orbit of 8 views.
_FEW_VIEWS, _FEWEST_FRAMES = 4, 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options = Options(parser)
    text = "folder of the training; the same goes on"
    parser.add_argument("--out", type=user_path, required=True, metavar="DIR", help=text)
    text = "your own renders: folders of views or D-NeRF style data sets (default: the procedural world)"
    options.value("--data", user_path, text, metavar="DIR")
    text = "fine-tune this checkpoint, or tiny (default: a small one, from scratch)"
    options.value("--base", checkpoint_file, text, metavar="FILE")
    options.value("--lora", at_least(1), "with --base: train a LoRA on the attention alone", metavar="RANK")
    text = (
        "sizes, steps and generated objects: all things at 32 pixels (default), or animals at 64, with "
        "batches for a CPU or a GPU"
    )
    options.choice("--recipe", tuple(RECIPES), "things", text)
    options.value("--minutes", MINUTES, "stop after N minutes, to go on later")
    text = "end the whole training in about N minutes: each stage has a share of them instead of its steps"
    options.value("--finish-in", MINUTES, text)
    options.device()
    options.value("--seed", at_least(0, 2**32 - 1), "of everything", 0)
    text = "minutes between two sample pictures, at least nine times what one takes"
    options.value("--sample-every", MINUTES, text, 10.0, "MIN")

    data = options.group("data")
    data.value("--scenes", at_least(1, _LONG), "procedural scenes to draw from (default: the recipe's)")
    data.flag("--on-device", "draw generated scenes on the device and keep them all there")
    data.flag("--mirror", "draw from their mirror images, too")
    data.value("--workers", at_least(0, 256), "processes that render scenes ahead (from scratch only)", 1)
    text = "share of samples on the official orbit around their input, else any cameras (default 0.95)"
    data.value("--orbit-share", of_setting(DrawConfig, "orbit_share"), text, metavar="X")
    text = "share of samples without reference views (default 0.95 in the static phase, else 0.5)"
    data.value("--mask-all", of_setting(DrawConfig, "mask_all"), text, metavar="X")
    text = "share of missing reference views elsewhere (default 0.15)"
    data.value("--mask-view", of_setting(DrawConfig, "mask_view"), text, metavar="X")
    text = "mean of the logarithm of the noise level (default 2; 1 with --base)"
    data.value("--p-mean", of_setting(DrawConfig, "p_mean"), text, metavar="X")
    data.value("--p-std", of_setting(DrawConfig, "p_std"), "its deviation (default 1.8; 1.6)", metavar="X")

    training = options.group("training")
    for stage, what in (("autoencoder", "from scratch only"), ("decoder", "from scratch only, last")):
        training.value(f"--{stage}-steps", at_least(1), f"{what} (default: the recipe's)")
    text = "phase 1, static 3D without mixing of frames (default: the recipe's; 0 with --base)"
    training.value("--static-steps", at_least(0), text)
    text = f"phase 2, 4D (default: the recipe's; {_FINE_TUNING_STEPS} with --base)"
    training.value("--motion-steps", at_least(0), text)
    for phase in ("static", "motion"):
        text = "samples per step (default: the recipe's; 1 with --base)"
        training.value(f"--{phase}-batch", at_least(1), text)
    text = (
        f"of all phases (default: the recipe's; {_FINE_TUNING_RATE:g} with --base, {_LORA_RATE:g} with "
        f"--lora)"
    )
    training.value("--learning-rate", of_setting(LoopConfig, "learning_rate"), text, metavar="X")
    text = "of the UNet's arithmetic (default: the recipe's); a CPU without AMX is faster in fp32"
    training.choice("--dtype", DTYPES, help=text)
    training.flag("--checkpointing", "compute activations twice, in much less memory")
    text = "how views attend to each other (default: the model's own)"
    training.choice("--view-mixing", VIEW_MIXINGS, help=text)


def run(args: argparse.Namespace) -> int:
    refuse_overlap(args.out, args.data, args.base)
    paths: tuple[Path, ...] = ()
    recipe = recipe_of(args)
    model = recipe.model
    if args.data is not None:
        needed = {"size": model.size, "n_views": model.n_views, "n_frames": model.n_frames}
        paths = tuple(check_training_folder(args.data, **needed))
        recipe = replace(recipe, n_scenes=len(paths))
    with process_group(choose_device(args.device)) as device:
        first = is_first_process()
        with exclusive(args.out) if first else nullcontext(), interrupts_between_steps() as check_interrupt:
            if first:
                for folder in (args.out / "scenes", *(args.out / "encoded").glob("*")):
                    remove_unfinished(folder)
            any_process(False)  # from here on the others write there, too
            store = _store(args, recipe, paths)
            watch = _Watch(args.out, recipe.family, 60 * args.sample_every, check_interrupt)
            on_device = None
            if args.on_device:
                source, scenes = store.source, {"mirrored": recipe.mirrored, "n_workers": args.workers}
                on_device = partial(DeviceScenes.made, source, recipe.n_scenes, device, **scenes)
            timing = {"minutes": args.minutes, "finish_in": args.finish_in}
            training = TrainingRun(
                args.out, recipe, store, device, args.base, **timing, on_device=on_device, callback=watch
            )
            try:
                workers = args.workers if first and not args.on_device else 0
                with store.made_ahead(recipe.n_scenes, workers), closing(watch):
                    trained = training.run()
                log.info("Trained: %s", trained)
            except OutOfTime as stopped:
                log.info("Time is up after %s. The same command goes on.", stopped)
            except KeyboardInterrupt:
                log.warning("The training so far is kept in %s; the same command goes on with it.", args.out)
                raise
    return 0


def recipe_of(args: argparse.Namespace) -> Recipe:
    """Return the recipe that the options mean, of procedural scenes."""
    if args.lora and args.base is None:
        raise ValueError(
            "Expected --lora together with --base, the checkpoint that it changes. Give --base FILE."
        )
    if args.base is not None:
        static = [] if args.static_steps else ["static_batch"]
        only = ["autoencoder_steps", "decoder_steps", "on_device", *static]
        refuse_idle(args, add_arguments, only, "with --base")
    for phase in ("static", "motion"):
        if getattr(args, f"{phase}_steps") == 0:
            refuse_idle(args, add_arguments, [f"{phase}_batch"], f"with --{phase}-steps 0")
    if args.data is not None:
        refuse_idle(args, add_arguments, ["scenes", "on_device"], "with --data")
    if args.finish_in is not None:
        steps = [f"{stage}_steps" for stage in ("autoencoder", "static", "motion", "decoder")]
        refuse_idle(args, add_arguments, steps, "with --finish-in")
    recipe = RECIPES[args.recipe]
    model = recipe.model if args.base is None else read_config(read_header(args.base))
    # What a base knows beyond our own worlds stays unsaid, and so does what data of the user's teach.
    model = replace(model, knows=recipe.model.knows if args.data is None and model.knows else "")
    if args.view_mixing:
        model = replace(model, unet=replace(model.unet, view_mixing=args.view_mixing))
    phases = tuple(phase for phase in _phases(args, recipe, model) if phase.loop.steps > 0)
    if not phases:
        raise ValueError("Expected steps to train; --static-steps and --motion-steps are both 0.")
    if args.lora and len(phases) > 1:
        raise ValueError("Expected one phase for a LoRA, which is one file; leave out --static-steps.")
    return replace(
        recipe,
        model=model,
        seed=args.seed,
        n_scenes=args.scenes or recipe.n_scenes,
        mirrored=args.mirror or recipe.mirrored,
        autoencoder=_with_given(recipe.autoencoder, steps=args.autoencoder_steps),
        decoder=_with_given(recipe.decoder, steps=args.decoder_steps),
        phases=phases,
        dtype=args.dtype or recipe.dtype,
        recomputes=args.checkpointing,
        lora_rank=args.lora or 0,
    )


def _phases(args: argparse.Namespace, recipe: Recipe, model: ModelConfig) -> tuple[Phase, Phase]:
    static, motion = recipe.phases
    if args.base is not None:
        rate = _LORA_RATE if args.lora else _FINE_TUNING_RATE
        static = replace(static, loop=LoopConfig(0, rate), draw=replace(static.draw, batch=1))
        motion = replace(
            motion, loop=LoopConfig(_FINE_TUNING_STEPS, rate), draw=replace(motion.draw, batch=1)
        )
        # What SVD's descendants were trained with; a small model from scratch learns its views at more noise.
        static, motion = (replace(p, draw=replace(p.draw, p_mean=1.0, p_std=1.6)) for p in (static, motion))
    motion = replace(motion, draw=replace(motion.draw, n_frames=model.n_frames))
    return (
        _with_options(static, args, args.static_steps, args.static_batch),
        _with_options(motion, args, args.motion_steps, args.motion_batch),
    )


def _with_options(phase: Phase, args: argparse.Namespace, steps: int | None, batch: int | None) -> Phase:
    draw = {name: getattr(args, name) for name in ("orbit_share", "mask_all", "mask_view", "p_mean", "p_std")}
    loop = _with_given(phase.loop, steps=steps, learning_rate=args.learning_rate)
    return replace(phase, loop=loop, draw=_with_given(phase.draw, **draw, batch=batch))


_Config = TypeVar("_Config", LoopConfig, DrawConfig)


def _with_given(config: _Config, **values: Any) -> _Config:
    """Return the settings with those values that are given."""
    return replace(config, **{name: value for name, value in values.items() if value is not None})


def _store(args: argparse.Namespace, recipe: Recipe, paths: tuple[Path, ...]) -> SceneStore:
    model, folder = recipe.model, args.out / "scenes"
    # The autoencoder reads pictures again and again; a diffusion model alone reads each scene once.
    how = {"keeps": args.base is None, "mirrored": recipe.mirrored}
    if paths:
        renders = FolderScenes(paths, model.size)
        return SceneStore(folder, renders, {"data": renders.identity(), "size": model.size}, **how)
    source = ProceduralScenes(
        args.seed,
        model.size,
        n_cameras=recipe.n_cameras * (1 if model.n_views <= _FEW_VIEWS else 2),
        n_frames=max(_FEWEST_FRAMES, model.n_frames),
        family=recipe.family,
    )
    return SceneStore(folder, source, {"procedural": asdict(source)}, **how)


@dataclass
class _Watch:
    """Shows how a training goes: progress per stage, its losses, and now and then what the model makes."""

    folder: Path
    family: str  # of the objects that sample pictures show
    sample_every_s: float
    check_interrupt: Callable[[], None]
    stage: str = ""
    shown: Progress | None = None  # of the stage
    plotted: float = field(default_factory=time.monotonic)
    sampled: float = field(default_factory=time.monotonic)

    def __call__(self, stage: str, progress: TrainingProgress, model: Model | None) -> None:
        if is_first_process():
            if self.shown is None or stage != self.stage:
                self.close()
                self.stage, self.shown = stage, Progress(stage, done=progress.step - 1)
            recent = progress.losses[-50:]
            note = f"loss {sum(recent) / len(recent):.4f}"
            self.shown(progress.step, progress.total, note=note)
            with suppress(KeyboardInterrupt):  # below, by all processes
                self._draw(stage, progress, model)
        # A process that stopped alone would leave the others waiting for its gradients.
        if any_process(self._is_interrupted()):
            raise KeyboardInterrupt

    def close(self) -> None:
        """End the bar of the stage, if there is one."""
        if self.shown is not None:
            self.shown.close()

    def _is_interrupted(self) -> bool:
        try:
            self.check_interrupt()
        except KeyboardInterrupt:
            return True
        return False

    def _draw(self, stage: str, progress: TrainingProgress, model: Model | None) -> None:
        now, at_end = time.monotonic(), progress.step == progress.total
        if at_end or now - self.plotted > _PLOT_EVERY_S:
            steps = list(enumerate(progress.losses, start=1))
            with if_possible("The plot of the losses"):
                write_picture(self.folder / f"{stage}_loss.png", loss_plot(steps, *_PLOT_SIZE))
            self.plotted = now
        if model is not None and (at_end or now - self.sampled > self.sample_every_s):
            with progress.averaged():
                # The last one is drawn to its end: no later run would come by here.
                callback = None if at_end else lambda *_: self.check_interrupt()
                sheet = sample_sheet(model, _SAMPLED_OBJECTS, callback, family=self.family)
            with if_possible("The sheet of samples"):
                write_picture(self.folder / f"{stage}_{progress.step:06d}.png", sheet)
            self.sampled = time.monotonic()
            self.sample_every_s = max(self.sample_every_s, _SAMPLE_SHARE * (self.sampled - now))


_SHOWN = 96  # pixels, about: the size at which small pictures are shown


def sample_sheet(
    model: Backend,
    objects: Sequence[int],
    callback: Callable[[int, int, object], None] | None = None,
    steps: int = 20,
    family: str = "things",
) -> Image.Image:
    """Return a picture of held-out objects: per object a row of true views, below it the model's.

    A row is all views of the first frame, the input's first, then of the last. ``callback`` is of
    `sample_views`.
    """
    config, rows = model.config, []
    cameras = Cameras.default(config.n_views)
    for number in objects:
        true = held_out_views(number, config.n_frames, cameras, config.size, family)
        made = sample_views(model, true.images[:, 0], true.cameras, steps=steps, seed=0, callback=callback)
        rows += [torch.cat([*grid.images[0], *grid.images[-1]], dim=1) for grid in (true, made)]
    sheet = Image.fromarray(to_bytes(torch.cat(rows)))
    scale = max(1, round(_SHOWN / config.size))
    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)


def add_curate_arguments(parser: argparse.ArgumentParser) -> None:
    options = Options(parser)
    text = "a folder of `sv4d2 views`, a D-NeRF style data set, or a folder of such folders, one per scene"
    options.value("places", user_path, text, metavar="VIEWS", nargs="+")
    options.output("folder for what is kept", "an earlier curation in DIR")
    options.value("--size", at_least(16, LARGEST_SIZE), "size of what is written (default: as it is)")
    options.flag("--dry-run", "write the report only")
    limits = options.group("limits, beyond which a clip is rejected")
    for limit in fields(CurationLimits):
        kind = of_setting(CurationLimits, limit.name)
        text = limit.metadata["help"].replace("%", "%%")
        limits.value(f"--{limit.name.replace('_', '-')}", kind, text, limit.default, "X")


def run_curate(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    refuse_odd(args.size or 0)
    limits = CurationLimits(**{limit.name: getattr(args, limit.name) for limit in fields(CurationLimits)})
    if args.dry_run:
        refuse_idle(args, add_curate_arguments, ["size"], "with --dry-run")
    scenes = _scenes(args.places)
    refuse_overlap(args.out, *args.places, *scenes.values())
    with exclusive(args.out), Progress("curating", "clip") as progress:
        judged = count(1)
        records = curate(
            scenes,
            args.out,
            limits,
            size=args.size,
            dry_run=args.dry_run,
            overwrite=args.overwrite,
            run=made_with(args),
            on_scene=lambda _record: progress(next(judged), len(scenes)),
        )
    for record in records:
        if not record.verdict.kept:
            log.info("%s rejected: %s", record.name, "; ".join(record.verdict.reasons))
    log.info(
        "%d of %d clips %s in %.0f s. Look at %s",
        sum(record.verdict.kept for record in records),
        len(records),
        "would be kept" if args.dry_run else "kept",
        time.perf_counter() - began,
        args.out / PAGE_FILE,
    )
    return 0


def _scenes(places: list[Path]) -> dict[str, Path]:
    """Return the place of every scene by its name; where names repeat, that of the place goes before."""
    found = [(place, name, scene) for place in places for name, scene in find_scenes(place).items()]
    names = [name for _, name, _ in found]
    scenes: dict[str, Path] = {}
    for place, name, scene in found:
        unique = name if names.count(name) == 1 else f"{place.resolve().name}_{name}"
        if unique in scenes:
            raise ValueError(
                f"Expected scenes with different names; {scenes[unique]} and {scene} would both be written "
                f"to {unique}. Rename one of them."
            )
        scenes[unique] = scene
    return scenes
