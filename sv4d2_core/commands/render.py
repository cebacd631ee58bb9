"""`sv4d2 render`: pictures of a 4D scene from any camera at any time."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ..cameras import Cameras
from ..data.datasets import refuse_renders, write_renders
from ..data.transforms import read_cameras
from ..scene.scene import Scene4D, SceneRendering, own_cameras, turntable
from ..scene.store import load_scene
from ..views import ViewGrid
from .arguments import at_least, listed_cameras, listed_times
from .common import choose_device, exclusive, options_of, versions

log = logging.getLogger(__name__)

_TURNTABLE_FRAMES = 96


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("scene", type=Path, metavar="SCENE", help="a scene that `sv4d2 refine` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--size", type=at_least(2), default=576, metavar="N", help="image size (default 576)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier renders in DIR")

    parser.add_argument(
        "--maps", action="store_true", help="depth and normals of the views, too (16-bit and RGB pictures)"
    )
    parser.add_argument(
        "--centred",
        action="store_true",
        help="keep the object in the middle, also where the crop of its clip had followed it",
    )

    cameras = parser.add_argument_group("the cameras (default: those of the views it was fitted to)")
    cameras.add_argument(
        "--azimuths", type=float, nargs="+", metavar="DEG", help="relative to the input view"
    )
    cameras.add_argument(
        "--elevations", type=float, nargs="+", metavar="DEG", help="one per azimuth (default 0)"
    )
    cameras.add_argument("--cameras", type=Path, metavar="FILE", help="cameras.json or transforms.json")
    cameras.add_argument(
        "--turntable",
        action="store_true",
        help="a video of one turn around the scene while time runs, beside the views if cameras are given",
    )

    times = parser.add_argument_group("the times (default: the frames it was fitted to)")
    times.add_argument("--times", type=float, nargs="+", metavar="T", help="from 0 to 1")
    times.add_argument("--frames", type=at_least(1), metavar="N", help="N times evenly from 0 to 1")
    times.add_argument("--fps", type=float, metavar="N", help="frames per second (default: the scene's)")


def run(args: argparse.Namespace) -> int:
    """Render and return the exit code.

    Raises:
        ValueError, OSError: bad input, a folder that holds something else, a full or read-only disk.
    """
    began = time.perf_counter()
    if args.size % 2:
        raise ValueError(f"Expected an even --size, as videos need; got {args.size}.")
    scene = load_scene(args.scene, choose_device(args.device))
    if args.centred:
        scene.path = None
    with exclusive(args.out):
        refuse_renders(args.out, args.overwrite)
        cameras = _cameras(args, scene)
        grid, maps = (None, None) if cameras is None else _views(args, scene, cameras)
        turntable = _turntable(args, scene) if args.turntable else None
        run = {"options": options_of(args), "versions": versions()}
        fps = args.fps or scene.fps
        made = write_renders(
            args.out,
            grid,
            turntable,
            maps=maps if args.maps else None,
            fps=fps,
            run=run,
            overwrite=args.overwrite,
        )
    log.info("Done in %.0f s: %s", time.perf_counter() - began, ", ".join(path.name for path in made))
    return 0


def _cameras(args: argparse.Namespace, scene: Scene4D) -> Cameras | None:
    """Return the cameras that are asked for; None where only a turntable is."""
    if args.cameras is not None and (args.azimuths or args.elevations):
        raise ValueError("Give either --cameras or --azimuths and --elevations, not both.")
    if args.cameras is not None:
        return read_cameras(args.cameras)
    if args.turntable and args.azimuths is None and (args.maps or args.times):
        raise ValueError("--maps and --times are for views; got --turntable alone. Give cameras, too.")
    if args.azimuths is None:
        return None if args.turntable else own_cameras(scene)
    own = scene.cameras
    return listed_cameras(
        args.azimuths,
        args.elevations,
        input_elevation_deg=own.input_elevation_deg,
        radius=own.radius,
        fov_deg=own.fov_deg,
    )


def _times(args: argparse.Namespace, scene: Scene4D) -> list[float]:
    times = listed_times(args.times, args.frames)
    return list(scene.times if times is None else times)


def _views(args: argparse.Namespace, scene: Scene4D, cameras: Cameras) -> tuple[ViewGrid, SceneRendering]:
    times = _times(args, scene)
    with tqdm(desc="views", unit="picture", dynamic_ncols=True) as bar:

        def progress(done: int, total: int, _preview: None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        rendering = scene.render(cameras, times, args.size, callback=progress)
    fps = args.fps or scene.fps
    grid = ViewGrid(rendering.rgb, cameras, rendering.alpha, fps, times=tuple(times))
    return grid, rendering


def _turntable(args: argparse.Namespace, scene: Scene4D) -> tuple[Tensor, Tensor]:
    """Return pictures [N, H, W, 3] and opacity [N, H, W] of one turn during which the motion is played."""
    count = args.frames or _TURNTABLE_FRAMES
    with tqdm(desc="turntable", unit="picture", dynamic_ncols=True, total=count) as bar:

        def progress(done: int, _total: int) -> None:
            bar.update(done - bar.n)

        seen, _ = turntable(scene, own_cameras(scene), count, args.size, callback=progress)
    return seen.rgb[0], seen.alpha[0]
