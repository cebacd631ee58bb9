"""The options of `sv4d2 train` and the recipe that they mean."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ..diffusion.config import VIEW_MIXINGS, ModelConfig
from ..diffusion.layout import read_config
from ..diffusion.safetensors_stream import read_header
from ..training.batches import DrawConfig
from ..training.loop import LoopConfig
from ..training.recipe import DTYPES, TINY, Phase, Recipe
from .arguments import at_least, positive_number

# Steps and learning rates where nothing is said: from scratch (the recipe of sv4d2-tiny), of a given
# checkpoint, and of low-rank parts of one.
_FROM_SCRATCH = Recipe()
_FINE_TUNING_STEPS = 1000
_FINE_TUNING_RATE, _LORA_RATE = 1e-5, 1e-4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the training; the same goes on"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="your own renders: folders of views or D-NeRF style data sets (default: the procedural world)",
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="FILE",
        help="fine-tune this checkpoint (default: a small one, from scratch)",
    )
    parser.add_argument(
        "--lora", type=at_least(1), metavar="RANK", help="with --base: train a LoRA on the attention alone"
    )
    parser.add_argument(
        "--minutes", type=positive_number, metavar="N", help="stop after N minutes, to go on later"
    )
    _add_data_options(parser)
    _add_training_options(parser)
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default: the best)")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="of everything (default 0)")
    parser.add_argument(
        "--sample-every",
        type=positive_number,
        default=10.0,
        metavar="MIN",
        help="minutes between two sample pictures (default 10)",
    )


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--scenes",
        type=at_least(1),
        default=_FROM_SCRATCH.n_scenes,
        metavar="N",
        help=f"procedural scenes to draw from (default {_FROM_SCRATCH.n_scenes})",
    )
    group.add_argument(
        "--workers",
        type=at_least(0),
        default=1,
        metavar="N",
        help="processes that render scenes ahead (default 1)",
    )
    group.add_argument(
        "--orbit-share",
        type=float,
        metavar="X",
        help="share of samples on the official orbit around their input, else any cameras (default 0.95)",
    )
    group.add_argument(
        "--mask-all", type=float, metavar="X", help="share of samples without reference views (default 0.5)"
    )
    group.add_argument(
        "--mask-view",
        type=float,
        metavar="X",
        help="share of missing reference views elsewhere (default 0.15)",
    )
    group.add_argument(
        "--p-mean",
        type=float,
        metavar="X",
        help="mean of the logarithm of the noise level (default 2; 1 with --base)",
    )
    group.add_argument("--p-std", type=positive_number, metavar="X", help="its deviation (default 1.8; 1.6)")


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    autoencoder, (static, motion) = _FROM_SCRATCH.autoencoder, _FROM_SCRATCH.phases
    group.add_argument(
        "--autoencoder-steps",
        type=at_least(1),
        default=autoencoder.steps,
        metavar="N",
        help=f"from scratch only (default {autoencoder.steps})",
    )
    group.add_argument(
        "--decoder-steps",
        type=at_least(1),
        default=_FROM_SCRATCH.decoder.steps,
        metavar="N",
        help=f"from scratch only, last (default {_FROM_SCRATCH.decoder.steps})",
    )
    group.add_argument(
        "--static-steps",
        type=at_least(0),
        metavar="N",
        help=f"phase 1, static 3D without mixing of frames (default {static.loop.steps}; 0 with --base)",
    )
    group.add_argument(
        "--motion-steps",
        type=at_least(0),
        metavar="N",
        help=f"phase 2, 4D (default {motion.loop.steps}; {_FINE_TUNING_STEPS} with --base)",
    )
    group.add_argument(
        "--static-batch",
        type=at_least(1),
        metavar="N",
        help=f"samples per step (default {static.draw.batch}; 1)",
    )
    group.add_argument(
        "--motion-batch",
        type=at_least(1),
        metavar="N",
        help=f"samples per step (default {motion.draw.batch}; 1)",
    )
    group.add_argument(
        "--learning-rate",
        type=positive_number,
        metavar="X",
        help=f"of all phases (default {static.loop.learning_rate:g} and {motion.loop.learning_rate:g}; "
        f"{_FINE_TUNING_RATE:g} with --base, {_LORA_RATE:g} with --lora)",
    )
    group.add_argument(
        "--dtype", default=_FROM_SCRATCH.dtype, choices=tuple(DTYPES), help="of the UNet's arithmetic"
    )
    group.add_argument(
        "--checkpointing", action="store_true", help="compute activations twice, in much less memory"
    )
    group.add_argument(
        "--view-mixing",
        choices=VIEW_MIXINGS,
        help="how views attend to each other (default: the model's own)",
    )


def recipe_of(args: argparse.Namespace) -> Recipe:
    """Return the recipe that the options mean, of procedural scenes.

    Raises:
        ValueError: --lora without --base, no steps at all, values out of range.
        CheckpointError: --base cannot be used.
    """
    if args.lora and args.base is None:
        raise ValueError(
            "Expected --lora together with --base, the checkpoint that it changes. Give --base FILE."
        )
    model = TINY if args.base is None else read_config(read_header(args.base))
    if args.view_mixing:
        model = replace(model, unet=replace(model.unet, view_mixing=args.view_mixing))
    phases = tuple(phase for phase in _phases(args, model) if phase.loop.steps > 0)
    if not phases:
        raise ValueError("Expected steps to train; --static-steps and --motion-steps are both 0.")
    if args.lora and len(phases) > 1:
        raise ValueError("Expected one phase for a LoRA, which is one file; leave out --static-steps.")
    return Recipe(
        model=model,
        seed=args.seed,
        n_scenes=args.scenes,
        autoencoder=replace(_FROM_SCRATCH.autoencoder, steps=args.autoencoder_steps),
        decoder=replace(_FROM_SCRATCH.decoder, steps=args.decoder_steps),
        phases=phases,
        dtype=args.dtype,
        recomputes=args.checkpointing,
        lora_rank=args.lora or 0,
    )


def _phases(args: argparse.Namespace, model: ModelConfig) -> tuple[Phase, Phase]:
    static, motion = _FROM_SCRATCH.phases
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
    names = ("orbit_share", "mask_all", "mask_view", "p_mean", "p_std")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    draw: DrawConfig = replace(phase.draw, **given)
    loop = phase.loop
    if batch is not None:
        draw = replace(draw, batch=batch)
    if steps is not None:
        loop = replace(loop, steps=steps)
    if args.learning_rate is not None:
        loop = replace(loop, learning_rate=args.learning_rate)
    return replace(phase, loop=loop, draw=draw)
