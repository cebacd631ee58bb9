"""Files as a whole: written completely or not at all, claimed, locked, found, fingerprinted, removed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

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
    return _OUT_OF_MEMORY.search(str(error)) is not None or (
        getattr(error, "error_code", None) == _CUDA_OUT_OF_MEMORY
    )


@contextmanager
def writing_whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that gets its name once it is whole on the disk; an older one stays until then."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes) -> None:
    with writing_whole(path) as file:
        file.write(content)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise FileExistsError if something stands at ``path`` that may not be replaced."""
    if path.is_dir():
        raise FileExistsError(f"Expected the name of a file; {path} is a folder. Give a name inside it.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already. Choose another name or overwrite it (--overwrite).")


def write_file(path: Path, content: bytes, overwrite: bool) -> int:
    """Write ``content`` and return its size in bytes; missing folders above ``path`` are made.

    Raises FileExistsError (`refuse_existing`), or OSError: a full or read-only disk, and what to do.
    """
    refuse_existing(path, overwrite)
    made = _missing(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except BaseException as error:
        _remove_empty(*made)
        if isinstance(error, OSError):
            raise OSError(error.errno, _explanation(error, path, len(content))) from error
        raise
    return len(content)


def remove(*places: Path) -> None:
    """Remove files and whole folders that may be there; of a folder what can go."""
    for place in places:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes have left half written in a folder."""
    remove(*folder.glob(".*.part"))


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty temporary folder for libraries that only write to or read from names."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def write_tensors(path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict) -> None:
    """Write tensors and, under the metadata's key ``kind``, JSON values; complete or not at all."""
    stored = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    # One entry: the order of several would differ from file to file.
    content = save(stored, metadata={kind: json.dumps({**header, _CHECKSUM: _checksum(stored)})})
    write_whole(Path(path), content)


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """Return what `write_tensors` wrote. Raises FileNotFoundError, or ValueError for a file that is none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected a {kind} file; there is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(kind, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()} if header else {}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"Expected a {kind} file; {path} cannot be read ({error}).") from error
    if not isinstance(header, dict):
        raise ValueError(f"Expected a {kind} file; {path} is a safetensors file of another kind.")
    if header.pop(_CHECKSUM, None) not in (None, _checksum(tensors)):  # early versions wrote none
        blank = sum(not tensor.any() for tensor in tensors.values())
        raise ValueError(
            f"Expected a {kind} file as it was written; {path} is damaged (its checksum differs; {blank} of "
            f"{len(tensors)} tensors hold only zeros). Copy it again, or make it anew; where you changed "
            f"it, leave {_CHECKSUM} out of the {kind} in its metadata."
        )
    return tensors, header


_CHECKSUM = "checksum"


def _checksum(tensors: dict[str, Tensor]) -> str:
    checksum = 0
    for key in sorted(tensors):
        checksum = zlib.crc32(tensors[key].flatten().view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"


def tensors_under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose key begins with a prefix, without it."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


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
        _remove_empty(wanted)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold an output folder for this process alone, made if missing; removed again if left empty.

    Raises ValueError: the folder cannot be written, or another process holds it.
    """
    from filelock import FileLock, Timeout

    made = _missing(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        lock = FileLock(_lock_file(folder), timeout=0)
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"Another process is writing to {folder}. Wait for it to end or choose another --out."
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"Expected a writable output folder; {folder} is not ({reason}). Choose another --out."
        ) from error
    try:
        recover(folder)
        yield
    finally:
        _remove_empty(*made)
        lock.release()


def _lock_file(folder: Path) -> Path:
    user = os.getuid() if hasattr(os, "getuid") else ""
    locks = Path(tempfile.gettempdir()) / f"sv4d2-locks-{user}"
    locks.mkdir(mode=0o700, exist_ok=True)
    # Never removed: a process that waits for a file that another removes would hold nothing.
    return locks / f"{fingerprint_of(os.path.normcase(folder.resolve()))}.lock"


_LISTED, _DEPTH = 5, 5


def find_inside(name: str, roots: Sequence[Path], is_one: Callable[[Path], bool], what: str) -> Path:
    """Return the file or folder called ``name`` in the first of ``roots`` that has it, links resolved.

    ``name`` is relative to a root, or a whole path inside one; ``what`` names what is looked for in errors.
    Raises ValueError where it leads out of the roots, FileNotFoundError (with the latest there are) for none.
    """
    if "\0" in name:
        raise ValueError(f"Expected {what}; got {name!r}, which holds a NUL byte.")
    places = " or ".join(map(str, roots))
    inside, outside = [], []
    for root in map(Path.resolve, roots):
        place = (root / name.strip()).resolve()
        (inside if place == root or root in place.parents else outside).append(place)
    for place in inside:
        if is_one(place):
            return place
    if not inside or any(place.exists() for place in outside):
        raise ValueError(
            f"Expected {what} inside {places}; {name!r} is or leads (by a link or ..) outside. Give its path "
            f"relative to one of them."
        )
    known = sorted(((p.stat().st_mtime, n) for r in roots for p, n in _below(r, is_one)), reverse=True)
    listing = ", ".join(found for _, found in known[:_LISTED])
    raise FileNotFoundError(
        f"Expected {what}; there is no {name!r} in {places}. "
        + (f"Those that exist: {listing}." if listing else "There are none yet.")
    )


def _below(root: Path, is_one: Callable[[Path], bool]) -> Iterator[tuple[Path, str]]:
    for folder, folders, files in os.walk(root):
        found = [path for name in (*folders, *files) if is_one(path := Path(folder) / name)]
        yield from ((path, path.relative_to(root).as_posix()) for path in found)
        deep = len(Path(folder).relative_to(root).parts) + 1 >= _DEPTH
        folders[:] = [] if deep else [name for name in folders if Path(folder) / name not in found]


STAGING_NAME = ".partial"
_SWAP_FILE = "swap.json"

# A file size limit (EFBIG) and a quota (EDQUOT, not known to every system) look the same to the user.
DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def all_or_nothing(folder: Path, existing: Sequence[str], marker: str, needed_bytes: int) -> Iterator[Path]:
    """Yield an empty staging folder whose entries take their places in ``folder`` when the block ends well.

    On any failure, an interrupt included, ``folder`` is as it was. The new entries replace the ``existing``
    ones once all are complete; ``marker``, the file whose presence says so, goes first and comes last.
    Raises OSError for a full (told ``needed_bytes``, an upper estimate) or read-only disk.
    """
    made = _missing(folder)
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
        _remove_empty(*made)
        known = DISK_FULL | _READ_ONLY | ({errno.EEXIST, errno.ENOTDIR} if not folder.is_dir() else set())
        if isinstance(error, OSError) and error.errno in known:
            raise OSError(error.errno, _explanation(error, folder, needed_bytes)) from error
        raise
    shutil.rmtree(staging, ignore_errors=True)


def recover(folder: Path) -> None:
    """Undo what a program that was killed while it replaced entries has left of that in ``folder``."""
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
    """Move the ``existing`` entries out of ``folder`` and the new ones in; undo all if one move fails."""
    fresh = [path.name for path in (staging / "new").iterdir()]
    (staging / _SWAP_FILE).write_text(json.dumps(fresh))
    moves = [
        (folder / name, staging / "old" / name) for name in sorted(existing, key=lambda name: name != marker)
    ]
    moves += [
        (staging / "new" / name, folder / name) for name in sorted(fresh, key=lambda name: name == marker)
    ]
    # Renames within one file system need no space, but a file held open stops them on Windows.
    try:
        for source, target in moves:
            source.rename(target)
    except BaseException:
        for source, target in reversed(moves):
            if target.exists() and not source.exists():
                target.rename(source)
        raise


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
    listed = _listed(folder / marker)
    if others := [name for name in found if name not in listed]:
        some = ", ".join(others[:3]) + (" ..." if len(others) > 3 else "")
        raise FileExistsError(f"{folder} holds {some}, {foreign}. Choose another folder or move them away.")
    if kept := [name for name in listed if not names.fullmatch(name) and (folder / name).exists()]:
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
    try:
        names = json.loads(marker.read_text()).get("entries", [])
    except (OSError, ValueError, AttributeError):
        return []
    names = names if isinstance(names, list) else []
    # What a list names elsewhere was not written into this folder.
    return [name for name in names if isinstance(name, str) and Path(name).name == name]


def _missing(folder: Path) -> list[Path]:
    """Return which of a folder and those above it are not there yet, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _explanation(error: OSError, place: Path, needed_bytes: int) -> str:
    if error.errno in DISK_FULL:
        return (
            f"Expected up to {math.ceil(needed_bytes / 1e6)} MB of space in {place}; the disk, quota or file "
            f"size limit is exhausted. Nothing was kept there. Free some space or choose a folder on another "
            f"disk."
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"Expected a folder; a file stands at {place} or above it. Choose another folder."
    return (
        f"Expected to write {place}; the system refuses ({error.strerror or error}). Choose another folder "
        f"or change its permissions."
    )
