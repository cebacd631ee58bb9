"""`sv4d2 scenes`: the benchmark's scenes as folders of views, to run methods on and to score them against."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..cameras import OFFICIAL_AZIMUTHS_DEG, Cameras
from ..export.folder import write_views
from ..world.corruption import corrupt_views
from ..world.suite import HELD_OUT, SCENE_NAMES, benchmark_scenes
from .arguments import at_least, positive_number
from .provenance import versions

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
    parser.add_argument("--overwrite", action="store_true", help="replace scenes that are in DIR already")


def run(args: argparse.Namespace) -> int:
    """Render the scenes and return the exit code.

    Raises:
        ValueError, OSError: unknown scenes, an odd size, folders that hold something else.
    """
    if unknown := [name for name in args.only if name not in SCENE_NAMES]:
        raise ValueError(f"Expected --only out of {', '.join(SCENE_NAMES)}; got {', '.join(unknown)}.")
    if args.size % 2:
        raise ValueError(f"Expected an even --size, as videos need; got {args.size}.")
    for seed, scene in enumerate(benchmark_scenes()):
        if args.only and scene.name not in args.only:
            continue
        train = scene.views(Cameras.official(args.rig), args.size)
        grids = {
            "train": train,
            "held_out": scene.views(HELD_OUT, args.size),
            "held_out_between": scene.between(HELD_OUT, args.size),
        }
        if args.corrupt is not None:
            grids["train_corrupted"] = corrupt_views(train, seed, args.corrupt)
        for part, grid in grids.items():
            run = {"settings": {"what": scene.what}, "versions": versions()}
            write_views(args.out / part / scene.name, grid, run=run, overwrite=args.overwrite)
        log.info("%s: %s", scene.name, scene.what)
    log.info(
        "Make views of %s with --centering none and score them against that folder; score pictures of 4D "
        "scenes against held_out and held_out_between.",
        args.out / "train",
    )
    return 0
