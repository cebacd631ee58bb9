"""Facts about a run that make it comparable and repeatable: versions and fingerprints of its inputs."""

from __future__ import annotations

import argparse
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import __version__


def versions() -> dict[str, str]:
    """Return the versions of this project, of Python and of the packages that influence results."""
    found = {"sv4d2": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "pillow", "av"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def options_of(args: argparse.Namespace) -> dict[str, object]:
    """Return the options of a command as JSON values."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(args).items()
        if not callable(value)
    }
