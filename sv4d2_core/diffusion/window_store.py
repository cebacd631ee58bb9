"""Finished windows on disk, so that an interrupted run continues where it stopped."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..files import if_possible, json_in, remove, remove_empty, remove_unfinished, write_whole
from ..messages import listed
from ..stored import load_tensors

_KEY = "latents"
_WINDOWS = "window_*.safetensors"
_SETTINGS = "settings.json"


class WindowFolder:
    """Keeps each window's latents as float32 in a file of its own, with the run's ``settings`` (JSON values).

    Windows of other settings raise ValueError, or with ``discard`` are replaced at the first `save`.
    """

    def __init__(self, folder: Path, settings: dict, *, discard: bool = False) -> None:
        self.folder = folder
        self.settings = settings
        if folder.is_dir():
            remove_unfinished(folder)
        known = self._read_settings()
        self._usable = known == settings
        if known is not None and not self._usable and not discard:
            raise ValueError(
                f"{folder.parent} holds an unfinished run with other settings "
                f"({listed(changed_settings(known, settings))}). Choose another folder, use the same "
                f"settings to continue, or replace it (--overwrite)."
            )

    def finished(self) -> int:
        """Return how many windows are kept and intact."""
        if not self._usable:
            return 0
        return sum(_read(path) is not None for path in self.folder.glob(_WINDOWS))

    def load(self, index: int) -> Tensor | None:
        """Return the latents of a finished window, or None (also when its file is damaged)."""
        return _read(self._path(index)) if self._usable else None

    def save(self, index: int, latents: Tensor) -> None:
        """Keep the latents of a window where the disk allows it; the file appears complete or not at all."""
        with if_possible(f"Window {index}"):
            if not self._usable:
                # Also drops windows whose settings are lost: nothing says what they belong to.
                remove(self.folder / _SETTINGS, *self.folder.glob(_WINDOWS))
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    write_whole(self.folder / _SETTINGS, json.dumps(self.settings, indent=2).encode())
                except BaseException:
                    remove_empty(self.folder)
                    raise
                self._usable = True
            write_whole(self._path(index), save({_KEY: latents.detach().float().cpu().contiguous()}))

    def _path(self, index: int) -> Path:
        return self.folder / f"window_{index:03d}.safetensors"

    def _read_settings(self) -> dict | None:
        settings = json_in(self.folder / _SETTINGS)
        return settings if isinstance(settings, dict) else None


def changed_settings(known: dict, settings: dict) -> list[str]:
    """Return the names of the settings in which two runs differ."""
    return sorted(key for key in known.keys() | settings if known.get(key) != settings.get(key))


def tensor_fingerprint(tensor: Tensor) -> str:
    """Return a hash of a tensor's shape and values, for the settings of a store."""
    digest = hashlib.sha256(str((tuple(tensor.shape), str(tensor.dtype))).encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> Tensor | None:
    with suppress(OSError, ValueError):
        return load_tensors(path, "a window").shaped(_KEY, None, None, None, None)
    return None
