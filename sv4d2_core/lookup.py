"""Files and folders found by a name that must not lead out of given folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .messages import cut, listed

_DEPTH = 5


def find_inside(name: str, roots: Sequence[Path], is_one: Callable[[Path], bool], what: str) -> Path:
    """Return the file or folder called ``name`` in the first of ``roots`` that has it, links resolved.

    ``name`` is relative to a root, or a whole path inside one; ``what`` names what is looked for in errors.
    Raises ValueError where it leads out of the roots, FileNotFoundError (with the latest there are) for none.
    """
    if "\0" in name:
        raise ValueError(f"Expected {what}; got {cut(repr(name))}, which holds a NUL byte.")
    places = " or ".join(map(str, roots))
    inside, outside = [], []
    for root in map(Path, map(os.path.realpath, roots)):
        place = Path(os.path.realpath(root / name.strip()))
        (inside if place == root or root in place.parents else outside).append(place)
    for place in inside:
        if is_one(place):
            return place
    if not inside or any(place.exists() for place in outside):
        raise ValueError(
            f"Expected {what} inside {places}; {cut(repr(name))} is or leads (by a link or ..) outside. Give "
            f"its path relative to one of them."
        )
    known = sorted(((p.stat().st_mtime, n) for r in roots for p, n in _below(r, is_one)), reverse=True)
    raise FileNotFoundError(
        f"Expected {what}; there is no {cut(repr(name))} in {places}. Those that exist: "
        f"{listed([found for _, found in known])}."
    )


def _below(root: Path, is_one: Callable[[Path], bool]) -> Iterator[tuple[Path, str]]:
    for folder, folders, files in os.walk(root):
        paths = [Path(folder) / name for name in (*folders, *files)]
        found = [path for path in paths if not path.is_symlink() and is_one(path)]
        yield from ((path, path.relative_to(root).as_posix()) for path in found)
        deep = len(Path(folder).relative_to(root).parts) + 1 >= _DEPTH
        folders[:] = [] if deep else [name for name in folders if Path(folder) / name not in found]
