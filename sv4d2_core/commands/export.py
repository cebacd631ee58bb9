"""`sv4d2 export`: a 4D scene, or views, as files that other programs open."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from tqdm import tqdm

from ..data.reader import read_any_views
from ..data.transforms import read_cameras
from ..data.views_folder import read_crop
from ..export.scene_export import FORMATS, Exported, ExportSettings, check_place, export_scene, export_views
from ..scene.store import load_scene
from .arguments import at_least, listed_times, positive_number
from .common import choose_device

log = logging.getLogger(__name__)

_SCENE_SUFFIX = ".safetensors"
_TURNTABLE_PICTURES = ExportSettings().frames


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    default = ExportSettings()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "formats:\n" + "\n".join(f"  {name:<13} {kind.purpose}" for name, kind in FORMATS.items())
    parser.add_argument(
        "scene",
        type=Path,
        metavar="SCENE",
        help="a scene that `sv4d2 refine` wrote; for dataset and colmap also a folder of views",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="the file or folder to write")
    parser.add_argument(
        "--format", required=True, choices=tuple(FORMATS), metavar="FORMAT", help="what to write, see below"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export at PATH")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")

    times = parser.add_argument_group("the times (default: the frames it was fitted to)")
    times.add_argument("--times", type=float, nargs="+", metavar="T", help="from 0 to 1, rising")
    times.add_argument(
        "--frames",
        type=at_least(1),
        metavar="N",
        help=f"N times evenly from 0 to 1; of a turntable, pictures (default {_TURNTABLE_PICTURES})",
    )
    times.add_argument(
        "--fps", type=positive_number, metavar="N", help="frames per second (default: the scene's own pace)"
    )

    meshes = parser.add_argument_group("meshes")
    meshes.add_argument(
        "--faces",
        type=at_least(4),
        default=default.faces,
        metavar="N",
        help="triangles at most (default %(default)s)",
    )
    meshes.add_argument(
        "--resolution",
        type=at_least(16),
        default=default.resolution,
        metavar="N",
        help="steps of the grid along the object (default %(default)s)",
    )
    meshes.add_argument(
        "--smoothing",
        type=at_least(0),
        default=default.smoothing,
        metavar="N",
        help="iterations of Taubin's filter; 0: none (default %(default)s)",
    )
    meshes.add_argument(
        "--texture",
        type=at_least(64),
        default=0,
        metavar="N",
        help="glb: bake a texture of N x N (needs xatlas)",
    )

    pictures = parser.add_argument_group("pictures")
    pictures.add_argument(
        "--size",
        type=at_least(2),
        default=default.size,
        metavar="N",
        help="of pictures (default %(default)s)",
    )
    pictures.add_argument(
        "--cameras", type=Path, metavar="FILE", help="cameras.json or transforms.json (default: the scene's)"
    )


def run(args: argparse.Namespace) -> int:
    """Export and return the exit code.

    Raises:
        ValueError, OSError: bad input, something that is there already, a full or read-only disk.
    """
    began = time.perf_counter()
    check_place(args.out, args.format, args.overwrite)
    try:
        made = _views(args) if args.scene.suffix != _SCENE_SUFFIX else _scene(args)
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
    for note in made.notes:
        log.info("%s", note)
    names = ", ".join(path.name for path in made.paths[:3]) + (" ..." if len(made.paths) > 3 else "")
    place = made.paths[0].parent if len(made.paths) > 1 else args.out.parent
    took = time.perf_counter() - began
    log.info("Wrote %s to %s: %.2f MB in %.0f s", names, place, made.n_bytes() / 1e6, took)
    return 0


def _scene(args: argparse.Namespace) -> Exported:
    settings = _settings(args)
    scene = load_scene(args.scene, choose_device(args.device))
    with tqdm(desc=args.format, unit="step", dynamic_ncols=True) as bar:

        def progress(done: int, total: int, _preview: None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return export_scene(scene, args.out, args.format, settings, progress)


def _views(args: argparse.Namespace) -> Exported:
    grid = read_any_views(args.scene)
    crop = read_crop(args.scene) if args.scene.is_dir() else None
    return export_views(grid, args.out, args.format, crop=crop and crop.to_json(), overwrite=args.overwrite)


def _settings(args: argparse.Namespace) -> ExportSettings:
    return ExportSettings(
        times=listed_times(args.times, args.frames),
        frames=args.frames or _TURNTABLE_PICTURES,
        faces=args.faces,
        resolution=args.resolution,
        smoothing=args.smoothing,
        texture=args.texture,
        size=args.size,
        cameras=None if args.cameras is None else read_cameras(args.cameras),
        fps=args.fps,
        overwrite=args.overwrite,
    )
