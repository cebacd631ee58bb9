"""Facts about a run that make it comparable and repeatable: versions and fingerprints of its inputs."""

from __future__ import annotations

import argparse
import hashlib
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import __version__

_SMALL, _BLOCK, _STRIDE = 2**26, 2**12, 2**22


def versions() -> dict[str, str]:
    """Return the versions of this project, of Python and of the packages that influence results."""
    found = {"sv4d2": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "pillow", "av"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


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


def options_of(args: argparse.Namespace) -> dict[str, object]:
    """Return the options of a command as JSON values."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(args).items()
        if not callable(value)
    }
