"""Facts about a run that make it comparable and repeatable: versions and fingerprints of its inputs."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch import Tensor

_SAMPLE = 2**20


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that influence results."""
    found = {"python": platform.python_version()}
    for package in ("sv4d2", "torch", "numpy", "pillow", "av"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def tensor_fingerprint(tensor: Tensor) -> str:
    """Return a hash of a tensor's shape and values."""
    digest = hashlib.sha256(str((tuple(tensor.shape), str(tensor.dtype))).encode())
    digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """Return a hash of a large file's size, beginning, middle and end; 12 GB need not be read."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in (0, size // 2, max(0, size - _SAMPLE)):
            file.seek(start)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]
