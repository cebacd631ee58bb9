"""Where results lie inside a host's directories: the next free place, and views found by their name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .folder import RUN_FILE

_LISTED = 5
_DEPTH = 4


@contextmanager
def numbered_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new empty folder ``parent``/``name``_NNNNN with the next free number; gone if the block fails.

    Making the folder is what claims the number, so that of several processes none gets another's folder.

    Raises:
        OSError: the disk is full or read-only.
    """
    folder = _claimed(parent, name, "", Path.mkdir)
    try:
        yield folder
    except BaseException:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise


def numbered_file(parent: Path, name: str, suffix: str) -> Path:
    """Return a new empty file ``parent``/``name``_NNNNN``suffix`` with the next free number.

    Raises:
        OSError: the disk is full or read-only.
    """
    return _claimed(parent, name, suffix, lambda place: place.touch(exist_ok=False))


def find_views(name: str, roots: Sequence[Path]) -> Path:
    """Return the folder of views called ``name`` inside the first of ``roots`` that has it, links resolved.

    Args:
        name: path relative to a root.
        roots: where to look, in this order.

    Raises:
        ValueError: the path leads out of the roots.
        FileNotFoundError: no root has such a folder with a ``run.json``; the text lists some that are there.
    """
    if "\0" in name:
        raise ValueError(f"Expected the name of a folder; got {name!r}, which holds a NUL byte.")
    inside, outside = [], []
    for root in map(Path.resolve, roots):
        folder = (root / name.strip()).resolve()
        (inside if folder == root or root in folder.parents else outside).append(folder)
    for folder in inside:
        if (folder / RUN_FILE).is_file():
            return folder
    if not inside or any(folder.exists() for folder in outside):
        raise ValueError(
            f"Expected a folder inside {' or '.join(map(str, roots))}; {name!r} is or leads (by a link or "
            f"..) outside. Give its path relative to one of them."
        )
    found = _newest_views(roots)
    listing = f"Folders of views that exist: {', '.join(found)}." if found else "There are none yet."
    raise FileNotFoundError(
        f"Expected a folder of views; {name!r} is none in {' or '.join(map(str, roots))} (it has no "
        f"{RUN_FILE}). {listing}"
    )


def _claimed(parent: Path, name: str, suffix: str, make: Callable[[Path], None]) -> Path:
    """Return the place with the next free number, which making it claims: that fails where it exists."""
    taken = re.compile(re.escape(name) + r"_(\d+)" + re.escape(suffix), re.IGNORECASE)
    parent.mkdir(parents=True, exist_ok=True)
    number = max((int(m[1]) for path in parent.iterdir() if (m := taken.fullmatch(path.name))), default=0)
    while True:
        number += 1
        place = parent / f"{name}_{number:05d}{suffix}"
        with suppress(FileExistsError):
            make(place)
            return place


def _newest_views(roots: Sequence[Path]) -> list[str]:
    """Return a few folders of views relative to their root, the latest first."""
    found = []
    for root in roots:
        for place, folders, files in os.walk(root):
            relative = Path(place).relative_to(root)
            if RUN_FILE in files:
                found.append(((Path(place) / RUN_FILE).stat().st_mtime, relative.as_posix()))
            if RUN_FILE in files or len(relative.parts) >= _DEPTH:
                folders.clear()
    return [name for _, name in sorted(found, reverse=True)[:_LISTED]]
