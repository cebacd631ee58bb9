"""`sv4d2 views`: a clip in, a folder of novel views out."""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..cameras import Cameras
from ..data.views_folder import entries_of, missing_files, read_run, replaceable_views, write_views
from ..diffusion.config import ModelConfig
from ..diffusion.layout import read_config
from ..diffusion.model import Model
from ..diffusion.novel_views import WINDOWS, check_cameras, check_size, sample_views
from ..diffusion.safetensors_stream import read_header
from ..diffusion.sampling import SAMPLERS, Solver, guidance_table
from ..diffusion.speed import check_compiler, check_eight_bits, compile_blocks
from ..diffusion.window_store import WindowFolder, changed_settings, tensor_fingerprint
from ..files import exclusive, file_fingerprint
from ..messages import cut, listed
from ..video.crop import CENTERINGS
from ..video.prepare import PreparedClip, prepare_clip
from ..video.read import ALPHAS, load_clip
from ..views import resize_images
from .common import (
    DTYPES,
    ELEVATION,
    FPS,
    GIGABYTES,
    INPUT_ELEVATION,
    LARGEST_SIZE,
    SEED,
    Options,
    Progress,
    Within,
    at_least,
    choose_device,
    choose_dtype,
    clip_place,
    load_planned,
    made_with,
    refuse_idle,
    refuse_overlap,
    user_path,
)

log = logging.getLogger(__name__)

_GUIDANCE = Within(0, 100)
_RIGS = ("official", "4d")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options = Options(parser)
    text = "video, GIF, image, folder of images, a quoted glob, or sample for the clip of the pack"
    options.value("input", clip_place, text, metavar="INPUT")
    options.model(required=True)
    options.output("folder for the results", "results of other settings in DIR")

    clip = options.group("the clip")
    clip.value("--frames", at_least(1), "frames to use", 21)
    clip.value("--start", at_least(0), "first frame", 0)
    clip.value("--every", at_least(1), "use every Nth frame", 1)
    text = "frames per second of the results (default: the clip's); a video is resampled to it by time"
    clip.value("--fps", FPS, text)
    clip.value("--mask", str, "masks of the object, white on black, read like INPUT", metavar="PATH")
    text = "premultiplied: its colours are darkened by alpha; auto: where no colour exceeds its alpha"
    clip.choice("--alpha", ALPHAS, "auto", text)
    clip.value("--size", at_least(1, LARGEST_SIZE), "image size (default: the model's, 576)")
    clip.choice(
        "--centering",
        CENTERINGS,
        "global",
        "global: one crop around the frame centre; per_frame, smooth: follow the object; none: the "
        "whole frame, for clips that are prepared already",
    )

    cameras = options.group("the cameras (degrees relative to the input view)")
    cameras.cameras()
    text = "official: the orbit that the model was made for; 4d: eight views for a scene, half from above"
    cameras.choice("--rig", _RIGS, "official", text)
    cameras.value("--ring-elevation", ELEVATION, "all novel views at this elevation", metavar="DEG")
    text = "absolute elevation of the input camera, for the camera files only"
    cameras.value("--input-elevation", INPUT_ELEVATION, text, 0.0, "DEG")

    sampling = options.group("sampling")
    sampling.value("--steps", at_least(1), "denoising steps", 50)
    sampling.value("--seed", SEED, "seed of the noise", 23)
    sampling.value("--cfg-min", _GUIDANCE, "guidance where it is weakest", metavar="X")
    sampling.value("--cfg-max", _GUIDANCE, "guidance where it is strongest", metavar="X")
    text = "images of frame 0, one per novel camera, in order"
    sampling.value("--reference-views", user_path, text, metavar="DIR")

    text = "held: a window keeps the frames that the one before made; official: it makes them anew"
    sampling.choice("--windows", WINDOWS, "official", text)

    faster = options.group("faster or smaller, for other numbers (off by default)")
    faster.choice("--sampler", SAMPLERS, "euler", "euler: official; dpmpp_2m: better with few steps")
    text = "guidance only at these noise levels (sigma), half the work at the others"
    faster.numbers("--guidance-interval", Within(0, 700), text, ("LOW", "HIGH"), 2)
    text = "reuse the network's output while it should change by less than this share, such as 0.1"
    faster.value("--step-cache", Within(0, 1), text, 0.0, "X")
    faster.flag("--fp8-weights", "keep the UNet's weights in 8 bits, half the memory of half precision")

    machine = options.group("the machine")
    machine.device()
    machine.choice("--dtype", ("auto", *DTYPES), "auto")
    machine.value("--memory-gb", GIGABYTES, "work within this much memory")
    machine.flag("--compile", "compile the network in the first step (minutes); no gain on a CPU")
    machine.flag("--save-latents", "also write the sampled latents")


@dataclass(frozen=True)
class Job:
    """Everything about a run that is known before the weights are loaded."""

    args: argparse.Namespace
    config: ModelConfig
    cameras: Cameras
    device: torch.device
    dtype: torch.dtype
    clip: PreparedClip
    references: Tensor | None
    settings: dict  # what determines the sampled latents, JSON values; a run continues only with equal ones
    output: dict  # what else determines the written files, JSON values


def check_options(args: argparse.Namespace) -> tuple[ModelConfig, Cameras, int]:
    """Return the model's sizes, the cameras and the image size, pixels, that the options ask for."""
    config = read_config(read_header(args.checkpoint), args.variant)
    cameras = _cameras(args, config)
    size = args.size or config.size
    check_size(size, config)
    guidance_table(config.guidance, config.n_frames, config.n_views, *_guidance_range(args, config))
    _solver(args)
    if args.reference_views is not None and not os.path.exists(args.reference_views):
        raise FileNotFoundError(
            f"Expected --reference-views; there is nothing at {cut(args.reference_views)}."
        )
    return config, cameras, size


def load_model(job: Job) -> Model:
    """Return the job's model; ValueError, before the weights are read, where the machine lacks something."""
    args = job.args
    if args.compile:
        check_compiler(job.device)
    if args.fp8_weights:
        check_eight_bits(job.device)
    model = load_planned(args, job.config, job.dtype, job.settings["size"], job.device, args.fp8_weights)
    if args.compile:
        compile_blocks(model.unet)
    return model


def run(args: argparse.Namespace, load: Callable[[Job], Model] = load_model) -> int:
    """Run the job and return the exit code; ``load`` gives its model, which a caller with many can keep."""
    began = time.perf_counter()
    job = _prepare(args)
    with exclusive(args.out):
        if _is_complete(job):
            log.info("%s is already complete with these settings.", args.out)
            return 0
        store = WindowFolder(args.out / ".windows", job.settings, discard=args.overwrite)
        try:
            _make(job, load, store, time.perf_counter() - began)
        except KeyboardInterrupt:
            log.warning(
                "Finished windows are kept (%d so far); the same command continues.", store.finished()
            )
            raise
    log.info("Done in %.0f s. Look at %s", time.perf_counter() - began, args.out / "contact_sheet.png")
    return 0


def _prepare(args: argparse.Namespace) -> Job:
    """Read and check everything but the weights."""
    config, cameras, size = check_options(args)
    refuse_overlap(args.out, args.input, args.mask, args.reference_views, args.checkpoint)
    if config.caution:
        log.warning("%s", config.caution)
    if size < config.size:
        log.warning(
            "%d pixels are fewer than the %d that this model was trained at: expect less detail and worse "
            "shapes. Where memory is what you want to save, --memory-gb does it without that.",
            size,
            config.size,
        )
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    options = {name: getattr(args, name) for name in ("frames", "start", "every", "fps", "mask", "alpha")}
    clip = load_clip(args.input, **options)
    prepared = prepare_clip(clip, size=size, centering=args.centering)
    for line in prepared.report:
        log.info("%s", line)
    place = args.reference_views
    references = None if place is None else _reference_views(place, cameras.n_views, size)
    settings = {
        "checkpoint": file_fingerprint(args.checkpoint),
        "variant": config.variant,
        "clip": tensor_fingerprint(prepared.images),
        "frames": len(prepared.images),
        "size": size,
        "centering": args.centering,
        "azimuths_deg": list(cameras.azimuths_deg),
        "elevations_deg": list(cameras.elevations_deg),
        "steps": args.steps,
        "seed": args.seed,
        "guidance": [config.guidance, *_guidance_range(args, config)],
        "reference_views": None if references is None else tensor_fingerprint(references),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        # Folders of runs without these options stay what they were before there were any.
        **({} if args.windows == "official" else {"windows": args.windows}),
        **_solver(args).changed(),
        **({"fp8_weights": True} if args.fp8_weights else {}),
    }
    output = {
        "fps": prepared.fps,
        "save_latents": args.save_latents,
        "input_elevation_deg": args.input_elevation,
        # The views of a clip in colour on white are the same whatever its masks, which are written too.
        **({} if args.mask is None else {"masks": tensor_fingerprint(prepared.masks)}),
    }
    return Job(args, config, cameras, device, dtype, prepared, references, settings, output)


def _make(job: Job, load: Callable[[Job], Model], store: WindowFolder, prepare_s: float) -> None:
    """Load the model, sample what is missing and write the folder."""
    args, loading = job.args, time.perf_counter()
    model = load(job)
    resumed = store.finished()
    sampling = time.perf_counter()
    with Progress("sampling") as shown:

        def progress(step: int, total: int, preview: Tensor | None) -> None:
            if preview is None:
                shown.skip(step)  # a window of an earlier run
            shown(step, total)

        grid = sample_views(
            model,
            job.clip,
            job.cameras,
            steps=args.steps,
            seed=args.seed,
            cfg=_guidance_range(args, job.config),
            reference_views=job.references,
            windows=args.windows,
            **vars(_solver(args)),
            store=store,
            callback=progress,
        )
    finished = time.perf_counter()
    report = {
        "settings": job.settings,
        "output": job.output,
        **made_with(args),
        "seconds": {
            "prepare": round(prepare_s, 2),
            "load": round(sampling - loading, 2),
            "sample": round(finished - sampling, 2),
        },
        "resumed_windows": resumed,
        "clip_report": list(job.clip.report),
    }
    write_views(
        args.out,
        grid,
        crop={**job.clip.crop.to_json(), "source_frames": list(job.clip.source_frames)},
        run=report,
        save_latents=args.save_latents,
        overwrite=True,  # whose the present entries are was settled before the work
    )


def _cameras(args: argparse.Namespace, config: ModelConfig) -> Cameras:
    if args.rig == "4d":
        refuse_idle(args, add_arguments, ["azimuths", "elevations", "ring_elevation"], "with --rig 4d")
        cameras = replace(Cameras.for_scenes(), input_elevation_deg=args.input_elevation)
        check_cameras(cameras, config)
        return cameras
    if args.ring_elevation is None:
        return Cameras.from_lists(config.n_views, args.azimuths, args.elevations, args.input_elevation)
    if args.elevations is not None:
        raise ValueError(
            "Give either --elevations (one per view) or --ring-elevation (one for all), not both."
        )
    level = Cameras.from_lists(config.n_views, args.azimuths, None, args.input_elevation)
    return replace(level, elevations_deg=(0.0, *[args.ring_elevation] * level.n_views))


def _guidance_range(args: argparse.Namespace, config: ModelConfig) -> tuple[float, float]:
    """Return the guidance range, the variant's own where an option is not given."""
    low = config.cfg_min if args.cfg_min is None else args.cfg_min
    high = config.cfg_max if args.cfg_max is None else args.cfg_max
    return low, high


def _solver(args: argparse.Namespace) -> Solver:
    interval = None if args.guidance_interval is None else tuple(args.guidance_interval)
    return Solver(args.sampler, interval, args.step_cache)


def _reference_views(folder: Path, n_views: int, size: int) -> Tensor:
    """Return reference views [V, size, size, 3] in 0..1 on white, one square image per novel camera."""
    pictures = torch.from_numpy(load_clip(folder, frames=None).frames).float() / 255
    count, height, width, channels = pictures.shape
    if count != n_views or height != width:
        raise ValueError(
            f"Expected {n_views} square reference views in {folder}, one per novel camera (the input view is "
            f"not among them); got {count} of {width} x {height}."
        )
    if channels == 4:
        alpha = pictures[..., 3:]
        pictures = pictures[..., :3] * alpha + (1 - alpha)
    return resize_images(pictures[..., :3].contiguous(), size, size)


def _is_complete(job: Job) -> bool:
    """Return whether the folder holds all results of exactly the job's settings.

    Raises ValueError where it holds results of other settings, which may not be replaced.
    """
    folder = job.args.out
    replaceable_views(folder, overwrite=True)
    run = read_run(folder)
    if not entries_of(run):
        return False
    parts = [part for name in ("settings", "output") if isinstance(part := run.get(name), dict)]
    known = {key: value for part in parts for key, value in part.items()}
    changed = changed_settings(known, {**job.settings, **job.output})
    if changed and not job.args.overwrite:
        resampled = "" if set(changed) - job.output.keys() else " Nothing would be sampled again."
        raise ValueError(
            f"{folder} holds results with other settings ({listed(changed)}). Choose another folder, or "
            f"replace them (--overwrite).{resampled}"
        )
    return not changed and not missing_files(folder)
