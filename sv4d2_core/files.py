"""Writes a file that appears complete or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def write_whole(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file under a temporary name, onto the disk, and rename it; an older one stays until then.

    ``content`` may come in parts, of which one at a time is in memory.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_tensors(path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict) -> None:
    """Write tensors and JSON values as one safetensors file, which appears complete or not at all.

    Args:
        path: the file.
        kind: the key of the metadata that holds the header; it tells what the file is.
        tensors: copied to the CPU.
        header: JSON values.
    """
    content = save(
        {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
        metadata={kind: json.dumps(header)},
    )
    write_whole(Path(path), content)


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """Return the tensors and the header that `write_tensors` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or of another kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected a {kind} file; there is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(kind, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()} if header else {}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"Expected a {kind} file; {path} cannot be read ({error}).") from error
    if not isinstance(header, dict):
        raise ValueError(f"Expected a {kind} file; {path} is a safetensors file of another kind.")
    return tensors, header


def tensors_under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose key begins with a prefix, under the rest of their key."""
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


def replaceable(
    folder: Path,
    marker: str,
    names: re.Pattern[str],
    overwrite: bool,
    *,
    earlier: str = "an earlier export",
    foreign: str = "which no export of this kind wrote and which is never replaced",
) -> list[str]:
    """Return which entries of ``folder`` a new export of this kind replaces, none in a new folder.

    Args:
        folder: of the export.
        marker: the JSON file that lists, under "entries", what the earlier export wrote.
        names: what exports of this kind call their entries; whatever else is listed does not count.
        overwrite: whether an earlier export may be replaced.
        earlier: what the earlier export is called in errors.
        foreign: what is said of entries from elsewhere.

    Raises:
        FileExistsError: the folder holds entries of such names from elsewhere, an export of another kind
            under the same marker, or an earlier export and ``overwrite`` is off.
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
            f"Expected a folder without {earlier}; {folder / found[0]} exists already. Choose another folder "
            f"or overwrite it (--overwrite)."
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
            raise OSError(error.errno, _explanation_single_file(error, path, len(content))) from error
        raise
    return len(content)


def _explanation_single_file(error: OSError, path: Path, size: int) -> str:
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
