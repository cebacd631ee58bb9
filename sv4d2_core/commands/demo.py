"""`sv4d2 demo`: the whole job on a generated clip, with the small model of the pack or a given checkpoint."""

from __future__ import annotations

import argparse
import json
import logging
import re
import shlex
from pathlib import Path
from types import ModuleType

from ..data.views_folder import read_run
from ..files import all_or_nothing, exclusive, replaceable, write_whole
from ..shipped import SAMPLE_CREATURE, SAMPLE_FPS, SAMPLE_FRAMES, TINY_MODEL
from ..video.pictures import contact_sheet, with_alpha, write_frames, write_picture
from ..world.body import make_creature
from ..world.render import render_views
from . import Parser, export, refine, render, views
from .common import Options, at_least, checkpoint_file, choose_device, refuse_overlap, user_path

log = logging.getLogger(__name__)

_MARKER = "demo.json"  # a folder with it is the demo's; written first, as a demo may be interrupted
_ENTRIES = (
    "sample_clip",
    "true_views.png",
    "views",
    "scene.safetensors",
    "scene.fit",
    "scene.fit.png",
    "turntable",
    "scene.glb",
    _MARKER,
)
_TINY_VIEWS = ("--steps", "5", "--centering", "none")
# A minute on two cores.
_SMALL_FIT = ("--steps", "200", "--rounds", "1", "--sampling-steps", "10", "--input-elevation", "0")
_SMALL_TURN = ("--turntable", "--frames", "32", "--size", "96")
_SMALL_GLB = ("--frames", "11", "--faces", "2000", "--resolution", "48")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options = Options(parser)
    parser.add_argument("--out", type=user_path, default=Path("demo_output"), metavar="DIR")
    text = "an official checkpoint (default: tiny, the small model of the pack)"
    options.value("--checkpoint", checkpoint_file, text, metavar="FILE")
    options.removed("--untrained", "leave it out, the small model of the pack is trained")
    options.value("--creature", at_least(0, 2**31 - 1), "which creature", SAMPLE_CREATURE)
    text = "further options of `sv4d2 views`, such as --options='--steps 20 --device cuda'"
    parser.add_argument("--options", default="", metavar="TEXT", help=text)


def run(args: argparse.Namespace) -> int:
    """Make the clip and its true views, then run the four commands; return the exit code."""
    small, checkpoint = args.checkpoint is None, args.checkpoint or TINY_MODEL
    refuse_overlap(args.out, args.checkpoint)
    clip, made, scene = args.out / "sample_clip", args.out / "views", args.out / "scene.safetensors"
    mesh = args.out / "scene.glb"
    more = ["--fps", f"{SAMPLE_FPS:g}", *(_TINY_VIEWS if small else ()), *shlex.split(args.options)]
    turn = _SMALL_TURN if small else ("--turntable",)
    commands = {
        views: _command(clip, made, "--checkpoint", checkpoint, *more),
        refine: _command(made, scene, "--checkpoint", checkpoint, *(_SMALL_FIT if small else ())),
        render: _command(scene, args.out / "turntable", *turn),
        export: _command(scene, mesh, "--format", "glb", *(_SMALL_GLB if small else ())),
    }
    jobs = {module: _parsed(module, words) for module, words in commands.items()}
    if (jobs[views].input, jobs[views].out, jobs[views].checkpoint) != (str(clip), made, checkpoint):
        raise ValueError(
            "Expected --options without input, --out and --checkpoint, which are the demo's own."
        )
    _, cameras, size = views.check_options(jobs[views])
    choose_device(jobs[views].device)
    with exclusive(args.out):
        _take(args.out)
        truth = render_views(make_creature(args.creature), cameras, SAMPLE_FRAMES, size, SAMPLE_FPS)
        images, masks = truth.one_view(0)
        pictures = images if masks is None else with_alpha(images, masks)
        names = [f"{t:05d}.png" for t in range(SAMPLE_FRAMES)]
        with all_or_nothing(clip, lambda: _there(clip, names), names[0], pictures.numel()) as staging:
            write_frames(staging, pictures)
        write_picture(args.out / "true_views.png", contact_sheet(truth))
        log.info("Sample clip: %s; its true novel views: %s", clip, args.out / "true_views.png")
        for module, job in jobs.items():
            log.info("Running: sv4d2 %s %s", _name(module), shlex.join(commands[module]))
            module.run(job)
    return 0


def _take(folder: Path) -> None:
    """Mark a folder as the demo's. Raises FileExistsError where one of its names is somebody else's."""
    names = re.compile("|".join(map(re.escape, _ENTRIES)))
    foreign = f"which its {_MARKER} does not list as made by a demo"
    if (folder / _MARKER).exists() or not _was_demo(folder):
        replaceable(folder, _MARKER, names, overwrite=True, foreign=foreign)
    write_whole(folder / _MARKER, json.dumps({"entries": _ENTRIES}).encode())


def _was_demo(folder: Path) -> bool:
    """Return whether a demo of a version that left no mark made the views there."""
    options = read_run(folder / "views").get("options")
    places = [options.get(key) for key in ("input", "out")] if isinstance(options, dict) else []
    return [Path(str(place)).name for place in places] == ["sample_clip", "views"]


def _there(folder: Path, names: list[str]) -> list[str]:
    return [name for name in names if (folder / name).exists()]


def _command(given: Path, out: Path, *more: object) -> list[str]:
    return [str(word) for word in (given, "--out", out, "--overwrite", *more)]


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _parsed(module: ModuleType, words: list[str]) -> argparse.Namespace:
    """Return the options of another command as a user would give them."""
    parser = Parser(prog=f"sv4d2 {_name(module)}")
    module.add_arguments(parser)
    return parser.parse_args(words)
