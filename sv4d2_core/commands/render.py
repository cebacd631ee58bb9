"""`sv4d2 render`: pictures of a 4D scene from any camera at any time."""

from __future__ import annotations

import argparse
import logging
import time

from torch import Tensor

from ..cameras import Cameras
from ..data.datasets import refuse_renders, write_renders
from ..files import exclusive
from ..scene.scene import (
    Scene4D,
    SceneRendering,
    check_turntable,
    own_cameras,
    pace,
    placed,
    slowed,
    turntable,
)
from ..scene.store import load_scene
from ..views import ViewGrid, check_fps
from .common import (
    LARGEST_SIZE,
    Options,
    Progress,
    at_least,
    choose_device,
    given_cameras,
    listed_times,
    made_with,
    refuse_odd,
    refuse_overlap,
    user_path,
)

log = logging.getLogger(__name__)

_TURNTABLE_FRAMES = 96


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options = Options(parser)
    options.value("scene", user_path, "a scene that `sv4d2 refine` wrote", metavar="SCENE")
    options.output("folder for the pictures", "earlier renders in DIR")
    options.value("--size", at_least(2, LARGEST_SIZE), "image size", 576)
    options.device()
    options.flag("--maps", "depth and normals of the views, too (16-bit and RGB pictures)")
    options.flag("--centred", "keep the object in the middle, also where the crop followed it")

    cameras = options.group("the cameras (default: those of the views it was fitted to)")
    cameras.cameras()
    text = "cameras.json, or a transforms.json in the world of the data set that the scene was fitted to"
    cameras.value("--cameras", user_path, text, metavar="FILE")
    cameras.flag("--turntable", "a video of one turn around the scene while time runs")
    times = options.group("the times (default: the frames it was fitted to)")
    times.times()
    times.value("--slow", at_least(1, 64), "slow motion: N pictures from one time to the next", 1)


def run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    refuse_odd(args.size)
    refuse_overlap(args.out, args.scene, args.cameras)
    listed_times(args)
    if args.turntable:
        check_turntable(args.frames or _TURNTABLE_FRAMES, args.size)
    scene = load_scene(args.scene, choose_device(args.device))
    if args.centred:
        scene.path = None
    with exclusive(args.out):
        refuse_renders(args.out, args.overwrite)
        cameras = _cameras(args, scene)
        grid, maps = (None, None) if cameras is None else _views(args, scene, cameras)
        made = write_renders(
            args.out,
            grid,
            _turntable(args, scene) if args.turntable else None,
            maps=maps if args.maps else None,
            fps=args.fps or scene.fps,
            run=made_with(args),
            overwrite=args.overwrite,
        )
    log.info("Done in %.0f s: %s", time.perf_counter() - began, ", ".join(path.name for path in made))
    return 0


def _cameras(args: argparse.Namespace, scene: Scene4D) -> Cameras | None:
    """Return the cameras that are asked for; None where only a turntable is."""
    own = scene.cameras
    given = given_cameras(
        args, input_elevation_deg=own.input_elevation_deg, radius=own.radius, fov_deg=own.fov_deg
    )
    if given is not None or not args.turntable:
        return own_cameras(scene) if given is None else placed(given, scene)
    if args.maps or args.times:
        raise ValueError("--maps and --times are for views; got --turntable alone. Give cameras, too.")
    return None


def _views(args: argparse.Namespace, scene: Scene4D, cameras: Cameras) -> tuple[ViewGrid, SceneRendering]:
    times = listed_times(args) or scene.times
    fps = args.fps or pace(scene, times)
    check_fps(fps, args.out.name)
    times = slowed(times, args.slow)
    with Progress("views", "picture") as progress:
        seen = scene.render(cameras, times, args.size, normals=args.maps, callback=progress)
    return ViewGrid(seen.rgb, cameras, seen.alpha, fps, times=times), seen


def _turntable(args: argparse.Namespace, scene: Scene4D) -> tuple[Tensor, Tensor]:
    """Return pictures [N, H, W, 3] and opacity [N, H, W] of one turn during which the motion is played."""
    count = args.frames or _TURNTABLE_FRAMES
    with Progress("turntable", "picture") as progress:
        how = {"slow": args.slow, "normals": False, "callback": progress}
        seen, _ = turntable(scene, own_cameras(scene), count, args.size, **how)
    return seen.rgb[0], seen.alpha[0]
