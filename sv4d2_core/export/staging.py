"""Writes several files into a folder as one step: all of them appear, or none does."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

STAGING_NAME = ".partial"
_SWAP_FILE = "swap.json"

# A file size limit (EFBIG) and a quota (EDQUOT, not known to every system) look the same to the user.
DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def all_or_nothing(folder: Path, existing: Sequence[str], marker: str, needed_bytes: int) -> Iterator[Path]:
    """Yield an empty staging folder whose entries take their places in ``folder`` when the block ends well.

    On any failure, an interrupt included, the staging folder is removed and ``folder`` is as it was.

    Args:
        folder: made if missing.
        existing: names in ``folder`` that the new entries replace; kept until all new ones are complete.
        marker: the file whose presence says that the others are complete: the first to go, the last to come.
        needed_bytes: an upper estimate, told to the user when the disk is full.

    Raises:
        OSError: the disk is full or read-only; the text names the folder and what to do.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    staging = folder / STAGING_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recover(folder)
        (staging / "new").mkdir(parents=True)
        (staging / "old").mkdir()
        yield staging / "new"
        _swap(folder, staging, existing, marker)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        if isinstance(error, OSError) and (text := _explanation(error, folder, needed_bytes)):
            raise OSError(error.errno, text) from error
        raise
    shutil.rmtree(staging, ignore_errors=True)


def recover(folder: Path) -> None:
    """Bring ``folder`` back to what it was before a program that was killed began to replace entries."""
    staging = folder / STAGING_NAME
    if not staging.is_dir():
        return
    swap = staging / _SWAP_FILE
    if swap.is_file():
        for name in json.loads(swap.read_text()):
            if not (staging / "new" / name).exists():
                # Moved in already; parking it in the staging folder removes it with that.
                (folder / name).rename(staging / "new" / name)
        for path in (staging / "old").iterdir():
            path.rename(folder / path.name)
    shutil.rmtree(staging)


def _swap(folder: Path, staging: Path, existing: Sequence[str], marker: str) -> None:
    """Move the ``existing`` entries out of ``folder`` and the new ones in; undo all of it if one move fails.

    Renames within one file system need no space, but a file held open stops them on Windows.
    """
    fresh = [path.name for path in (staging / "new").iterdir()]
    (staging / _SWAP_FILE).write_text(json.dumps(fresh))
    moves = [
        (folder / name, staging / "old" / name) for name in sorted(existing, key=lambda name: name != marker)
    ]
    moves += [
        (staging / "new" / name, folder / name) for name in sorted(fresh, key=lambda name: name == marker)
    ]
    try:
        for source, target in moves:
            source.rename(target)
    except BaseException:
        for source, target in reversed(moves):
            if target.exists() and not source.exists():
                target.rename(source)
        raise


def _explanation(error: OSError, folder: Path, needed_bytes: int) -> str:
    """Return what the user should do, or "" where the cause is not known."""
    if error.errno in DISK_FULL:
        megabytes = math.ceil(needed_bytes / 1e6)
        return (
            f"Expected up to {megabytes} MB of space in {folder}; the disk, quota or file size limit is "
            f"exhausted. Nothing was kept there. Free some space or choose a folder on another disk."
        )
    if error.errno in _READ_ONLY:
        return (
            f"Expected a writable folder; {folder} refuses to be written ({error.strerror or error}). Choose "
            f"another folder or change its permissions."
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR) and not folder.is_dir():
        return f"Expected a folder; a file stands at {folder} or above it. Choose another folder."
    return ""
