"""Short hashes that tell files and settings from others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

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
