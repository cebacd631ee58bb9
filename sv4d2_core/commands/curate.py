"""`sv4d2 curate`: multi-view clips that are fit to be learnt from, rectified, with a report of all."""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

from ..data.reader import find_scenes
from ..training.curate import PAGE_FILE, curate
from ..training.curation import CurationLimits
from .arguments import at_least
from .common import exclusive, options_of, versions

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "places",
        nargs="+",
        type=Path,
        metavar="VIEWS",
        help="a folder of `sv4d2 views`, a D-NeRF style data set, or a folder of such folders, one per scene",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for what is kept")
    parser.add_argument(
        "--size", type=at_least(16), metavar="N", help="size of what is written (default: as it is)"
    )
    parser.add_argument("--dry-run", action="store_true", help="write the report only")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier curation in DIR")
    limits = parser.add_argument_group("limits, beyond which a clip is rejected")
    for field in fields(CurationLimits):
        said = field.metadata["help"].replace("%", "%%")
        limits.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=at_least(1) if field.name == "least_frames" else float,
            default=field.default,
            metavar="X",
            help=f"{said} (default {field.default:g})",
        )


def run(args: argparse.Namespace) -> int:
    """Curate the clips and return the exit code.

    Raises:
        ValueError, OSError: no clips, scenes of one name, an output folder among the sources or in use.
    """
    began = time.perf_counter()
    if args.size is not None and args.size % 2:
        raise ValueError(f"Expected an even --size, as videos need; got {args.size}.")
    limits = CurationLimits(**{field.name: getattr(args, field.name) for field in fields(CurationLimits)})
    scenes = _scenes(args.places)
    _refuse_sources(args.out, list(scenes.values()))
    options = {**options_of(args), "places": list(map(str, args.places))}
    with exclusive(args.out), tqdm(total=len(scenes), unit="clip", disable=None) as bar:
        records = curate(
            scenes,
            args.out,
            limits,
            size=args.size,
            dry_run=args.dry_run,
            overwrite=args.overwrite,
            run={"options": options, "versions": versions()},
            on_scene=lambda _: bar.update(),
        )
    for record in records:
        if not record.verdict.kept:
            log.info("%s rejected: %s", record.name, "; ".join(record.verdict.reasons))
    kept = sum(record.verdict.kept for record in records)
    log.info(
        "%d of %d clips %s in %.0f s. Look at %s",
        kept,
        len(records),
        "would be kept" if args.dry_run else "kept",
        time.perf_counter() - began,
        args.out / PAGE_FILE,
    )
    return 0


def _scenes(places: list[Path]) -> dict[str, Path]:
    """Return the place of every scene by its name; where names repeat, that of the place goes before."""
    found = [(place, name, scene) for place in places for name, scene in find_scenes(place).items()]
    names = [name for _, name, _ in found]
    scenes: dict[str, Path] = {}
    for place, name, scene in found:
        unique = name if names.count(name) == 1 else f"{place.resolve().name}_{name}"
        if unique in scenes:
            raise ValueError(
                f"Expected scenes with different names; {scenes[unique]} and {scene} would both be written "
                f"to {unique}. Rename one of them."
            )
        scenes[unique] = scene
    return scenes


def _refuse_sources(out: Path, sources: list[Path]) -> None:
    """Raise ValueError when what would be written could mix with what is read."""
    out = out.resolve()
    for source in (path.resolve() for path in sources):
        if out in (source, *source.parents) or source in out.parents:
            raise ValueError(
                f"Expected an output folder apart from the sources; {source} and {out} lie in one another. "
                f"Choose another --out."
            )
