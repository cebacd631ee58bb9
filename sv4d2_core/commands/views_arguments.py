"""The options of `sv4d2 views` and what they mean together."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ..cameras import Cameras
from ..diffusion.config import ModelConfig
from ..diffusion.sampling import SAMPLERS, Solver, guidance_table
from ..video.crop import CENTERINGS
from .arguments import at_least, checkpoint_file, positive_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("input", metavar="INPUT", help="video, GIF, image, folder of images or a quoted glob")
    parser.add_argument(
        "--checkpoint",
        type=checkpoint_file,
        required=True,
        metavar="FILE",
        help="safetensors file, or tiny for the small model that comes with the pack",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--variant", default="auto", choices=("auto", "sv4d2", "sv4d2_8views"))

    clip = parser.add_argument_group("the clip")
    clip.add_argument(
        "--frames", type=at_least(1), default=21, metavar="N", help="frames to use (default 21)"
    )
    clip.add_argument("--start", type=at_least(0), default=0, metavar="N", help="first frame (default 0)")
    clip.add_argument(
        "--every", type=at_least(1), default=1, metavar="N", help="use every Nth frame (default 1)"
    )
    clip.add_argument(
        "--fps", type=float, metavar="N", help="frames per second of the results (default: the clip's)"
    )
    clip.add_argument("--mask", metavar="PATH", help="masks of the object, white on black, read like INPUT")
    clip.add_argument("--size", type=at_least(1), metavar="N", help="image size (default: the model's, 576)")
    clip.add_argument(
        "--centering",
        default="global",
        choices=CENTERINGS,
        help="global: one crop around the frame centre; per_frame, smooth: follow the object; none: the "
        "whole frame, for clips that are prepared already",
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
        "--steps", type=at_least(1), default=50, metavar="N", help="denoising steps (default 50)"
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

    faster = parser.add_argument_group("faster or smaller, for other numbers (off by default)")
    faster.add_argument(
        "--sampler",
        default="euler",
        choices=tuple(SAMPLERS),
        help="euler: official; dpmpp_2m: nearer to many steps with few (default euler)",
    )
    faster.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="guidance only at these noise levels (sigma, at most 700), half the work at the others",
    )
    faster.add_argument(
        "--step-cache",
        type=float,
        default=0.0,
        metavar="X",
        help="reuse the network's output while it is expected to change by less than this share, 0.1 for "
        "example (default 0: never)",
    )
    faster.add_argument(
        "--fp8-weights",
        action="store_true",
        help="keep the UNet's weights in 8 bits, half the memory of half precision",
    )

    machine = parser.add_argument_group("the machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    machine.add_argument("--dtype", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    machine.add_argument(
        "--memory-gb", type=positive_number, metavar="N", help="work within this much memory"
    )
    machine.add_argument(
        "--compile",
        action="store_true",
        help="compile the network in the first step (minutes); meant for GPUs, no gain on a CPU",
    )
    machine.add_argument("--save-latents", action="store_true", help="also write the sampled latents")
    machine.add_argument("--overwrite", action="store_true", help="replace results of other settings in DIR")


def cameras_of(args: argparse.Namespace, config: ModelConfig) -> Cameras:
    """Return the cameras that the options ask for. Raises ValueError where they contradict each other."""
    if args.ring_elevation is None:
        return Cameras.from_lists(config.n_views, args.azimuths, args.elevations, args.input_elevation)
    if args.elevations is not None:
        raise ValueError(
            "Give either --elevations (one per view) or --ring-elevation (one for all), not both."
        )
    level = Cameras.from_lists(config.n_views, args.azimuths, None, args.input_elevation)
    return replace(level, elevations_deg=(0.0, *[args.ring_elevation] * level.n_views))


def check_sampling(args: argparse.Namespace, config: ModelConfig) -> None:
    """Raise ValueError for sampling options that cannot work, before anything is loaded or written."""
    guidance_table(config.guidance, config.n_frames, config.n_views, *guidance_range_of(args, config))
    solver_of(args)
    if not -(2**63) <= args.seed < 2**62:
        raise ValueError(f"Expected a --seed between -2^63 and 2^62; got {args.seed}.")


def guidance_range_of(args: argparse.Namespace, config: ModelConfig) -> tuple[float, float]:
    """Return the guidance range, the variant's own where an option is not given."""
    low = config.cfg_min if args.cfg_min is None else args.cfg_min
    high = config.cfg_max if args.cfg_max is None else args.cfg_max
    return low, high


def solver_of(args: argparse.Namespace) -> Solver:
    """Return the sampler and its shortcuts. Raises ValueError for numbers out of range."""
    interval = None if args.guidance_interval is None else tuple(args.guidance_interval)
    return Solver(args.sampler, interval, args.step_cache)
