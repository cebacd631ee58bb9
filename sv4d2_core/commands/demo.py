"""`sv4d2 demo`: the whole job on a generated clip, with a generated or a given checkpoint.

Views of an untrained checkpoint are noise, which no scene can show: without a trained one the 4D part takes
the true views in their place.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex
from collections.abc import Callable
from pathlib import Path

from ..cameras import Cameras
from ..diffusion.config import OFFICIAL_VARIANTS, CLIPVisionConfig, ModelConfig, VAEConfig
from ..diffusion.convert import write_random_checkpoint
from ..diffusion.layout import read_config, read_header
from ..export.folder import write_views
from ..export.pictures import contact_sheet, with_alpha, write_frames
from ..views import ViewGrid
from ..world.anatomy import make_creature
from ..world.render import render_views
from . import refine, refine_arguments, render, views, views_arguments
from .output_folder import exclusive

log = logging.getLogger(__name__)

_N_FRAMES = 21
_FPS = 8.0
_SMALL_STEPS = 4
# The 4D part on a CPU within half a minute.
_SMALL_FIT = ("--size", "64", "--steps", "300", "--exact-views", "--input-elevation", "0")
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
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="a real checkpoint (default: untrained)"
    )
    parser.add_argument("--creature", type=int, default=5, metavar="N", help="which creature (default 5)")
    parser.add_argument(
        "--options",
        default="",
        metavar="TEXT",
        help="further options of `sv4d2 views`, such as --options='--steps 20 --device cuda'",
    )


def run(args: argparse.Namespace) -> int:
    """Make the clip, the true views of it and a checkpoint, then run `views`; return the exit code."""
    config = small_config() if args.checkpoint is None else read_config(read_header(args.checkpoint))
    truth = render_views(
        make_creature(args.creature), Cameras.default(config.n_views), _N_FRAMES, config.size, _FPS
    )
    with exclusive(args.out):
        checkpoint, options = args.checkpoint, []
        if checkpoint is None:
            checkpoint = args.out / "untrained_sv4d2.safetensors"
            log.info("Writing a small UNTRAINED checkpoint in the official layout: %s", checkpoint)
            write_random_checkpoint(checkpoint, config, overwrite=True)
            options = ["--steps", str(_SMALL_STEPS)]
        clip = args.out / "sample_clip"
        _write_clip(clip, truth)
        contact_sheet(truth).save(args.out / "true_views.png")
        log.info("Sample clip: %s; its true novel views: %s", clip, args.out / "true_views.png")
        made, scene = args.out / "views", args.out / "scene.safetensors"
        command = [str(clip), "--checkpoint", str(checkpoint), "--out", str(made)]
        command += ["--fps", f"{_FPS:g}", "--overwrite", *options, *shlex.split(args.options)]
        _run("views", views_arguments.add_arguments, views.run, command)
        small = args.checkpoint is None
        if small:
            made = args.out / "true_views"
            log.warning("The 4D scene is fitted to the TRUE views, as those of untrained weights are noise.")
            write_views(made, truth, run={"made_by": "sv4d2 demo: true views"}, overwrite=True)
        command = [str(made), "--out", str(scene), "--overwrite", *(_SMALL_FIT if small else ())]
        _run("refine", refine_arguments.add_arguments, refine.run, command)
        command = [str(scene), "--out", str(args.out / "turntable"), "--overwrite"]
        command += _SMALL_TURN if small else ["--turntable"]
        return _run("render", render.add_arguments, render.run, command)


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
