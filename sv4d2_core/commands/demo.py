"""`sv4d2 demo`: the whole job on a generated clip, with the small model of the pack or a given checkpoint.

Views of an untrained checkpoint are noise, which no scene can show: with one the 4D part takes the true views
in their place.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex
from collections.abc import Callable
from pathlib import Path

from ..cameras import Cameras
from ..data.views_folder import write_views
from ..diffusion.config import OFFICIAL_VARIANTS, CLIPVisionConfig, ModelConfig, VAEConfig
from ..diffusion.convert import write_random_checkpoint
from ..diffusion.layout import read_config
from ..diffusion.safetensors_stream import read_header
from ..shipped import SAMPLE_CREATURE, SAMPLE_FPS, SAMPLE_FRAMES, TINY_MODEL
from ..video.pictures import contact_sheet, with_alpha, write_frames
from ..views import ViewGrid
from ..world.body import make_creature
from ..world.render import render_views
from . import refine, refine_arguments, render, views, views_arguments
from .common import exclusive

log = logging.getLogger(__name__)

_UNTRAINED_STEPS = 4
_TINY_VIEWS = ("--steps", "5", "--centering", "none")
# The 4D part on a CPU within half a minute.
_SMALL_FIT = ("--steps", "300", "--input-elevation", "0")
_SMALL_TURN = ("--turntable", "--frames", "48", "--size", "128")


def small_config() -> ModelConfig:
    """Return a model of the official structure that is small enough for a CPU."""
    official = OFFICIAL_VARIANTS["sv4d2"]
    return dataclasses.replace(
        official,
        vector_dims=(32, 48, 48),
        size=128,
        trained=False,
        unet=dataclasses.replace(official.unet, base=32, head_channels=16, context_dim=48, vector_dim=128),
        vae=VAEConfig(base=32),
        clip=CLIPVisionConfig(width=64, layers=2, head_width=32, mlp_width=256, embed_dim=48),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--out", type=Path, default=Path("demo_output"), metavar="DIR")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="an official checkpoint (default: sv4d2-tiny)"
    )
    which.add_argument(
        "--untrained", action="store_true", help="a generated checkpoint of the official structure"
    )
    parser.add_argument(
        "--creature",
        type=int,
        default=SAMPLE_CREATURE,
        metavar="N",
        help=f"which creature (default {SAMPLE_CREATURE})",
    )
    parser.add_argument(
        "--options",
        default="",
        metavar="TEXT",
        help="further options of `sv4d2 views`, such as --options='--steps 20 --device cuda'",
    )


def run(args: argparse.Namespace) -> int:
    """Make the clip and its true views, then run `views`, `refine` and `render`; return the exit code."""
    given = args.checkpoint or TINY_MODEL
    config = small_config() if args.untrained else read_config(read_header(given))
    truth = render_views(
        make_creature(args.creature),
        Cameras.default(config.n_views),
        SAMPLE_FRAMES,
        config.size,
        SAMPLE_FPS,
    )
    with exclusive(args.out):
        checkpoint = _untrained(args.out, config) if args.untrained else given
        clip = args.out / "sample_clip"
        _write_clip(clip, truth)
        contact_sheet(truth).save(args.out / "true_views.png")
        log.info("Sample clip: %s; its true novel views: %s", clip, args.out / "true_views.png")
        made, scene = args.out / "views", args.out / "scene.safetensors"
        command = [str(clip), "--checkpoint", str(checkpoint), "--out", str(made)]
        command += ["--fps", f"{SAMPLE_FPS:g}", "--overwrite", *_views_options(args)]
        _run("views", views_arguments.add_arguments, views.run, command + shlex.split(args.options))
        small = args.checkpoint is None
        fit = list(_SMALL_FIT if small else ())
        if args.untrained:
            made = args.out / "true_views"
            fit += ["--size", "64", "--exact-views"]
            log.warning("The 4D scene is fitted to the TRUE views, as those of untrained weights are noise.")
            write_views(made, truth, run={"made_by": "sv4d2 demo: true views"}, overwrite=True)
        command = [str(made), "--out", str(scene), "--overwrite", *fit]
        _run("refine", refine_arguments.add_arguments, refine.run, command)
        command = [str(scene), "--out", str(args.out / "turntable"), "--overwrite"]
        command += _SMALL_TURN if small else ["--turntable"]
        return _run("render", render.add_arguments, render.run, command)


def _untrained(folder: Path, config: ModelConfig) -> Path:
    checkpoint = folder / "untrained_sv4d2.safetensors"
    log.info("Writing a small UNTRAINED checkpoint in the official layout: %s", checkpoint)
    return write_random_checkpoint(checkpoint, config, overwrite=True)


def _views_options(args: argparse.Namespace) -> tuple[str, ...]:
    if args.untrained:
        return "--steps", str(_UNTRAINED_STEPS)
    return () if args.checkpoint else _TINY_VIEWS


def _run(
    name: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
    command: list[str],
) -> int:
    """Run another command as a user would, and return its exit code."""
    log.info("Running: sv4d2 %s %s", name, shlex.join(command))
    parser = argparse.ArgumentParser(prog=f"sv4d2 {name}")
    add_arguments(parser)
    return run(parser.parse_args(command))


def _write_clip(folder: Path, truth: ViewGrid) -> None:
    """Write the input view as PNGs with alpha."""
    images, masks = truth.one_view(0)
    if masks is None:
        raise ValueError("Expected views with masks; the grid has none.")
    write_frames(folder, with_alpha(images, masks))
