"""The options of `sv4d2 refine` and the settings that they mean."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ..scene.config import RefineConfig
from .arguments import at_least, checkpoint_file, positive_number

_STEPS = 2500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "views", metavar="VIEWS", help="a folder of `sv4d2 views`, or a D-NeRF style data set"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="SCENE.safetensors to write")
    parser.add_argument(
        "--backend", default="dynerf", choices=("dynerf", "gaussians"), help="what the scene is made of"
    )
    parser.add_argument(
        "--field",
        default="planes",
        choices=("planes", "canonical"),
        help="of dynerf: planes over space and time, or one still field that a deformation moves",
    )
    parser.add_argument(
        "--size", type=at_least(16), metavar="N", help="fit at N x N pixels (default: as given)"
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--steps", type=at_least(4), metavar="N", help=f"steps of all stages (default {_STEPS})"
    )
    budget.add_argument(
        "--minutes", type=positive_number, metavar="N", help="as many steps as this machine does in N minutes"
    )
    parser.add_argument(
        "--exact-views",
        action="store_true",
        help="trust all views alike, as recorded or rendered ones deserve; else views far from the input "
        "and rims of silhouettes count less",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the fit (default 0)")
    parser.add_argument(
        "--input-elevation",
        type=float,
        metavar="DEG",
        help="absolute elevation of the input camera (default: the views', where it is not 0, else estimated "
        "from the silhouettes)",
    )
    parser.add_argument(
        "--centred",
        action="store_true",
        help="leave the object in the middle where the crop of the views followed it; else it moves again",
    )
    parser.add_argument(
        "--normals",
        type=Path,
        metavar="DIR",
        help="an estimator's normals of all views, view_XX/TTTTT.png: x right, y up, z towards the camera",
    )
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="LPIPS weights, for a perceptual loss")

    second = parser.add_argument_group("the second stage (views made anew from the scene, then fitted again)")
    second.add_argument(
        "--stages",
        type=int,
        choices=(1, 2),
        help="default: 2 with --checkpoint, else 1; 2 without weighs the given views by visibility",
    )
    second.add_argument(
        "--checkpoint", type=checkpoint_file, metavar="FILE", help="the SV4D 2.0 checkpoint, or tiny"
    )
    second.add_argument("--variant", default="auto", choices=("auto", "sv4d2", "sv4d2_8views"))
    second.add_argument(
        "--strength", type=positive_number, metavar="X", help="share of the denoising (default 0.35)"
    )
    second.add_argument(
        "--sampling-steps",
        type=at_least(1),
        default=50,
        metavar="N",
        help="of the full schedule (50)",
    )

    machine = parser.add_argument_group("the machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    machine.add_argument("--dtype", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    machine.add_argument(
        "--memory-gb",
        type=positive_number,
        metavar="N",
        help="of dynerf: follow rays within this much memory",
    )
    machine.add_argument(
        "--resume", action="store_true", help="continue an interrupted fit of the same settings"
    )
    machine.add_argument("--overwrite", action="store_true", help="replace FILE")


def stages_of(args: argparse.Namespace) -> int:
    """Return how many stages are asked for.

    Raises:
        ValueError: a checkpoint that no stage would use.
    """
    if args.stages == 1 and args.checkpoint is not None:
        raise ValueError("--checkpoint is for the second stage; got --stages 1. Leave one of them out.")
    return args.stages or (1 if args.checkpoint is None else 2)


def settings_of(args: argparse.Namespace) -> RefineConfig:
    """Return the settings.

    Raises:
        ValueError: options that do not go together.
    """
    if args.backend == "gaussians" and (args.field != "planes" or args.lpips or args.normals):
        raise ValueError("--field, --lpips and --normals are for --backend dynerf. Leave them out.")
    config = RefineConfig(
        backend=args.backend,
        field=args.field,
        seed=args.seed,
        memory_gb=args.memory_gb or 0.0,
        weight_by_trust=not args.exact_views,
    )
    if args.strength is not None:
        config = replace(config, strength=args.strength)
    return config.with_steps(args.steps or _STEPS, stages_of(args))
