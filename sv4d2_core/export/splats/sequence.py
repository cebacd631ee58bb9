"""One file of Gaussians for each frame, numbered, as players of splat sequences read them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...fourd.splatting import GaussiansAt
from ..own_entries import replaceable
from ..staging import all_or_nothing, recover
from .frames import SPLAT_FRAME
from .glb import splat_glb
from .ply import splat_ply
from .splat import splat_rows

SEQUENCE_FILE = "sequence.json"
_NAMES = re.compile(r"sequence\.json|splat_\d{5}\.(ply|splat|glb)")
_CONTENTS = {"ply": splat_ply, "splat": splat_rows, "glb": splat_glb}
SEQUENCE_KINDS = tuple(_CONTENTS)
_WORLD_FRAME = "x right, y up, z towards the input camera: our world, which is glTF's"
# Of a frame that is not known yet, for the text about a full disk.
_TYPICAL_BYTES = 2_000_000


def write_splat_sequence(
    folder: str | Path,
    frames: Iterable[GaussiansAt],
    times: Sequence[float],
    fps: float,
    *,
    kind: str = "ply",
    overwrite: bool = False,
) -> list[Path]:
    """Write ``splat_00000.ply`` and so on, and ``sequence.json`` with their rate and times.

    All or nothing. The frames are taken and written one by one, so that one is in memory at a time.

    Args:
        folder: made if missing; files of other names in it are left alone.
        frames: the Gaussians in our world, one per time: ``(gaussians_at(scene, t) for t in times)``.
        times: [T] in 0..1, rising.
        fps: frames per second at which to play them.
        kind: ply, splat or glb.
        overwrite: replace what an earlier call wrote here; entries of other origin are never touched.

    Returns:
        The files, ``sequence.json`` last.

    Raises:
        FileExistsError: ``folder`` holds a sequence already and ``overwrite`` is off, or files of these names
            that this function did not make.
        ValueError: no times, another number of frames than times, a rate that is not positive, an unknown
            kind, or what `checked` says.
        OSError: the disk is full or read-only; the text says which folder and what to do.
    """
    folder = Path(folder)
    if kind not in _CONTENTS:
        raise ValueError(f"Expected a kind of file among {', '.join(SEQUENCE_KINDS)}; got {kind!r}.")
    if not times or not 0 < fps < float("inf"):
        raise ValueError(f"Expected at least one time and a positive rate; got {len(times)} and {fps:g}.")
    recover(folder)
    existing = replaceable(folder, SEQUENCE_FILE, _NAMES, overwrite)
    names = [f"splat_{t:05d}.{kind}" for t in range(len(times))]
    names.append(SEQUENCE_FILE)
    about = {
        "format": kind,
        "fps": fps,
        "times": list(times),
        "axes": _WORLD_FRAME if kind == "glb" else SPLAT_FRAME,
        "entries": names,
    }
    with all_or_nothing(folder, existing, SEQUENCE_FILE, len(times) * _TYPICAL_BYTES) as staging:
        for name, gaussians in zip(names[:-1], _exactly(frames, len(times)), strict=True):
            (staging / name).write_bytes(_CONTENTS[kind](gaussians))
        (staging / SEQUENCE_FILE).write_text(json.dumps(about, indent=2, allow_nan=False) + "\n")
    return [folder / name for name in names]


def _exactly(frames: Iterable[GaussiansAt], count: int) -> Iterable[GaussiansAt]:
    """Yield the frames. Raises ValueError unless there are ``count``."""
    given = 0
    for given, gaussians in enumerate(frames, start=1):
        if given <= count:
            yield gaussians
    if given != count:
        raise ValueError(f"Expected one set of Gaussians per time, {count}; got {given}.")
