"""`sv4d2 views`: a clip in, a folder of novel views out."""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..cameras import Cameras
from ..diffusion.checkpoint import load_checkpoint
from ..diffusion.config import ModelConfig
from ..diffusion.layout import read_config, read_header
from ..diffusion.memory import apply_plan, plan_memory, weight_bytes
from ..diffusion.model import Model
from ..diffusion.novel_views import sample_views
from ..diffusion.window_store import SettingsDiffer, WindowFolder
from ..export.folder import RUN_FILE, existing_views, write_views
from ..video.crop import PreparedClip, prepare_clip
from ..video.frames import load_clip
from ..views import ViewGrid
from .machine import choose_device, choose_dtype
from .peak_memory import PeakMemory
from .provenance import file_fingerprint, tensor_fingerprint, versions
from .references import load_reference_views
from .views_arguments import cameras_of, guidance_range_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
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
    settings: dict
    output: dict


def run(args: argparse.Namespace) -> int:
    """Run the job and return the exit code.

    Raises:
        ValueError, OSError: bad input, a folder that holds other results, a full or read-only disk.
    """
    began = time.perf_counter()
    job = _prepare(args)
    if _is_complete(job):
        log.info("%s is already complete with these settings.", args.out)
        return 0
    if (present := existing_views(args.out)) and not args.overwrite:
        raise SettingsDiffer(
            f"{args.out / present[0]} exists already and is not from a run with these settings. Choose "
            f"another folder or overwrite it (--overwrite)."
        )
    _check_writable(args.out)
    with PeakMemory(job.device) as memory:
        loading = time.perf_counter()
        model = _load(job)
        store = WindowFolder(args.out / ".windows", job.settings, discard=args.overwrite)
        resumed = store.finished()
        sampling = time.perf_counter()
        grid = _sample(job, model, store)
        finished = time.perf_counter()
    report = {
        "settings": job.settings,
        "output": job.output,
        "input": str(args.input),
        "checkpoint": args.checkpoint.name,
        "versions": versions(),
        "seconds": {
            "prepare": round(loading - began, 2),
            "load": round(sampling - loading, 2),
            "sample": round(finished - sampling, 2),
        },
        "resumed_windows": resumed,
        "peak_memory_gb": memory.gigabytes(),
        "clip_report": list(job.clip.report),
    }
    write_views(
        args.out,
        grid,
        crop=job.clip.crop.to_json(),
        run=report,
        save_latents=args.save_latents,
        overwrite=args.overwrite,
    )
    if not job.config.trained:
        log.warning(
            "UNTRAINED WEIGHTS: the novel views are noise. Give a trained --checkpoint for real ones."
        )
    log.info("Done in %.0f s. Look at %s", time.perf_counter() - began, args.out / "contact_sheet.png")
    return 0


def _prepare(args: argparse.Namespace) -> _Job:
    """Read and check everything but the weights."""
    config = read_config(read_header(args.checkpoint), args.variant)
    cameras = cameras_of(args, config)
    size = args.size or config.size
    _check_size(size, config)
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
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
    }
    output = {
        "fps": prepared.fps,
        "save_latents": args.save_latents,
        "input_elevation_deg": args.input_elevation,
    }
    return _Job(args, config, cameras, device, dtype, prepared, references, settings, output)


def _load(job: _Job) -> Model:
    model = load_checkpoint(job.args.checkpoint, job.args.variant, job.dtype, job.device)
    if job.args.memory_gb is not None:
        size = job.settings["size"]
        plan = plan_memory(job.config, weight_bytes(model), job.dtype.itemsize, size, job.args.memory_gb)
        apply_plan(model, plan)
        log.info("Memory plan: at most about %.1f GiB.", plan.estimated_bytes / 2**30)
    return model


def _sample(job: _Job, model: Model, store: WindowFolder) -> ViewGrid:
    with tqdm(desc="sampling", unit="step", dynamic_ncols=True) as bar:

        def progress(step: int, total: int, _preview: Tensor | None) -> None:
            bar.total = total
            bar.update(step - bar.n)

        return sample_views(
            model,
            job.clip,
            job.cameras,
            steps=job.args.steps,
            seed=job.args.seed,
            cfg=guidance_range_of(job.args, job.config),
            reference_views=job.references,
            store=store,
            callback=progress,
        )


def _check_size(size: int, config: ModelConfig) -> None:
    if size % config.size_multiple:
        lower = size // config.size_multiple * config.size_multiple
        raise ValueError(
            f"Expected --size divisible by {config.size_multiple}; got {size}. The nearest sizes are "
            f"{' and '.join(str(x) for x in (lower, lower + config.size_multiple) if x)}."
        )


def _check_writable(folder: Path) -> None:
    """Refuse an output folder that cannot be written, before the long work begins."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"Expected a writable output folder; {existing} is not. Choose another --out.")


def _is_complete(job: _Job) -> bool:
    """Return whether the output folder holds the finished results of exactly this job."""
    try:
        run = json.loads((job.args.out / RUN_FILE).read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return run.get("settings") == job.settings and run.get("output") == job.output
