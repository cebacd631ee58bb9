"""Writes one exported file: whole or not at all, and over an older one only when told to."""

from __future__ import annotations

import errno
import math
from pathlib import Path

from ...whole_file import write_whole
from ..staging import DISK_FULL


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise FileExistsError if something stands at ``path`` that may not be replaced."""
    if path.is_dir():
        raise FileExistsError(f"Expected the name of a file; {path} is a folder. Give a name inside it.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already. Choose another name or overwrite it (--overwrite).")


def write_file(path: Path, content: bytes, overwrite: bool) -> int:
    """Write ``content`` and return its size in bytes; missing folders above ``path`` are made.

    Raises:
        FileExistsError: as `refuse_existing`.
        OSError: the disk is full or read-only; the text says where and what to do.
    """
    refuse_existing(path, overwrite)
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except BaseException as error:
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, OSError):
            raise OSError(error.errno, _explanation(error, path, len(content))) from error
        raise
    return len(content)


def _explanation(error: OSError, path: Path, size: int) -> str:
    if error.errno in DISK_FULL:
        return (
            f"Expected {math.ceil(size / 1e6)} MB of space for {path}; the disk, quota or file size limit is "
            f"exhausted. Nothing was kept there. Free some space or choose a folder on another disk."
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"Expected a folder; a file stands at {path.parent} or above it. Choose another folder."
    return (
        f"Expected to write {path}; the system refuses ({error.strerror or error}). Choose another folder or "
        f"change its permissions."
    )
