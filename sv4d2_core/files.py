"""Files as a whole: written completely or not at all, claimed, locked, found, fingerprinted, removed."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError

from .messages import ExplainedError, listed, without_number

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

# Allocators whose errors have no class of their own: a CPU's, Apple's, Intel's, cuBLAS and cuDNN.
_OUT_OF_MEMORY = re.compile(
    "out of memory|outofmemory|can(no|')t allocate memory|not enough memory|alloc_failed", re.IGNORECASE
)
_CUDA_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation, as PyTorch's newer AcceleratorError has it


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, the computer's or any device's."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, (RuntimeError, SafetensorError)):
        return False
    code = getattr(error, "error_code", None)
    return code == _CUDA_OUT_OF_MEMORY or _OUT_OF_MEMORY.search(str(error)) is not None


@contextmanager
def writing_whole(path: Path, overwrite: bool = True, needed_bytes: int = 0) -> Iterator[BinaryIO]:
    """Yield a file that gets its name once it is whole on the disk; an older one stays until then.

    Missing folders above it are made. Of a link its target is written. Raises FileExistsError as
    `refuse_existing`, OSError: a full disk (told ``needed_bytes``) or a read-only one, and what to do.
    """
    path = Path(os.path.realpath(path))
    refuse_existing(path, overwrite)
    made = _missing(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with _explaining(path, needed_bytes):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _open_living(temporary) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if sys.platform == "win32":  # renames nothing that is open
                    file.close()
                _take_name(temporary, path, overwrite)
        finally:
            with suppress(NotADirectoryError):
                temporary.unlink(missing_ok=True)
            remove_empty(*made)


_TRIES = 5


def _open_living(path: Path) -> BinaryIO:
    """Return a new file that `remove_unfinished` leaves alone as long as it is open."""
    for _ in range(_TRIES):
        file = path.open("xb")
        if sys.platform == "win32":  # removes nothing that is open
            return file
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():  # else it was taken for a dead one's before it was locked
            return file
        file.close()
    raise OSError(f"Expected {path.parent} to keep a new file; it is removed at once. Choose another folder.")


def _take_name(temporary: Path, path: Path, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(temporary, path)  # unlike a rename, it replaces nothing that has come in between
            return
        except FileExistsError:
            refuse_existing(path, overwrite)
            raise
        except OSError:
            refuse_existing(path, overwrite)  # a file system without hard links
    temporary.replace(path)


@contextmanager
def writing_by_name(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Yield a name with the suffix of ``path`` for libraries that only write to names, as `writing_whole`."""
    with writing_whole(path, overwrite) as file:
        named = Path(file.name + path.suffix)
        try:
            yield named
            with named.open("rb") as content:
                shutil.copyfileobj(content, file)
        finally:
            named.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, overwrite: bool = True) -> int:
    """Write a file as `writing_whole` and return its size in bytes."""
    with writing_whole(path, overwrite, len(content)) as file:
        return file.write(content)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise FileExistsError if something stands at ``path``, or where a link leads, that is not replaced."""
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise FileExistsError(f"Expected the name of a file; {path} is a folder. Give a name inside it.")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"Expected the name of a file; {path} is a device or a pipe. Choose another.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already. Choose another name or overwrite it (--overwrite).")


@contextmanager
def _explaining(place: Path, needed_bytes: int) -> Iterator[None]:
    """Say what to do where ``place`` cannot be written."""
    try:
        yield
    except OSError as error:
        in_the_way = set() if place.parent.is_dir() else {errno.EEXIST, errno.ENOTDIR}
        if error.errno not in DISK_FULL | _READ_ONLY | in_the_way:
            raise
        raise ExplainedError(error.errno, _explanation(error, place, needed_bytes)) from error


@contextmanager
def if_possible(what: str) -> Iterator[None]:
    """Let a job go on, and say so, where something cannot be written that its result does not need."""
    try:
        yield
    except OSError as error:
        log.warning("%s is not kept: %s", what, without_number(error))


def remove(*places: Path) -> None:
    """Remove files and whole folders that may be there; of a folder what can go."""
    for place in places:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


def remove_unfinished(folder: Path, name: str = "") -> None:
    """Remove what killed processes have left half written in a folder, if any, of all files or of one."""
    of = re.escape(name) if name else ".+"
    unfinished = re.compile(rf"(\.{of}\.[0-9a-f]{{8}}\.part)(\.\w+)?")
    for path in folder.glob(".*"):
        if not (match := unfinished.fullmatch(path.name)):
            continue
        with suppress(OSError):  # a living process holds it, or has just ended it
            held = folder / match[1]
            if sys.platform == "win32" or not held.exists():
                held.unlink(missing_ok=True)  # refused while it is open, as what stands beside it may not be
                path.unlink(missing_ok=True)
                continue
            with held.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty temporary folder for libraries that only write to or read from names."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


_SMALL, _BLOCK, _STRIDE = 2**26, 2**12, 2**22


def file_fingerprint(path: Path) -> str:
    """Return a hash of a file: all of a small one, of a large one a block out of every 4 MiB."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_SMALL))
        for start in range(_SMALL, size, _STRIDE):
            file.seek(start)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:16]


def fingerprint_of(*values: object) -> str:
    """Return a hash of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def seed_of(*values: object) -> int:
    """Return a seed for torch's generator, which takes 32 bits, from JSON values."""
    return int(fingerprint_of(*values)[:8], 16)


@contextmanager
def claimed(parent: Path, name: str, suffix: str = "", *, numbered: bool = True) -> Iterator[Path]:
    """Yield a new empty place in ``parent``, made if missing: a file where there is a suffix, else a folder.

    A number is added to the name (name_00001), higher than that of anything of this name whatever its suffix;
    without ``numbered`` only where the name is taken. Making the place claims it, so that no two processes
    get the same. Where it is still empty after the block, it is removed.
    """
    parent.mkdir(parents=True, exist_ok=True)
    taken = re.compile(re.escape(name) + r"_(\d+)(\.\w+)?", re.IGNORECASE)
    number = max((int(m[1]) for path in parent.iterdir() if (m := taken.fullmatch(path.name))), default=0)
    wanted = parent / (f"{name}_{number + 1:05d}{suffix}" if numbered else name + suffix)
    while True:
        with suppress(FileExistsError):
            wanted.touch(exist_ok=False) if suffix else wanted.mkdir()
            break
        number += 1
        wanted = parent / f"{name}_{number:05d}{suffix}"
    try:
        yield wanted
    finally:
        if suffix and wanted.is_file() and not wanted.stat().st_size:
            wanted.unlink()
        remove_empty(wanted)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold an output folder for this process alone, made if missing; removed again if left empty.

    What a killed process left half replaced is undone. Raises ValueError: the folder cannot be written, or
    another process holds it.
    """
    with _held(folder, folder / _LOCK):
        recover(folder)
        remove_unfinished(folder)
        yield


@contextmanager
def exclusive_file(path: Path, *beside: Path) -> Iterator[None]:
    """Hold the place of a file to be written, and of those ``beside`` it, as `exclusive` holds a folder."""
    path = Path(os.path.realpath(path))
    with _held(path, path.with_name(f".{path.name}{_LOCK}")):
        for one in (path, *beside):
            remove_unfinished(one.parent, one.name)
        yield


_LOCK = ".sv4d2.lock"


@contextmanager
def _held(place: Path, lock_file: Path) -> Iterator[None]:
    """Hold a lock that lies beside what it is for, so that it holds wherever that is seen."""
    from filelock import FileLock, Timeout

    made = _missing(lock_file.parent)
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(Path(os.path.realpath(lock_file)), is_singleton=True)  # a thread may take it again
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"Another process is writing to {place}. Wait for it to end or choose another --out."
        ) from error
    except OSError as error:
        remove_empty(*made)
        raise ExplainedError(error.errno, _explanation(error, place, 0)) from error
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            # While it is held: who took the same file up before sees that its name is gone, and tries again.
            # Windows refuses, and removes it with the release.
            with suppress(PermissionError):
                lock_file.unlink(missing_ok=True)
        lock.release()
        remove_empty(*made)


STAGING_NAME = ".partial"
_SWAP_FILE = "swap.json"
_STAGED = re.compile(rf"new|old|{re.escape(_SWAP_FILE)}|\.{re.escape(_SWAP_FILE)}\..*")

# A file size limit (EFBIG) and a quota (EDQUOT, not known to every system) look the same to the user.
DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def all_or_nothing(
    folder: Path,
    replaced: Callable[[], Sequence[str]],  # names the entries that are replaced; may refuse
    marker: str,
    needed_bytes: int,
) -> Iterator[Path]:
    """Yield an empty staging folder whose entries take their places in ``folder`` when the block ends well.

    On any failure, an interrupt included, ``folder`` is as it was. The new entries replace the ``replaced``
    ones, asked for once the folder is held, when all are complete; ``marker``, the file whose presence says
    so, goes first and comes last. Raises OSError for a full (told ``needed_bytes``, an upper estimate) or
    read-only disk.
    """
    staging = folder / STAGING_NAME
    with exclusive(folder), _explaining(folder, needed_bytes):
        existing = replaced()
        try:
            (staging / "new").mkdir(parents=True)
            (staging / "old").mkdir()
            yield staging / "new"
            _swap(folder, staging, existing, marker)
            (staging / "new").rmdir()  # without it nothing is undone
        finally:
            recover(folder)


def recover(folder: Path) -> None:
    """Undo what a program that failed or was killed while it replaced entries has left of that in ``folder``.

    The list of entries may be of anybody: only plain names count, and a link is never followed.
    """
    staging = folder / STAGING_NAME
    new, old = staging / "new", staging / "old"
    is_link = staging.is_symlink()
    found = [entry.name for entry in staging.iterdir()] if staging.is_dir() and not is_link else []
    if foreign := [name for name in found if not _STAGED.fullmatch(name)]:
        raise FileExistsError(
            f"Expected {staging} to be free for unfinished results; it holds {listed(foreign)}, which this "
            f"program did not write. Move it away or choose another folder."
        )
    there = [place for place in (staging, new, old) if os.path.lexists(place)]
    if any(place.is_symlink() or not place.is_dir() for place in there):
        log.warning("Dropped %s: it does not hold what an unfinished job leaves there.", staging)
    elif there == [staging, new, old]:
        for name in plain_names(json_in(staging / _SWAP_FILE)):
            if os.path.lexists(folder / name) and not os.path.lexists(new / name):
                # Moved in already; parking it in the staging folder removes it with that.
                (folder / name).rename(new / name)
        for path in old.iterdir():
            if not os.path.lexists(folder / path.name):
                path.rename(folder / path.name)
    _drop(staging)


def _drop(staging: Path) -> None:
    """Remove a staging folder of which nothing is to be undone any more; killed here, that stays so."""
    if staging.is_dir() and not staging.is_symlink():
        remove(staging / _SWAP_FILE)
    remove(staging)


def _swap(folder: Path, staging: Path, existing: Sequence[str], marker: str) -> None:
    """Move the ``existing`` entries out of ``folder`` and the new ones in; `recover` undoes a part of it."""
    fresh = [path.name for path in (staging / "new").iterdir()]
    write_whole(staging / _SWAP_FILE, json.dumps(fresh).encode())
    # Renames within one file system need no space, but a file held open stops them on Windows.
    for name in sorted(existing, key=lambda name: name != marker):
        (folder / name).rename(staging / "old" / name)
    for name in sorted(fresh, key=lambda name: name == marker):
        (staging / "new" / name).rename(folder / name)


def replaceable(
    folder: Path,
    marker: str,
    names: re.Pattern[str],
    overwrite: bool,
    *,
    foreign: str = "which no export of this kind wrote and which is never replaced",
) -> list[str]:
    """Return which entries of ``folder`` a new export of this kind replaces, none in a new folder.

    Exports call their entries ``names`` and list them in the JSON file ``marker`` under "entries". Raises
    FileExistsError for such names from elsewhere (which errors call ``foreign``), an export of another kind
    under the same marker, or an earlier export where ``overwrite`` is off.
    """
    if not folder.is_dir():
        return []
    found = sorted(entry.name for entry in folder.iterdir() if names.fullmatch(entry.name))
    ours = _listed(folder / marker)
    if others := [name for name in found if name not in ours]:
        raise FileExistsError(
            f"{folder} holds {listed(others)}, {foreign}. Choose another folder or move them away."
        )
    if kept := [name for name in ours if not names.fullmatch(name) and (folder / name).exists()]:
        raise FileExistsError(
            f"{folder} holds an earlier export of another kind ({kept[0]}). Choose another folder."
        )
    if found and not overwrite:
        raise FileExistsError(
            f"Expected a new folder; {folder / found[0]} exists already. Choose another one or overwrite it "
            f"(--overwrite)."
        )
    return found


def _listed(marker: Path) -> list[str]:
    listed = json_in(marker)
    return plain_names(listed.get("entries") if isinstance(listed, dict) else None)


LARGEST_JSON = 2**25  # bytes; read, it takes up to fifty times as much memory


def json_in(file: Path) -> object:
    """Return a JSON file's value, None for a file that is missing, damaged or above 32 MiB."""
    try:
        if not file.is_file() or file.stat().st_size > LARGEST_JSON:
            return None
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


# In a name; elsewhere than on Windows a colon and a backslash are letters like others.
_LEADS_ELSEWHERE = r"[/\\\0:]" if sys.platform == "win32" else r"[/\0]"


def plain_names(value: object) -> list[str]:
    """Return those of a list's values that can be names of entries, which lead nowhere else."""
    names = [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
    return [name for name in names if name not in ("", ".", "..") and not re.search(_LEADS_ELSEWHERE, name)]


def _missing(folder: Path) -> list[Path]:
    """Return which of a folder and those above it are not there yet, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty(*folders: Path) -> None:
    """Remove folders, one after the other, as far as nothing is in them."""
    for folder in folders:
        with suppress(OSError):  # not empty, or another process was faster
            folder.rmdir()


def _explanation(error: OSError, place: Path, needed_bytes: int) -> str:
    if error.errno in DISK_FULL:
        space = f"up to {math.ceil(needed_bytes / 1e6)} MB of space" if needed_bytes else "space"
        return (
            f"Expected {space} in {place}; the disk, quota or file size limit is exhausted. Nothing was kept "
            f"there. Free some space or choose a folder on another disk."
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"Expected a folder; a file stands at {place} or above it. Choose another folder."
    return (
        f"Expected to write {place}; the system refuses ({error.strerror or error}). Choose another folder "
        f"or change its permissions."
    )
