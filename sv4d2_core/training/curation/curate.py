"""Curates folders of multi-view clips: measures, rejects, rectifies and writes what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...export.folder import write_views
from ...export.staging import all_or_nothing
from ...export.views_reader import read_any_views
from ...views import ViewGrid
from .limits import CurationLimits
from .rectify import rectify
from .report import SceneRecord, as_jpeg, rectification_json, report_json, report_page
from .strip import picture_strip
from .verdict import Verdict, judge

REPORT_FILE, PAGE_FILE = "report.json", "report.html"
_FILES = (REPORT_FILE, PAGE_FILE)
# Says in report.json that this program wrote it.
_KIND = "sv4d2 curation report"


def curate(
    scenes: Mapping[str, Path],
    out: Path,
    limits: CurationLimits,
    *,
    size: int | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    run: Mapping[str, Any] | None = None,
    on_scene: Callable[[SceneRecord], object] | None = None,
) -> list[SceneRecord]:
    """Write the clips that are fit to be learnt from, rectified, and a report of all; return its records.

    ``out``/NAME holds each kept scene as a folder of views and D-NeRF style data set; ``report.html`` and
    ``report.json`` say what became of every scene. All or nothing: after any failure ``out`` is as it was.
    The sources are only read.

    Args:
        scenes: the place of each clip by its name; only one is in memory at a time.
        out: made if missing; files of other origin in it are left alone.
        limits: what is rejected.
        size: of the pictures that are written; None: that of the source, less 1 where it is odd.
        dry_run: write the report only.
        overwrite: replace what an earlier curation wrote to ``out``.
        run: how the report was made, JSON values by name.
        on_scene: called after each clip.

    Raises:
        FileExistsError: what `refuse_out` says.
        OSError: the disk is full or read-only.
    """
    existing = refuse_out(out, scenes, overwrite=overwrite, dry_run=dry_run)
    records = []
    with all_or_nothing(out, existing, REPORT_FILE, _bytes_of(scenes.values())) as staging:
        for name, source in scenes.items():
            grid, verdict = _read_and_judge(source, limits)
            strip = b"" if grid is None else as_jpeg(picture_strip(grid, verdict))
            records.append(SceneRecord(name, str(source), verdict, strip))
            if grid is not None and verdict.kept and not dry_run:
                _write(staging / name, grid, verdict, source, size)
            if on_scene is not None:
                on_scene(records[-1])
        content = {
            "kind": _KIND,
            "dry_run": dry_run,
            "limits": asdict(limits),
            "scenes": report_json(records),
            "run": dict(run or {}),
        }
        (staging / PAGE_FILE).write_text(report_page(records, limits, run or {}), encoding="utf-8")
        (staging / REPORT_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return records


def refuse_out(out: Path, names: Iterable[str], *, overwrite: bool, dry_run: bool) -> list[str]:
    """Return which entries of ``out`` a curation of scenes with these names would replace.

    Raises:
        FileExistsError: it may not: they are of other origin, or ``overwrite`` is off, or a dry run would
            remove scenes.
    """
    report = _read_report(out)
    kept = [] if report.get("dry_run") else [s["name"] for s in report.get("scenes", []) if s["kept"]]
    ours = [*_FILES, *kept] if report else []
    wanted = _FILES if dry_run else (*_FILES, *names)
    if foreign := [name for name in wanted if (out / name).exists() and name not in ours]:
        raise FileExistsError(
            f"{out} holds {', '.join(foreign[:3])}{' ...' if len(foreign) > 3 else ''}, which no curation "
            f"wrote and none replaces. Choose another folder or move them away."
        )
    if report and not overwrite:
        raise FileExistsError(
            f"Expected a folder without a curation; {out / REPORT_FILE} exists already. Choose another "
            f"folder or overwrite it (--overwrite)."
        )
    if kept and dry_run:
        raise FileExistsError(
            f"{out} holds {len(kept)} curated scenes, which a dry run would take the report from. Choose "
            f"another folder for the dry run."
        )
    return [name for name in ours if (out / name).exists()]


def _read_report(out: Path) -> dict[str, Any]:
    """Return what an earlier curation left in ``report.json``, or nothing."""
    try:
        report = json.loads((out / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) and report.get("kind") == _KIND else {}


def _bytes_of(sources: Iterable[Path]) -> int:
    """Return the size of all files at the sources: about what their rectified pictures will take."""
    folders = (source if source.is_dir() else source.parent for source in sources)
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def _read_and_judge(source: Path, limits: CurationLimits) -> tuple[ViewGrid | None, Verdict]:
    """Return a clip and its verdict; a clip that cannot be read is one more that is rejected."""
    try:
        grid = read_any_views(source)
    except (ValueError, OSError) as error:
        return None, Verdict(faults=(f"cannot be read: {error}",))
    return grid, judge(grid, limits)


def _write(folder: Path, grid: ViewGrid, verdict: Verdict, source: Path, size: int | None) -> None:
    if verdict.plan is None:
        raise ValueError("Expected a plan for a scene that is kept.")
    side = size or grid.images.shape[2] // 2 * 2
    settings = {"curated_from": str(source), "rectification": rectification_json(verdict)}
    write_views(folder, rectify(grid, verdict.plan, side), run={"settings": settings})
