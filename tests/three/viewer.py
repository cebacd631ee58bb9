"""Somebody else's eyes on a GLB: three.js in a headless browser, and the Khronos validator."""

import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Each package and the environment variable that may name its folder.
PACKAGES = {"playwright-core": "PLAYWRIGHT_CORE", "three": "THREE_JS", "gltf-validator": "GLTF_VALIDATOR"}
SECONDS = 150


@dataclass(frozen=True)
class Shot:
    """One picture of a GLB that is asked for."""

    file: Path
    seconds: float  # of its animation
    intrinsics: Tensor  # [3, 3] pixels
    c2w: Tensor  # [4, 4], OpenGL camera axes
    size: int  # of the square picture, pixels


def missing(*wanted: str) -> str:
    """Return why this cannot run here, as a skip's reason, or "" if node and all of ``wanted`` are found."""
    absent = [name for name in ("node", *wanted) if _place(name) is None]
    if not absent:
        return ""
    packages = " ".join(name for name in wanted if name in PACKAGES)
    return (
        f"No {', no '.join(absent)}: GLB files were NOT tried in other programs. Install node and chromium, "
        f"and outside the repository run: npm install {packages}; then set PLAYWRIGHT_CORE=<that "
        f"folder>/node_modules/playwright-core"
    )


def render(shots: Sequence[Shot]) -> tuple[list[np.ndarray], list[list[dict[str, Any]]]]:
    """Return what three.js shows, and how it read the animations (name, duration in seconds, tracks).

    Pictures are [size, size, 4] uint8, transparent where nothing is. One browser renders all of them.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = [folder / f"{i}.png" for i in range(len(shots))]
        job = {
            "chromium": str(_place("chromium")),
            "playwright": str(_place("playwright-core")),
            "three": str(_place("three")),
            "profile": str(folder / "profile"),
            "shots": [
                {
                    "file": str(Path(shot.file).resolve()),
                    "picture": str(picture),
                    "seconds": shot.seconds,
                    "size": shot.size,
                    "intrinsics": shot.intrinsics.tolist(),
                    "c2w": shot.c2w.tolist(),
                }
                for shot, picture in zip(shots, pictures, strict=True)
            ],
        }
        (folder / "job.json").write_text(json.dumps(job))
        animations = _node("render.js", folder / "job.json")
        return [np.asarray(Image.open(picture).convert("RGBA")) for picture in pictures], animations


def validate(file: Path) -> dict[str, Any]:
    """Return the ``issues`` of the validator's report: numErrors, numWarnings, messages and so on."""
    return _node("validate.js", str(_place("gltf-validator")), file)["issues"]


def _node(script: str, *arguments: str | Path) -> Any:
    """Return the JSON that a script of this folder prints."""
    command = [str(_place("node")), str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, f"{script}: {done.stderr[-3000:]}"
    return json.loads(done.stdout)


@functools.cache
def _place(name: str) -> Path | None:
    """Return where a program or a package of npm is."""
    if name == "node":
        return _path(shutil.which("node"))
    if name == "chromium":
        installed = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
        return _path(os.environ.get("CHROMIUM") or installed)
    named, neighbour = os.environ.get(PACKAGES[name]), os.environ.get("PLAYWRIGHT_CORE")
    folders = [Path(named).expanduser()] if named else []
    folders += [Path(neighbour).expanduser().parent / name] if neighbour else []
    folders += [parent / "node_modules" / name for parent in (*REPOSITORY.parents, Path.home())]
    return next((folder.resolve() for folder in folders if (folder / "package.json").is_file()), None)


def _path(found: str | None) -> Path | None:
    return None if found is None else Path(found)
