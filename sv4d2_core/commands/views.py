"""`sv4d2 views`: a clip in, a folder of novel views out."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..cameras import Cameras
from ..data.views_folder import write_views
from ..diffusion.config import ModelConfig
from ..diffusion.layout import read_config
from ..diffusion.memory import MemoryPlan, load_within, plan_for_free_memory, plan_memory
from ..diffusion.model import Model
from ..diffusion.novel_views import check_size, sample_views
from ..diffusion.safetensors_stream import read_header
from ..diffusion.speed import check_compiler, check_eight_bits, compile_blocks
from ..diffusion.window_store import WindowFolder, tensor_fingerprint
from ..files import file_fingerprint
from ..video.prepare import PreparedClip, prepare_clip
from ..video.read import load_clip
from ..views import ViewGrid
from .common import (
    choose_device,
    choose_dtype,
    exclusive,
    is_complete,
    load_reference_views,
    options_of,
    refuse_inputs_inside,
    versions,
)
from .peak_memory import PeakMemory
from .views_arguments import cameras_of, check_sampling, guidance_range_of, solver_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Everything about a run that is known before the weights are loaded.

    Args:
        settings: what determines the sampled latents, JSON values; a run continues only with equal ones.
        output: what else determines the written files, JSON values.
    """

    args: argparse.Namespace
    config: ModelConfig
    cameras: Cameras
    device: torch.device
    dtype: torch.dtype
    clip: PreparedClip
    references: Tensor | None
    plan: MemoryPlan | None
    settings: dict
    output: dict


def check_options(args: argparse.Namespace) -> tuple[ModelConfig, Cameras, int]:
    """Return the model's sizes, the cameras and the image size, pixels, that the options ask for.

    Raises:
        ValueError, OSError: a file that is no checkpoint, options that do not fit it or each other.
    """
    config = read_config(read_header(args.checkpoint), args.variant)
    cameras = cameras_of(args, config)
    size = args.size or config.size
    check_size(size, config)
    check_sampling(args, config)
    return config, cameras, size


def load_model(job: Job) -> Model:
    """Return the model of a job, made to work within --memory-gb, else within what is free now."""
    size = job.settings["size"]
    eight_bits = job.args.fp8_weights
    plan = job.plan or plan_for_free_memory(job.config, job.dtype, size, job.device, eight_bits)
    if job.plan is not None and job.device.type == "cuda":
        total = torch.cuda.get_device_properties(job.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, job.args.memory_gb * 2**30 / total), job.device)
    model = load_within(job.args.checkpoint, job.args.variant, job.dtype, job.device, plan, eight_bits)
    if job.args.compile:
        compile_blocks(model.unet)
    return model


def run(args: argparse.Namespace, load: Callable[[Job], Model] = load_model) -> int:
    """Run the job and return the exit code.

    Args:
        args: the options of the command.
        load: gives the model of a job; a caller with many jobs can keep it.

    Raises:
        ValueError, OSError: bad input, a folder that holds other results, a full or read-only disk.
    """
    began = time.perf_counter()
    job = _prepare(args)
    with exclusive(args.out):
        if is_complete(args.out, job.settings, job.output, args.overwrite):
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
    if not job.config.trained:
        log.warning("UNTRAINED WEIGHTS: the novel views are noise. Give a trained --checkpoint.")
    log.info("Done in %.0f s. Look at %s", time.perf_counter() - began, args.out / "contact_sheet.png")
    return 0


def _make(job: Job, load: Callable[[Job], Model], store: WindowFolder, prepare_s: float) -> None:
    """Load the model, sample what is missing and write the folder."""
    with PeakMemory(job.device) as memory:
        loading = time.perf_counter()
        model = load(job)
        resumed = store.finished()
        sampling = time.perf_counter()
        grid = _sample(job, model, store)
        finished = time.perf_counter()
    args = job.args
    crop = {
        **job.clip.crop.to_json(),
        "source_frames": [args.start + args.every * t for t in range(len(job.clip.images))],
    }
    report = {
        "settings": job.settings,
        "output": job.output,
        "options": options_of(args),
        "versions": versions(),
        "seconds": {
            "prepare": round(prepare_s, 2),
            "load": round(sampling - loading, 2),
            "sample": round(finished - sampling, 2),
        },
        "resumed_windows": resumed,
        "peak_memory_gb": memory.gigabytes(),
        "clip_report": list(job.clip.report),
    }
    # Whose the present entries are has been settled before the work began.
    write_views(args.out, grid, crop=crop, run=report, save_latents=args.save_latents, overwrite=True)


def _prepare(args: argparse.Namespace) -> Job:
    """Read and check everything but the weights."""
    config, cameras, size = check_options(args)
    if size < config.size:
        log.warning(
            "%d pixels are fewer than the %d that this model was trained at: expect less detail and worse "
            "shapes. Where memory is what you want to save, --memory-gb does it without that.",
            size,
            config.size,
        )
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    if args.compile:
        check_compiler(device)
    if args.fp8_weights:
        check_eight_bits(device)
    plan = None
    if args.memory_gb is not None:
        plan = plan_memory(config, dtype, size, args.memory_gb, device, args.fp8_weights)
    given = (args.input, args.mask, args.reference_views, args.checkpoint)
    refuse_inputs_inside(args.out, [Path(path) for path in given if path is not None])
    clip = load_clip(
        args.input, frames=args.frames, start=args.start, every=args.every, fps=args.fps, mask=args.mask
    )
    prepared = prepare_clip(clip, size=size, centering=args.centering)
    for line in prepared.report:
        log.info("%s", line)
    references = None
    if args.reference_views is not None:
        references = load_reference_views(args.reference_views, cameras.n_views, size)
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
        "guidance": [config.guidance, *guidance_range_of(args, config)],
        "reference_views": None if references is None else tensor_fingerprint(references),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        # Folders of runs without a shortcut stay what they were before there were any.
        **solver_of(args).changed(),
        **({"fp8_weights": True} if args.fp8_weights else {}),
    }
    output = {
        "fps": prepared.fps,
        "save_latents": args.save_latents,
        "input_elevation_deg": args.input_elevation,
    }
    return Job(args, config, cameras, device, dtype, prepared, references, plan, settings, output)


def _sample(job: Job, model: Model, store: WindowFolder) -> ViewGrid:
    with tqdm(desc="sampling", unit="step", dynamic_ncols=True) as bar:

        def progress(step: int, total: int, preview: Tensor | None) -> None:
            bar.total = total
            if preview is None:
                # A window of an earlier run: no work of this one, so the time left must not count it.
                bar.initial = bar.n = step
            bar.update(step - bar.n)

        return sample_views(
            model,
            job.clip,
            job.cameras,
            steps=job.args.steps,
            seed=job.args.seed,
            cfg=guidance_range_of(job.args, job.config),
            reference_views=job.references,
            **vars(solver_of(job.args)),
            store=store,
            callback=progress,
        )
