"""The version of this copy, and what comes with it: a small model and a clip to try everything at once."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__version__ = "0.1.0"

TINY_MODEL = Path(__file__).parent / "weights" / "sv4d2_tiny.safetensors"
# A walking puppy, 576 pixels, transparent around it, by `python tests/bench/sample_clip.py`.
SAMPLE_CLIP = Path(__file__).parent / "samples" / "puppy.webp"
SAMPLE_CREATURE, SAMPLE_FRAMES, SAMPLE_FPS = 5, 21, 8.0  # of the procedural world


def versions() -> dict[str, str]:
    """Return the versions of this project, of Python and of the packages that influence results."""
    found = {"sv4d2": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "pillow", "av"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
