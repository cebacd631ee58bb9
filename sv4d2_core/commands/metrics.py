"""`sv4d2 metrics`: scores of views against true views, or against themselves, as a report."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from ..cameras import Cameras
from ..data.reader import find_scenes, read_any_views
from ..data.transforms import read_cameras
from ..export.report import refuse_report, write_report
from ..metrics.evaluate import DEFAULT_SHRINKAGE, Networks
from ..metrics.report.tables import SceneComparison, compare, markdown_tables, summaries_of
from ..views import ViewGrid
from .arguments import at_least, listed_cameras
from .common import exclusive, load_networks, options_of, versions

log = logging.getLogger(__name__)

_DEFAULT_NAME = "predicted"
# Times closer than this are one moment.
_SAME_TIME = 1e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "places",
        nargs="*",
        metavar="PREDICTED [REFERENCE]",
        help="views to score, and true views: a folder of `sv4d2 views`, a D-NeRF style data set, a folder "
        "with one clip per view, or a folder of such folders, one per scene",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the report")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[],
        metavar="NAME=DIR",
        help="score several methods side by side; a single place before it is then the REFERENCE",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier report in DIR")

    views = parser.add_argument_group("the views")
    views.add_argument("--frames", type=at_least(1), metavar="N", help="compare only the first N frames")
    views.add_argument("--size", type=at_least(16), metavar="N", help="resize everything to N x N pixels")
    views.add_argument(
        "--cameras", type=Path, metavar="FILE", help="cameras.json or transforms.json of plain clips"
    )
    views.add_argument(
        "--azimuths", type=float, nargs="+", metavar="DEG", help="azimuths of plain clips, one per novel view"
    )
    views.add_argument(
        "--elevations", type=float, nargs="+", metavar="DEG", help="elevations of plain clips (default 0)"
    )

    networks = parser.add_argument_group("networks (local files; nothing is downloaded)")
    networks.add_argument("--lpips", type=Path, metavar="FILE", help="LPIPS weights, for LPIPS")
    networks.add_argument(
        "--clip", type=Path, metavar="FILE", help="an SV4D 2.0 checkpoint or CLIP vision file, for CLIP-S"
    )
    networks.add_argument("--i3d", type=Path, metavar="FILE", help="i3d_torchscript.pt, for FVD")
    networks.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    networks.add_argument(
        "--shrinkage",
        type=float,
        default=DEFAULT_SHRINKAGE,
        metavar="X",
        help="share of the covariances of Frechet distances that is replaced, 0 to 1 (default 0.1)",
    )


def run(args: argparse.Namespace) -> int:
    """Score everything, write the report and return the exit code.

    Raises:
        ValueError, OSError: bad input, places that do not fit together, a full or read-only disk.
    """
    began = time.perf_counter()
    if not 0 <= args.shrinkage <= 1:
        raise ValueError(f"Expected a --shrinkage from 0 to 1; got {args.shrinkage:g}.")
    methods, reference = _places(args)
    scenes = {name: find_scenes(place) for name, place in methods.items()}
    truth = None if reference is None else find_scenes(reference)
    networks = load_networks(args.lpips, args.clip, args.i3d, args.device)
    with exclusive(args.out):
        refuse_report(args.out, args.overwrite)
        comparisons = [
            _compare(args, scene, places, None if truth is None else truth[scene], networks)
            for scene, places in _by_scene(scenes, truth).items()
        ]
        run = {
            "options": options_of(args),
            "versions": versions(),
            "seconds": round(time.perf_counter() - began, 2),
        }
        page = write_report(
            args.out, comparisons, run=run, shrinkage=args.shrinkage, overwrite=args.overwrite
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
    places, methods = [Path(place) for place in args.places], {}
    for text in args.methods:
        name, _, place = text.partition("=")
        name = name.strip()
        if not name or not place or name in methods:
            raise ValueError(
                f"Expected --methods as NAME=DIR with different names; got {text!r}. Write for example "
                f"--methods ours=out/ours SV3D=out/sv3d, after PREDICTED and REFERENCE."
            )
        methods[name] = Path(place)
    if len(places) > 2 or (not places and not methods):
        raise ValueError(
            f"Expected PREDICTED and REFERENCE (or --methods, or PREDICTED alone); got {len(places)} places: "
            f"{', '.join(map(str, places)) or 'none'}."
        )
    if len(places) == 1 and methods:
        return methods, places[0]
    reference = places[1] if len(places) == 2 else None
    if places and _DEFAULT_NAME in methods:
        raise ValueError(
            f"Expected another name than {_DEFAULT_NAME!r} in --methods; that is PREDICTED, {places[0]}. "
            f"Rename the method."
        )
    if places:
        methods = {_DEFAULT_NAME: places[0], **methods}
    return methods, reference


def _by_scene(
    methods: Mapping[str, dict[str, Path]], truth: dict[str, Path] | None
) -> dict[str, dict[str, Path]]:
    """Return per scene the methods that have it; a scene alone is the same scene whatever its folder's name.

    Raises:
        ValueError: a method has none of the scenes.
    """
    wanted = list(truth if truth is not None else max(methods.values(), key=len))
    scenes: dict[str, dict[str, Path]] = {scene: {} for scene in wanted}
    for name, places in methods.items():
        if len(wanted) == 1 and len(places) == 1:
            places = {wanted[0]: next(iter(places.values()))}
        missing = [scene for scene in wanted if scene not in places]
        if len(missing) == len(wanted):
            raise ValueError(
                f"Expected scenes {', '.join(wanted[:5])} of {name}; got {', '.join(list(places)[:5])}. Give "
                f"the scenes' folders equal names."
            )
        if missing:
            log.warning("%s lacks %d of %d scenes: %s", name, len(missing), len(wanted), ", ".join(missing))
        for scene in wanted:
            if scene in places:
                scenes[scene][name] = places[scene]
    return scenes


def _compare(
    args: argparse.Namespace,
    scene: str,
    places: dict[str, Path],
    truth: Path | None,
    networks: Networks,
) -> SceneComparison:
    reference = None if truth is None else read_any_views(truth, _cameras(args, None), None, args.frames)
    predictions = {}
    for name, place in places.items():
        # Plain clips of novel views alone take their input view from the reference, frame by frame.
        grid = read_any_views(place, _cameras(args, reference), reference, args.frames)
        if reference is not None:
            _check_times(grid, reference, place)
        predictions[name] = _fitted(args, grid, place)
    if truth is not None and reference is not None:
        reference = _fitted(args, reference, truth)
    with tqdm(desc=scene, unit="step", dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

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


def _cameras(args: argparse.Namespace, reference: ViewGrid | None) -> Cameras | None:
    """Return the cameras that plain clips were taken with: the options', else the reference's."""
    if args.azimuths is None and args.elevations is not None:
        raise ValueError("Expected --azimuths beside --elevations; got --elevations alone. Give both.")
    if args.cameras is not None and args.azimuths is not None:
        raise ValueError("Expected --cameras or --azimuths; got both. Leave one out.")
    if args.cameras is not None:
        return read_cameras(args.cameras)
    if args.azimuths is not None:
        return listed_cameras(args.azimuths, args.elevations)
    return None if reference is None else reference.cameras
