"""The output folder of a job: who may write to it, and what it already holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..diffusion.window_store import SettingsDiffer, changed_settings
from ..export.folder import entries_of, missing_files, read_run, refuse_foreign_entries
from ..export.staging import recover

_LOCK = ".lock"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold an output folder for this process alone, made if missing; traces of a failed job go with it.

    Raises:
        ValueError: the folder cannot be written, or another process holds it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = folder / _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"Expected a writable output folder; {folder} is not ({reason}). Choose another --out."
        ) from error
    with file:
        if not _lock(file):
            raise ValueError(
                f"Another process is writing to {folder}. Wait for it to end or choose another --out."
            )
        try:
            recover(folder)
            yield
        finally:
            lock.unlink(missing_ok=True)
            for path in (folder / ".windows", *made):
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()


def _lock(file: IO[str]) -> bool:
    """Return whether this process got the lock; the system releases it when the process ends."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_complete(folder: Path, settings: dict, output: dict, overwrite: bool) -> bool:
    """Return whether a folder holds all results of exactly these settings.

    Args:
        folder: the output folder.
        settings: what determines the sampled latents.
        output: what else determines the files.
        overwrite: whether results of other settings may be replaced.

    Raises:
        SettingsDiffer: it holds results of other settings and ``overwrite`` is off.
        FileExistsError: it holds entries of our names that are not ours.
    """
    refuse_foreign_entries(folder)
    run = read_run(folder)
    if not entries_of(run):
        return False
    known = {**_dict(run.get("settings")), **_dict(run.get("output"))}
    changed = changed_settings(known, {**settings, **output})
    if not changed:
        return not missing_files(folder)
    if not overwrite:
        resampled = "" if set(changed) - output.keys() else " Nothing would be sampled again."
        raise SettingsDiffer(
            f"{folder} holds results with other settings ({', '.join(changed)}). Choose another folder, or "
            f"replace them (--overwrite).{resampled}"
        )
    return False


def refuse_inputs_inside(folder: Path, inputs: Iterable[Path]) -> None:
    """Raise ValueError when writing to ``folder`` would mix with, or replace, what the job reads."""
    folder = Path(os.path.abspath(folder))
    ours = {folder / name for name in entries_of(read_run(folder))}
    for path in inputs:
        resolved = Path(os.path.abspath(path))
        if resolved == folder or ours & {resolved, *resolved.parents}:
            raise ValueError(
                f"Expected an output folder apart from the input; {path} lies in what would be written to "
                f"{folder}. Choose another --out."
            )


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}
