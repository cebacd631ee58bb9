"""A user's own renders as a source of scenes, in the order of their folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
