"""Finished windows on disk, so that an interrupted run continues where it stopped."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_KEY = "latents"
_SETTINGS = "settings.json"


class SettingsDiffer(ValueError):
    """The folder holds windows of a run with other settings."""


class WindowFolder:
    """Keeps each window's latents as float32 in a file of its own, together with the run's settings.

    Args:
        folder: made if missing.
        settings: everything that determines the latents, JSON values.
        discard: remove windows of other settings instead of refusing.

    Raises:
        SettingsDiffer: the folder belongs to a run with other settings and ``discard`` is off.
    """

    def __init__(self, folder: Path, settings: dict, *, discard: bool = False) -> None:
        self.folder = folder
        known = self._read_settings()
        if known is not None and known != settings:
            if not discard:
                changed = sorted(
                    key for key in known.keys() | settings if known.get(key) != settings.get(key)
                )
                raise SettingsDiffer(
                    f"{folder.parent} holds a run with other settings ({', '.join(changed)}). Choose another "
                    f"folder, use the same settings to continue, or overwrite it (--overwrite)."
                )
            shutil.rmtree(folder)
            known = None
        if known is None:
            folder.mkdir(parents=True, exist_ok=True)
            self._replace(_SETTINGS, json.dumps(settings, indent=2).encode())

    def finished(self) -> int:
        """Return how many windows are kept."""
        return len(list(self.folder.glob("window_*.safetensors")))

    def load(self, index: int) -> Tensor | None:
        """Return the latents of a finished window, or None (also when its file is damaged)."""
        try:
            return load(self._path(index).read_bytes())[_KEY]
        except (FileNotFoundError, SafetensorError):
            return None

    def save(self, index: int, latents: Tensor) -> None:
        """Keep the latents of a window; the file appears complete or not at all."""
        self._replace(self._path(index).name, save({_KEY: latents.float().contiguous()}))

    def _path(self, index: int) -> Path:
        return self.folder / f"window_{index:03d}.safetensors"

    def _read_settings(self) -> dict | None:
        try:
            return json.loads((self.folder / _SETTINGS).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def _replace(self, name: str, content: bytes) -> None:
        temporary = self.folder / f".{name}.part"
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.folder / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
