"""`sv4d2 export`: scenes and views for other programs; `convert` and `info`: checkpoints."""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import fields

from ..data.reader import crop_of, read_any_views
from ..data.transforms import read_cameras
from ..diffusion.checkpoint import convert_checkpoint, describe_checkpoint
from ..export.scene_export import (
    FORMATS,
    Exported,
    ExportSettings,
    check_place,
    export_scene,
    export_views,
)
from ..files import exclusive, exclusive_file
from ..messages import listed
from ..scene.store import load_scene
from ..scene.tracking.mesh import TEXTURE_SIZES
from ..scene.tracking.surface import RESOLUTIONS
from .common import (
    DTYPES,
    LARGEST_SIZE,
    VARIANTS,
    Options,
    Progress,
    at_least,
    checkpoint_file,
    choose_device,
    listed_times,
    refuse_idle,
    refuse_overlap,
    user_path,
)

log = logging.getLogger(__name__)

_SCENE_SUFFIX = ".safetensors"
_TURNTABLE_PICTURES = ExportSettings().frames


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options = Options(parser)
    default = ExportSettings()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "formats:\n" + "\n".join(f"  {name:<13} {kind.purpose}" for name, kind in FORMATS.items())
    text = "a scene that `sv4d2 refine` wrote; for dataset and colmap also a folder of views"
    options.value("scene", user_path, text, metavar="SCENE")
    options.output("the file or folder to write", "an earlier export at PATH", "PATH")
    parser.add_argument(
        "--format", required=True, choices=tuple(FORMATS), metavar="FORMAT", help="what to write, see below"
    )
    options.device()

    options.input_view()

    times = options.group("the times (default: the frames it was fitted to)")
    times.times(f"; of a turntable, pictures (default {_TURNTABLE_PICTURES})")

    meshes = options.group("meshes")
    meshes.value("--faces", at_least(4, 100_000_000), "triangles at most", default.faces)
    meshes.value(
        "--resolution", at_least(*RESOLUTIONS), "steps of the grid along the object", default.resolution
    )
    meshes.value(
        "--smoothing", at_least(0, 10_000), "iterations of Taubin's filter; 0: none", default.smoothing
    )
    meshes.value("--texture", at_least(*TEXTURE_SIZES), "glb: bake a texture of N x N (needs xatlas)")

    text = "splat-ply: harmonics in the file, the colour's all but the first 0; 0: a quarter of the size"
    options.group("Gaussians").value("--sh-degree", at_least(0, default.sh_degree), text, default.sh_degree)

    pictures = options.group("pictures")
    pictures.value("--size", at_least(2, LARGEST_SIZE), "of pictures", default.size)
    text = "cameras.json or transforms.json (default: the scene's)"
    pictures.value("--cameras", user_path, text, metavar="FILE")


def run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    refuse_overlap(args.out, args.scene, args.cameras)
    refuse_idle(args, add_arguments, *_without_effect(args))
    chosen = FORMATS[args.format]
    is_file = chosen.entries is None or args.out.suffix.lower() in chosen.suffixes
    with (exclusive_file if is_file else exclusive)(args.out):
        check_place(args.out, args.format, args.overwrite)
        made = _views(args) if args.scene.suffix.lower() != _SCENE_SUFFIX else _scene(args)
    for note in made.notes:
        log.info("%s", note)
    names = listed([path.name for path in made.paths])
    place = made.paths[0].parent if len(made.paths) > 1 else args.out.parent
    took = time.perf_counter() - began
    log.info("Wrote %s to %s: %.2f MB in %.0f s", names, place, made.n_bytes() / 1e6, took)
    return 0


def _without_effect(args: argparse.Namespace) -> tuple[set[str], str]:
    """Return the options that do nothing for a format, and the words for it."""
    every = {field.name for field in fields(ExportSettings)} - {"overwrite"}
    if args.scene.suffix.lower() != _SCENE_SUFFIX:
        return every | {"device"}, "for a folder of views"
    used = FORMATS[args.format].settings_for(args.out)
    # --frames gives evenly spread times.
    used |= {"frames"} if "times" in used else frozenset()
    where = f"for a scene with --format {args.format} --out {args.out.name}"
    return every - used | {"input_view"}, where


def _scene(args: argparse.Namespace) -> Exported:
    plain = ("faces", "resolution", "smoothing", "sh_degree", "size", "fps", "overwrite")
    settings = ExportSettings(
        times=listed_times(args),
        frames=args.frames or _TURNTABLE_PICTURES,
        texture=args.texture or 0,
        cameras=None if args.cameras is None else read_cameras(args.cameras),
        **{name: getattr(args, name) for name in plain},
    )
    scene = load_scene(args.scene, choose_device(args.device))
    with Progress(args.format) as progress:
        return export_scene(scene, args.out, args.format, settings, progress)


def _views(args: argparse.Namespace) -> Exported:
    grid = read_any_views(args.scene, number=args.input_view)
    crop = crop_of(args.scene, args.input_view)
    return export_views(grid, args.out, args.format, crop=crop and crop.to_json(), overwrite=args.overwrite)


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    options = Options(parser)
    options.value("source", checkpoint_file, "official checkpoint", metavar="SOURCE")
    options.value("target", user_path, "file to write", metavar="TARGET")
    options.choice("--dtype", ("fp16", "bf16"), "fp16")
    options.choice("--variant", VARIANTS, "auto")
    options.flag("--overwrite", "replace TARGET")


def run_convert(args: argparse.Namespace) -> int:
    refuse_overlap(args.target, args.source)
    with exclusive_file(args.target):
        path = convert_checkpoint(args.source, args.target, DTYPES[args.dtype], args.variant, args.overwrite)
    before, after = args.source.stat().st_size, path.stat().st_size
    log.info("%s: %.2f GB, %.0f %% of %.2f GB", path, after / 1e9, 100 * after / before, before / 1e9)
    return 0


def add_info_arguments(parser: argparse.ArgumentParser) -> None:
    Options(parser).value("file", checkpoint_file, "safetensors file, or tiny", metavar="FILE")


def run_info(args: argparse.Namespace) -> int:
    """Print what the file is; exit code 0 when it can be used, else 2."""
    info = describe_checkpoint(args.file)
    print(info)
    return 2 if info.problem else 0
