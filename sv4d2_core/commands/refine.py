"""`sv4d2 refine`: views in, a 4D scene out that can be seen from anywhere at any time."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..data.reader import crop_of, read_any_views, read_normals
from ..diffusion.layout import read_config
from ..diffusion.memory import plan_memory
from ..diffusion.novel_views import check_cameras, checked_clip, resynthesizer
from ..diffusion.safetensors_stream import read_header
from ..export.report import fit_report
from ..files import exclusive_file, file_fingerprint, if_possible, remove
from ..metrics.image import LPIPS
from ..scene.config import RefineConfig
from ..scene.fit import FitProgress, StepInterrupted
from ..scene.refine import refine_scene
from ..scene.scene import centred
from ..scene.store import FitState
from ..scene.targets import Resynthesize
from ..video.pictures import write_picture
from ..views import ViewGrid
from .common import (
    DTYPES,
    GIGABYTES,
    INPUT_ELEVATION,
    LARGEST_SIZE,
    MINUTES,
    SEED,
    Options,
    Progress,
    at_least,
    choose_device,
    choose_dtype,
    interrupts_between_steps,
    load_planned,
    of_setting,
    refuse_idle,
    refuse_overlap,
    user_path,
)

log = logging.getLogger(__name__)

_STEPS = RefineConfig().stage_one_steps
_SUFFIX = ".safetensors"
_STATE, _PICTURE = ".fit", ".fit.png"  # beside the scene: of an interrupted fit, of a finished one
_SAVE_EVERY_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options = Options(parser)
    options.value("views", str, "a folder of `sv4d2 views`, or a D-NeRF style data set", metavar="VIEWS")
    options.output("SCENE.safetensors to write", "FILE", "FILE")
    options.choice("--backend", ("dynerf", "gaussians"), "dynerf", "what the scene is made of")
    options.choice(
        "--field",
        ("planes", "canonical"),
        "planes",
        "of dynerf: planes over space and time, or a still field that is deformed",
    )
    options.input_view()
    options.value("--size", at_least(16, LARGEST_SIZE), "fit at N x N pixels (default: as given)")
    budget = Options(parser.add_mutually_exclusive_group())
    budget.value("--steps", at_least(4), f"steps of all stages (default {_STEPS})")
    budget.value("--minutes", MINUTES, "as many steps as this machine does in N minutes")
    options.flag("--exact-views", "trust all views alike, as recorded or rendered ones deserve")
    options.value("--seed", SEED, "seed of the fit", 0)
    text = "absolute elevation of the input camera (default: the views', where it is not 0, else estimated)"
    options.value("--input-elevation", INPUT_ELEVATION, text, metavar="DEG")
    options.flag("--centred", "leave the object in the middle, also where the crop of the views followed it")
    text = "an estimator's normals of all views, view_XX/TTTTT.png: x right, y up, z towards the camera"
    options.value("--normals", user_path, text, metavar="DIR")
    options.value("--lpips", user_path, "LPIPS weights, for a perceptual loss", metavar="FILE")

    second = options.group("the second stage (views made anew from the scene, then fitted again)")
    text = "default: 2 with --checkpoint, else 1; 2 without weighs the given views by visibility"
    second.choice("--stages", ("1", "2"), help=text)
    second.model(required=False)
    text = f"share of the denoising (default {RefineConfig().strength:g})"
    second.value("--strength", of_setting(RefineConfig, "strength"), text, metavar="X")
    second.value("--sampling-steps", at_least(1), "of the full schedule", 50)
    second.value("--rounds", at_least(1, 100), "how often views are made anew and fitted", 2)

    machine = options.group("the machine")
    machine.device()
    machine.choice("--dtype", ("auto", *DTYPES), "auto")
    text = "work within this much memory: the model of the second stage, and the rays of dynerf"
    machine.value("--memory-gb", GIGABYTES, text)
    machine.flag("--resume", "continue an interrupted fit of the same settings")


@dataclass
class _Watch:
    """Shows a fit's progress and saves its state every minute."""

    shown: Progress
    state_file: Path
    check_interrupt: Callable[[], None]
    latest: FitProgress | None = None
    saved: float = field(default_factory=time.monotonic)

    def __call__(self, step: int, total: int, progress: FitProgress) -> None:
        self.shown(step, total, note=f"{progress.phase}, loss {progress.loss:.4f}")
        self.latest = progress
        if time.monotonic() - self.saved > _SAVE_EVERY_S:
            self.saved = time.monotonic()
            with if_possible(f"Step {step} of the fit"):
                self.save()
        self.check_interrupt()

    def save(self) -> None:
        if self.latest is not None:
            self.latest.state().save(self.state_file)


def run(args: argparse.Namespace) -> int:
    refuse_overlap(args.out, args.views, args.normals, args.lpips, args.checkpoint)
    with exclusive_file(args.out, args.out.with_suffix(_STATE), args.out.with_suffix(_PICTURE)):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    _check_place(args.out, args.overwrite, args.resume)
    config = _settings(args)
    device = choose_device(args.device)
    views = read_any_views(args.views, number=args.input_view)
    crop = None if args.centred else crop_of(args.views, args.input_view)
    normals = None if args.normals is None else read_normals(args.normals, views)
    perceptual = None if args.lpips is None else LPIPS(args.lpips, device)
    state_file = args.out.with_suffix(_STATE)
    state = _state(state_file) if args.resume else None
    shown = Progress("fitting", done=state.step if state else 0)
    with shown, interrupts_between_steps() as check_interrupt:
        watch = _Watch(shown, state_file, check_interrupt)
        try:
            scene = refine_scene(
                views,
                config,
                size=args.size,
                input_elevation_deg=args.input_elevation,
                crop=crop,
                resynthesize=_resynthesize(args, views, device, check_interrupt),
                perceptual=perceptual,
                normals=normals,
                minutes=args.minutes,
                callback=watch,
                device=device,
                state=state,
                identity=_identity(args, device),
            )
        except KeyboardInterrupt:
            with suppress(StepInterrupted):  # by a second Ctrl-C: the state saved before stays
                watch.save()
            if state_file.exists():
                log.warning("The fit so far is kept in %s; --resume goes on with it.", state_file)
            raise
        scene.save(args.out)
        remove(state_file)
    log.info("Fitted in %.0f s: %s", time.perf_counter() - began, args.out)
    if watch.latest is not None:
        place = args.out.with_suffix(_PICTURE)
        picture, residual = fit_report(centred(scene), watch.latest.views, watch.latest.losses)
        log.info("It leaves %.4f of the views unexplained.", residual)
        with if_possible("The picture of the fit"):
            write_picture(place, picture)
            log.info("Look at %s", place)
    return 0


def _check_place(path: Path, overwrite: bool, resume: bool) -> None:
    if path.suffix.lower() != _SUFFIX:
        raise ValueError(f"Expected --out with a name that ends in {_SUFFIX}; got {path}. Add it.")
    beside = [path.with_suffix(_PICTURE), *([] if resume else [path.with_suffix(_STATE)])]
    found = next((place for place in (path, *beside) if place.exists()), None)
    if found is not None and not overwrite:
        goes_on = ", or go on with it (--resume)" if found.suffix == _STATE else ""
        raise FileExistsError(
            f"{found} exists already. Choose another --out, or replace it (--overwrite){goes_on}."
        )


def _settings(args: argparse.Namespace) -> RefineConfig:
    """Return the settings. Raises ValueError for options that do not go together."""
    if args.stages == "1" and args.checkpoint is not None:
        raise ValueError("--checkpoint is for the second stage; got --stages 1. Leave one of them out.")
    if args.backend == "gaussians" and (args.field != "planes" or args.lpips or args.normals):
        raise ValueError("--field, --lpips and --normals are for --backend dynerf. Leave them out.")
    if args.checkpoint is None:
        of_model = ["variant", "strength", "sampling_steps", "dtype"]
        of_dynerf = ["memory_gb"] if args.backend == "gaussians" else []
        refuse_idle(args, add_arguments, of_model + of_dynerf, "without --checkpoint")
        if args.stages != "2":
            refuse_idle(args, add_arguments, ["rounds"], "without --checkpoint or --stages 2")
    config = RefineConfig(
        backend=args.backend,
        field=args.field,
        seed=args.seed,
        rounds=args.rounds,
        memory_gb=args.memory_gb or 0.0,
        weight_by_trust=not args.exact_views,
    )
    if args.strength is not None:
        config = replace(config, strength=args.strength)
    return config.with_steps(args.steps or _STEPS, int(args.stages or 1 + bool(args.checkpoint)))


def _state(path: Path) -> FitState:
    if not path.is_file():
        raise FileNotFoundError(f"Expected an interrupted fit at {path}; there is none. Leave --resume out.")
    state = FitState.load(path)
    log.info("Continuing after step %d.", state.step)
    return state


def _identity(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return JSON values that stay the same while the models give the same numbers."""
    identity: dict[str, Any] = {}
    if args.lpips is not None:
        identity["lpips"] = file_fingerprint(args.lpips)
    if args.checkpoint is not None:
        identity |= {
            "checkpoint": file_fingerprint(args.checkpoint),
            "variant": read_config(read_header(args.checkpoint), args.variant).variant,
            "sampling_steps": args.sampling_steps,
            "dtype": str(choose_dtype(args.dtype, device)),
        }
    return identity


def _resynthesize(
    args: argparse.Namespace, views: ViewGrid, device: torch.device, check_interrupt: Callable[[], None]
) -> Resynthesize | None:
    """Return what makes views anew with --checkpoint, whose weights are loaded when they are needed."""
    if args.checkpoint is None:
        return None
    size = views.images.shape[2]
    config = read_config(read_header(args.checkpoint), args.variant)
    checked_clip(views.images[:, 0], config)
    check_cameras(views.cameras, config)
    dtype = choose_dtype(args.dtype, device)
    if args.memory_gb is not None:
        plan_memory(config, dtype, size, args.memory_gb, device)
    if config.caution:
        log.warning("The second stage: %s", config.caution)
    load = partial(load_planned, args, config, dtype, size, device, beside_fit=True)

    def resynthesize(rendered: ViewGrid, strength: float) -> ViewGrid:
        with Progress("making views anew") as shown:

            def progress(step: int, total: int, _preview: object) -> None:
                shown(step, total)
                check_interrupt()

            # A model is not kept for the next round: the fit has its memory meanwhile.
            make = resynthesizer(load(), views, steps=args.sampling_steps, seed=args.seed, callback=progress)
            return make(rendered, strength)

    return resynthesize
