"""`sv4d2 scenes`: the benchmark's scenes as folders of views, to run methods on and to score them against."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..cameras import OFFICIAL_AZIMUTHS_DEG, Cameras
from ..data.views_folder import missing_files, read_run, write_views
from ..views import ViewGrid
from ..world.suite import HELD_OUT, SCENE_NAMES, BenchmarkScene, benchmark_scenes, corrupt_views
from .arguments import at_least, positive_number
from .common import versions

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the scenes")
    parser.add_argument(
        "--size", type=at_least(16), default=576, metavar="N", help="image size (default 576)"
    )
    parser.add_argument(
        "--rig", default="sv4d2", choices=tuple(OFFICIAL_AZIMUTHS_DEG), help="cameras of the training views"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help=f"which scenes, of {', '.join(SCENE_NAMES)}"
    )
    parser.add_argument(
        "--corrupt",
        type=positive_number,
        metavar="X",
        help="also write the training views with errors like SV4D 2.0's (1) or X times as large",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace scenes of other settings in DIR")


def run(args: argparse.Namespace) -> int:
    """Render the scenes and return the exit code.

    Raises:
        ValueError, OSError: unknown scenes, an odd size, folders that hold something else.
    """
    if unknown := [name for name in args.only if name not in SCENE_NAMES]:
        raise ValueError(f"Expected --only out of {', '.join(SCENE_NAMES)}; got {', '.join(unknown)}.")
    if args.size % 2:
        raise ValueError(f"Expected an even --size, as videos need; got {args.size}.")
    rig = Cameras.official(args.rig)
    for seed, scene in enumerate(benchmark_scenes()):
        if args.only and scene.name not in args.only:
            continue
        _write(args, scene, "train", partial(scene.views, rig, args.size), rig)
        _write(args, scene, "held_out", partial(scene.views, HELD_OUT, args.size), HELD_OUT)
        _write(args, scene, "held_out_between", partial(scene.between, HELD_OUT, args.size), HELD_OUT)
        if args.corrupt is not None:
            made = {"seed": seed, "strength": args.corrupt, "per_frame": False}
            spoilt = partial(_spoilt, scene, rig, args.size, seed, args.corrupt)
            _write(args, scene, "train_corrupted", spoilt, rig, {"corruption": made})
        log.info("%s: %s", scene.name, scene.what)
    log.info(
        "Make views of %s with --centering none and score them against that folder; score pictures of 4D "
        "scenes against held_out and held_out_between.",
        args.out / "train",
    )
    return 0


def _spoilt(scene: BenchmarkScene, rig: Cameras, size: int, seed: int, strength: float) -> ViewGrid:
    return corrupt_views(scene.views(rig, size), seed, strength)


def _write(
    args: argparse.Namespace,
    scene: BenchmarkScene,
    part: str,
    render: Callable[[], ViewGrid],
    cameras: Cameras,
    more: dict | None = None,
) -> None:
    """Render and write one part of a scene, unless the folder holds just that already."""
    place = args.out / part / scene.name
    settings = {"scene": scene.name, "what": scene.what, **(more or {})}
    run = read_run(place)
    known = (run.get("settings"), run.get("size"), run.get("n_views"))
    if known == (settings, args.size, cameras.n_views) and not missing_files(place):
        return
    write_views(place, render(), run={"settings": settings, "versions": versions()}, overwrite=args.overwrite)
