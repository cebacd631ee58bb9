"""The options of `sv4d2 train` and the recipe that they mean."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

from ..diffusion.config import VIEW_MIXINGS, ModelConfig
from ..diffusion.layout import read_config
from ..diffusion.safetensors_stream import read_header
from ..training.batches import DrawConfig
from ..training.loop import LoopConfig
from ..training.recipe import DTYPES, TINY, Phase, Recipe
from .arguments import at_least, positive_number

# Steps, learning rates and noise where nothing is said: from scratch (the recipe of sv4d2-tiny), of a given
# checkpoint, and of low-rank parts of one.
_FROM_SCRATCH = Recipe()
_STATIC, _MOTION = _FROM_SCRATCH.phases
_FINE_TUNING_STEPS = 1000
_FINE_TUNING_RATE, _LORA_RATE = 1e-5, 1e-4
# What SVD's descendants were trained with; a small model from scratch learns its views at more noise.
_FINE_TUNING_NOISE = {"p_mean": 1.0, "p_std": 1.6}
_DRAW_OPTIONS = ("orbit_share", "mask_all", "mask_view", "p_mean", "p_std")

_Settings = TypeVar("_Settings", LoopConfig, DrawConfig)


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
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default: the best)")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="of everything (default 0)")
    parser.add_argument(
        "--sample-every",
        type=positive_number,
        default=10.0,
        metavar="MIN",
        help="minutes between two sample pictures (default 10)",
    )

    data = parser.add_argument_group("data")
    _add_count(data, "scenes", 1, _FROM_SCRATCH.n_scenes, "procedural scenes to draw from")
    _add_count(data, "workers", 0, 1, "processes that render scenes ahead")
    for one in fields(DrawConfig):
        if one.name in _DRAW_OPTIONS:
            tuned = _FINE_TUNING_NOISE.get(one.name)
            default = f"{one.default:g}" + (f"; {tuned:g} with --base" if tuned else "")
            data.add_argument(
                _option(one.name), type=float, metavar="X", help=f"{one.metadata['help']} (default {default})"
            )

    group = parser.add_argument_group("training")
    autoencoder, decoder = _FROM_SCRATCH.autoencoder.steps, _FROM_SCRATCH.decoder.steps
    _add_count(group, "autoencoder_steps", 1, autoencoder, "from scratch only")
    _add_count(group, "decoder_steps", 1, decoder, "from scratch only, last")
    for phase, what, tuned in (
        (_STATIC, "phase 1, static 3D without mixing of frames", 0),
        (_MOTION, "phase 2, 4D", _FINE_TUNING_STEPS),
    ):
        _add_count(
            group, f"{phase.name}_steps", 0, None, f"{what} (default {phase.loop.steps}; {tuned} with --base)"
        )
        _add_count(
            group,
            f"{phase.name}_batch",
            1,
            None,
            f"samples per step (default {phase.draw.batch}; 1 with --base)",
        )
    rates = f"{_STATIC.loop.learning_rate:g} and {_MOTION.loop.learning_rate:g}"
    group.add_argument(
        "--learning-rate",
        type=positive_number,
        metavar="X",
        help=f"of all phases (default {rates}; {_FINE_TUNING_RATE:g} with --base; with --lora "
        f"{_LORA_RATE:g})",
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


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _add_count(group: argparse._ArgumentGroup, name: str, least: int, default: int | None, what: str) -> None:
    """Declare an option of a whole number; with a default of None the help text names it."""
    said = "" if default is None else f" (default {default})"
    group.add_argument(_option(name), type=at_least(least), default=default, metavar="N", help=what + said)


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


def _phases(args: argparse.Namespace, model: ModelConfig) -> list[Phase]:
    phases = []
    for phase, tuning_steps in ((_STATIC, 0), (_MOTION, _FINE_TUNING_STEPS)):
        loop, draw = phase.loop, phase.draw
        if args.base is not None:
            loop = LoopConfig(tuning_steps, _LORA_RATE if args.lora else _FINE_TUNING_RATE)
            draw = replace(draw, batch=1, **_FINE_TUNING_NOISE)
        if phase is _MOTION:
            draw = replace(draw, n_frames=model.n_frames)
        given = {name: getattr(args, name) for name in (*_DRAW_OPTIONS, "learning_rate")}
        given |= {name: getattr(args, f"{phase.name}_{name}") for name in ("steps", "batch")}
        phases.append(replace(phase, loop=_with_given(loop, given), draw=_with_given(draw, given)))
    return phases


def _with_given(config: _Settings, given: dict) -> _Settings:
    """Return the settings with those of the options that were given, each where it belongs."""
    names = {one.name for one in fields(config)}
    return replace(config, **{k: v for k, v in given.items() if k in names and v is not None})
