"""`sv4d2 metrics` scores views; `sv4d2 scenes` writes the benchmark's scenes, whose every view is known."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..cameras import OFFICIAL_AZIMUTHS_DEG, Cameras
from ..data.reader import find_scenes, read_any_views
from ..data.views_folder import missing_files, read_run, write_views
from ..diffusion.checkpoint import load_clip_vision
from ..export.report import refuse_report, write_report
from ..files import exclusive, exclusive_file
from ..messages import cut, listed
from ..metrics.evaluate import DEFAULT_SHRINKAGE, Networks
from ..metrics.i3d import I3D, RISK, convert_i3d
from ..metrics.image import LPIPS
from ..metrics.report.tables import SceneComparison, compare, markdown_tables, summaries_of
from ..shipped import versions
from ..views import ViewGrid
from ..world.suite import HELD_OUT, SCENE_NAMES, BenchmarkScene, benchmark_scenes, corrupt_views
from .common import (
    LARGEST_SIZE,
    Options,
    Progress,
    Within,
    at_least,
    choose_device,
    given_cameras,
    made_with,
    refuse_odd,
    refuse_overlap,
    user_path,
)

log = logging.getLogger(__name__)

_DEFAULT_NAME = "predicted"
_SAME_TIME = 1e-3  # times closer than this are one moment
_CLIP_BATCH = 8  # images that the CLIP tower takes at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options = Options(parser)
    text = (
        "views to score, and true views: a folder of `sv4d2 views`, a D-NeRF style data set, a folder with "
        "one clip per view, or a folder of such folders, one per scene"
    )
    options.value("places", user_path, text, metavar="PREDICTED [REFERENCE]", nargs="*")
    options.output("folder for the report", "an earlier report in DIR")
    text = "score several methods side by side; a single place before it is then the REFERENCE"
    options.value("--methods", str, text, metavar="NAME=DIR", nargs="+")

    views = options.group("the views")
    views.input_view()
    views.value("--frames", at_least(1), "compare only the first N frames")
    views.value("--size", at_least(16, LARGEST_SIZE), "resize everything to N x N pixels")
    plain = options.group("the cameras of plain clips")
    plain.value("--cameras", user_path, "cameras.json or transforms.json", metavar="FILE")
    plain.cameras()

    networks = options.group("networks (local files; nothing is downloaded)")
    networks.value("--lpips", user_path, "LPIPS weights, for LPIPS", metavar="FILE")
    networks.value(
        "--clip", user_path, "an SV4D 2.0 checkpoint or CLIP vision file, for CLIP-S", metavar="FILE"
    )
    networks.value("--i3d", user_path, "I3D's weights, made by convert-i3d, for FVD", metavar="FILE")
    networks.device()
    text = "share of the covariances of Frechet distances that is replaced"
    networks.value("--shrinkage", Within(0, 1), text, DEFAULT_SHRINKAGE, "X")


def run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    methods, reference = _places(args)
    files = (args.lpips, args.clip, args.i3d)
    refuse_overlap(args.out, *methods.values(), reference, args.cameras, *files)
    scenes = {name: find_scenes(place) for name, place in methods.items()}
    truth = None if reference is None else find_scenes(reference)
    with exclusive(args.out):
        refuse_report(args.out, args.overwrite)
        networks = _networks(args)
        if reference is None and any(files):
            log.warning("--lpips, --clip and --i3d do nothing without true views: give REFERENCE.")
        comparisons = [
            _compare(args, scene, places, None if truth is None else truth[scene], networks)
            for scene, places in _by_scene(scenes, truth).items()
        ]
        made = {**made_with(args), "seconds": round(time.perf_counter() - began, 2)}
        page = write_report(
            args.out, comparisons, run=made, shrinkage=args.shrinkage, overwrite=args.overwrite
        )
    _print(markdown_tables(comparisons, summaries_of(comparisons, args.shrinkage)))
    log.info("Done in %.0f s. Look at %s", time.perf_counter() - began, page)
    return 0


def _print(text: str) -> None:
    """Print a text; letters that the terminal or the file behind ``>`` cannot take become question marks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))


def _places(args: argparse.Namespace) -> tuple[dict[str, Path], Path | None]:
    """Return where each method's views are, and where the true ones are."""
    places, named = args.places, [text.partition("=") for text in args.methods or ()]
    methods = {name.strip(): user_path(place) for name, _, place in named if name.strip() and place}
    if len(methods) < len(named):
        raise ValueError(
            f"Expected --methods as NAME=DIR with different names; got {listed(args.methods)}. Write for "
            f"example --methods ours=out/ours SV3D=out/sv3d, after PREDICTED and REFERENCE."
        )
    if len(places) > 2 or not (places or methods):
        raise ValueError(
            f"Expected PREDICTED and REFERENCE (or --methods, or PREDICTED alone); got {len(places)} places: "
            f"{listed(places)}."
        )
    if len(places) == 1 and methods:
        return methods, places[0]
    if places and _DEFAULT_NAME in methods:
        raise ValueError(
            f"Expected another name than {_DEFAULT_NAME!r} in --methods; that is PREDICTED, {places[0]}. "
            f"Rename the method."
        )
    predicted = {_DEFAULT_NAME: places[0]} if places else {}
    return {**predicted, **methods}, places[1] if len(places) == 2 else None


def _by_scene(
    methods: Mapping[str, dict[str, Path]], truth: dict[str, Path] | None
) -> dict[str, dict[str, Path]]:
    """Return per scene the methods that have it; a scene alone is the same whatever its folder's name."""
    wanted = list(truth if truth is not None else max(methods.values(), key=len))
    scenes: dict[str, dict[str, Path]] = {scene: {} for scene in wanted}
    for name, places in methods.items():
        if len(wanted) == 1 and len(places) == 1:
            places = {wanted[0]: next(iter(places.values()))}
        missing = [scene for scene in wanted if scene not in places]
        if len(missing) == len(wanted):
            raise ValueError(
                f"Expected scenes {listed(wanted)} of {cut(name)}; got {listed(places)}. Give the scenes' "
                f"folders equal names."
            )
        if missing:
            log.warning("%s lacks %d of %d scenes: %s", name, len(missing), len(wanted), listed(missing))
        if alone := [scene for scene in places if scene not in scenes]:
            log.warning("%s has %d scenes to compare with nothing: %s", name, len(alone), listed(alone))
        for scene in wanted:
            if scene in places:
                scenes[scene][name] = places[scene]
    return {scene: places for scene, places in scenes.items() if places}


def _compare(
    args: argparse.Namespace, scene: str, places: dict[str, Path], truth: Path | None, networks: Networks
) -> SceneComparison:
    read = partial(read_any_views, frames=args.frames, number=args.input_view)
    given = given_cameras(args)
    reference = None if truth is None else read(truth, given)
    predictions = {}
    for name, place in places.items():
        # Plain clips of novel views alone take their input view from the reference, frame by frame.
        grid = read(place, given or (None if reference is None else reference.cameras), reference)
        if given is not None and grid.cameras != given:
            log.warning("%s states its own cameras; those given are for plain clips.", place)
        if reference is not None:
            _check_times(grid, reference, place)
        predictions[name] = _fitted(args, grid, place)
    if truth is not None and reference is not None:
        reference = _fitted(args, reference, truth)
    with Progress(scene) as progress:
        return compare(scene, predictions, reference, networks, callback=progress)


def _fitted(args: argparse.Namespace, grid: ViewGrid, place: Path) -> ViewGrid:
    """Return views cut and resized as the options say."""
    if args.frames is not None:
        if grid.n_frames < args.frames:
            raise ValueError(
                f"Expected at least --frames {args.frames} in {place}; got {grid.n_frames}. Lower --frames."
            )
        grid = grid.at_frames(range(args.frames))
    return grid if args.size is None else grid.resized(args.size)


def _check_times(grid: ViewGrid, reference: ViewGrid, place: Path) -> None:
    """Raise ValueError where both say which moments their frames show, and these are others."""
    if grid.times is None or reference.times is None:
        return
    for t, (time_in_clip, true_time) in enumerate(zip(grid.times, reference.times, strict=False)):
        if abs(time_in_clip - true_time) > _SAME_TIME:
            raise ValueError(
                f"Expected frames of the reference's moments; frame {t} of {place} shows time "
                f"{time_in_clip:.3g}, the reference's {true_time:.3g}. Compare views of the same moments."
            )


def _networks(args: argparse.Namespace) -> Networks:
    place = choose_device(args.device)
    return Networks(
        lpips=None if args.lpips is None else LPIPS(args.lpips, place),
        clip=None if args.clip is None else _embedder(args.clip, place),
        i3d=None if args.i3d is None else I3D(args.i3d, place),
    )


def _embedder(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    tower = load_clip_vision(path, torch.float32, device)

    @torch.no_grad()
    def embed(images: Tensor) -> Tensor:
        batches = images.movedim(-1, 1).split(_CLIP_BATCH)
        return torch.cat([tower(batch.to(device) * 2 - 1).float().cpu() for batch in batches])

    return embed


def add_convert_i3d_arguments(parser: argparse.ArgumentParser) -> None:
    text = f"the TorchScript file of I3D. {RISK} Give it only if you trust where it is from"
    parser.add_argument("--trust-code", type=user_path, required=True, metavar="FILE", help=text)
    Options(parser).output("the safetensors file to write", "FILE", "FILE")


def run_convert_i3d(args: argparse.Namespace) -> int:
    refuse_overlap(args.out, args.trust_code)
    with exclusive_file(args.out):
        log.info("Wrote %s", convert_i3d(args.trust_code, args.out, args.overwrite))
    return 0


def add_scenes_arguments(parser: argparse.ArgumentParser) -> None:
    options = Options(parser)
    options.output("folder for the scenes", "scenes of other settings in DIR")
    options.value("--size", at_least(16, LARGEST_SIZE), "image size", 576)
    options.choice("--rig", OFFICIAL_AZIMUTHS_DEG, "sv4d2", "cameras of the training views")
    options.value("--only", str, f"which scenes, of {', '.join(SCENE_NAMES)}", metavar="NAME", nargs="+")
    text = "also write the training views with errors like SV4D 2.0's (1) or X times as large"
    options.value("--corrupt", Within(0, 100, above=True), text, metavar="X")


def run_scenes(args: argparse.Namespace) -> int:
    only = args.only or SCENE_NAMES
    if unknown := [name for name in only if name not in SCENE_NAMES]:
        raise ValueError(f"Expected --only out of {', '.join(SCENE_NAMES)}; got {listed(unknown)}.")
    refuse_odd(args.size)
    rig = Cameras.official(args.rig)
    with exclusive(args.out):
        for seed, scene in enumerate(benchmark_scenes()):
            if scene.name not in only:
                continue
            _write_scene(args, scene, "train", scene.views, rig)
            _write_scene(args, scene, "held_out", scene.views, HELD_OUT)
            _write_scene(args, scene, "held_out_between", scene.between, HELD_OUT)
            if args.corrupt is not None:
                made = {"seed": seed, "strength": args.corrupt, "per_frame": False}
                _write_scene(args, scene, "train_corrupted", scene.views, rig, made)
            log.info("%s: %s", scene.name, scene.what)
    log.info(
        "Make views of %s with --centering none and score them against that folder; score pictures of 4D "
        "scenes against held_out and held_out_between.",
        args.out / "train",
    )
    return 0


def _write_scene(
    args: argparse.Namespace,
    scene: BenchmarkScene,
    part: str,
    render: Callable[[Cameras, int], ViewGrid],
    cameras: Cameras,
    corruption: dict | None = None,
) -> None:
    """Render and write one part of a scene, unless the folder holds just that already."""
    place = args.out / part / scene.name
    settings: dict = {"scene": scene.name, "what": scene.what}
    if corruption is not None:
        settings["corruption"] = corruption
    run = read_run(place)
    known = (run.get("settings"), run.get("size"), run.get("n_views"))
    if known == (settings, args.size, cameras.n_views) and not missing_files(place):
        return
    views = render(cameras, args.size)
    if corruption is not None:
        views = corrupt_views(views, **corruption)
    write_views(place, views, run={"settings": settings, "versions": versions()}, overwrite=args.overwrite)
