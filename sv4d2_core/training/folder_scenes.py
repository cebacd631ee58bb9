"""A user's own renders as a source of scenes, in the order of their folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..fingerprints import file_fingerprint, fingerprint_of
from ..views import ViewGrid
from .folders import read_training_scene


@dataclass(frozen=True)
class FolderScenes:
    """Scenes that `check_training_folder` found.

    Args:
        paths: of the scenes.
        size: H and W to read them at, pixels.
    """

    paths: tuple[Path, ...]
    size: int

    def scene(self, index: int) -> ViewGrid:
        """Return scene ``index``."""
        return read_training_scene(self.paths[index], self.size)

    def identity(self) -> dict[str, str]:
        """Return a hash of each scene's files under its folder's name."""
        return {path.name: _content(path) for path in self.paths}


def _content(scene: Path) -> str:
    folder = scene if scene.is_dir() else scene.parent
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint_of([(str(path.relative_to(folder)), file_fingerprint(path)) for path in files])
