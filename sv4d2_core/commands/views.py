"""`sv4d2 views`: a clip in, a folder of novel views out."""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..cameras import Cameras
from ..diffusion.checkpoint import load_checkpoint
from ..diffusion.config import ModelConfig
from ..diffusion.layout import read_config, read_header
from ..diffusion.memory import apply_plan, plan_memory, weight_bytes
from ..diffusion.novel_views import sample_views
from ..diffusion.window_store import SettingsDiffer, WindowFolder
from ..export.folder import RUN_FILE, existing_views, write_views
from ..video.crop import CENTERINGS, PreparedClip, prepare_clip
from ..video.frames import load_clip
from .machine import choose_device, choose_dtype
from .provenance import file_fingerprint, peak_memory_gb, tensor_fingerprint, versions
from .references import load_reference_views

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("input", metavar="INPUT", help="video, GIF, image, folder of images or a quoted glob")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="safetensors file")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--variant", default="auto", choices=("auto", "sv4d2", "sv4d2_8views"))

    clip = parser.add_argument_group("the clip")
    clip.add_argument("--frames", type=_positive, default=21, metavar="N", help="frames to use (default 21)")
    clip.add_argument("--start", type=_natural, default=0, metavar="N", help="first frame (default 0)")
    clip.add_argument(
        "--every", type=_positive, default=1, metavar="N", help="use every Nth frame (default 1)"
    )
    clip.add_argument(
        "--fps", type=float, metavar="N", help="frames per second of the results (default: the clip's)"
    )
    clip.add_argument("--mask", metavar="PATH", help="masks of the object, white on black, read like INPUT")
    clip.add_argument("--size", type=_positive, metavar="N", help="image size (default: the model's, 576)")
    clip.add_argument(
        "--centering",
        default="global",
        choices=CENTERINGS,
        help="global: one crop around the frame centre; per_frame, smooth: follow the object",
    )

    cameras = parser.add_argument_group("the cameras (degrees relative to the input view)")
    cameras.add_argument("--azimuths", type=float, nargs="+", metavar="DEG", help="one per novel view")
    cameras.add_argument("--elevations", type=float, nargs="+", metavar="DEG", help="one per novel view")
    cameras.add_argument(
        "--ring-elevation", type=float, metavar="DEG", help="all novel views at this elevation"
    )
    cameras.add_argument(
        "--input-elevation",
        type=float,
        default=0.0,
        metavar="DEG",
        help="absolute elevation of the input camera, for the camera files only (default 0)",
    )

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--steps", type=_positive, default=50, metavar="N", help="denoising steps (default 50)"
    )
    sampling.add_argument("--seed", type=int, default=23, metavar="N", help="seed of the noise (default 23)")
    sampling.add_argument("--cfg-min", type=float, metavar="X", help="guidance where it is weakest")
    sampling.add_argument("--cfg-max", type=float, metavar="X", help="guidance where it is strongest")
    sampling.add_argument(
        "--reference-views",
        type=Path,
        metavar="DIR",
        help="images of frame 0, one per novel camera, in order",
    )

    machine = parser.add_argument_group("the machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    machine.add_argument("--dtype", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    machine.add_argument("--memory-gb", type=float, metavar="N", help="work within this much memory")
    machine.add_argument("--save-latents", action="store_true", help="also write the sampled latents")
    machine.add_argument("--overwrite", action="store_true", help="replace results of other settings in DIR")


def run(args: argparse.Namespace) -> int:
    """Run the job and return the exit code.

    Raises:
        ValueError, OSError: bad input, a folder that holds other results, a full or read-only disk.
    """
    began = time.perf_counter()
    header = read_header(args.checkpoint)
    config = read_config(header, args.variant)
    cameras = _cameras(args, config)
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
    settings = _settings(args, config, cameras, size, device, dtype, prepared, references)
    output = {
        "fps": prepared.fps,
        "save_latents": args.save_latents,
        "input_elevation_deg": args.input_elevation,
    }
    if _is_complete(args.out, settings, output):
        log.info("%s is already complete with these settings.", args.out)
        return 0
    if (present := existing_views(args.out)) and not args.overwrite:
        raise SettingsDiffer(
            f"{args.out / present[0]} exists already and is not from a run with these settings. Choose "
            f"another folder or overwrite it (--overwrite)."
        )
    _check_writable(args.out)

    loading = time.perf_counter()
    model = load_checkpoint(args.checkpoint, args.variant, dtype, device)
    if args.memory_gb is not None:
        plan = plan_memory(config, weight_bytes(model), dtype.itemsize, size, args.memory_gb)
        apply_plan(model, plan)
        log.info("Memory plan: at most about %.1f GiB.", plan.estimated_bytes / 2**30)
    store = WindowFolder(args.out / ".windows", settings, discard=args.overwrite)
    resumed = store.finished()
    sampling = time.perf_counter()
    with tqdm(desc="sampling", unit="step", dynamic_ncols=True) as bar:

        def progress(step: int, total: int, _preview: Tensor | None) -> None:
            bar.total = total
            bar.update(step - bar.n)

        grid = sample_views(
            model,
            prepared,
            cameras,
            steps=args.steps,
            seed=args.seed,
            cfg=_guidance_range(args, config),
            reference_views=references,
            store=store,
            callback=progress,
        )
    finished = time.perf_counter()
    report = {
        "settings": settings,
        "output": output,
        "input": str(args.input),
        "checkpoint": args.checkpoint.name,
        "versions": versions(),
        "seconds": {
            "prepare": round(loading - began, 2),
            "load": round(sampling - loading, 2),
            "sample": round(finished - sampling, 2),
        },
        "resumed_windows": resumed,
        "peak_memory_gb": peak_memory_gb(device),
        "clip_report": list(prepared.report),
    }
    write_views(
        args.out,
        grid,
        crop=prepared.crop.to_json(),
        run=report,
        save_latents=args.save_latents,
        overwrite=args.overwrite,
    )
    if not config.trained:
        log.warning(
            "UNTRAINED WEIGHTS: the novel views are noise. Give a trained --checkpoint for real views."
        )
    log.info("Done in %.0f s. Look at %s", time.perf_counter() - began, args.out / "contact_sheet.png")
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {value}")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {value}")
    return value


def _cameras(args: argparse.Namespace, config: ModelConfig) -> Cameras:
    elevations = args.elevations
    if args.ring_elevation is not None:
        if elevations is not None:
            raise ValueError(
                "Give either --elevations (one per view) or --ring-elevation (one for all), not both."
            )
        n_views = config.n_views if args.azimuths is None else len(args.azimuths)
        n_views -= n_views % config.n_views
        elevations = [args.ring_elevation] * n_views
    return Cameras.from_lists(config.n_views, args.azimuths, elevations, args.input_elevation)


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


def _guidance_range(args: argparse.Namespace, config: ModelConfig) -> tuple[float, float]:
    low = config.cfg_min if args.cfg_min is None else args.cfg_min
    high = config.cfg_max if args.cfg_max is None else args.cfg_max
    return low, high


def _settings(
    args: argparse.Namespace,
    config: ModelConfig,
    cameras: Cameras,
    size: int,
    device: torch.device,
    dtype: torch.dtype,
    prepared: PreparedClip,
    references: Tensor | None,
) -> dict:
    """Return everything that determines the sampled latents, as JSON values."""
    return {
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
    }


def _is_complete(folder: Path, settings: dict, output: dict) -> bool:
    """Return whether a folder holds the finished results of exactly these settings."""
    try:
        run = json.loads((folder / RUN_FILE).read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return run.get("settings") == settings and run.get("output") == output
