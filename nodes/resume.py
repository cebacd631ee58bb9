"""What is kept of cancelled jobs on disk, so that queueing them again continues."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import folder_paths
from torch import Tensor

from ..sv4d2_core.diffusion.novel_views import WindowStore
from ..sv4d2_core.diffusion.window_store import WindowFolder, tensor_fingerprint
from ..sv4d2_core.scene.store import FitState

log = logging.getLogger(__name__)

_WINDOWS = "sv4d2_windows"
# Runs that are kept; one window of the official model takes 4 MB.
_KEPT_WINDOWS = 16

# Where the host's nodes keep what changes a MODEL beside its weights and their patches.
_CHANGES = (
    "model_options",
    "object_patches",
    "wrappers",
    "callbacks",
    "injections",
    "attachments",
    "additional_models",
    "forced_hooks",
)

_tokens: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


class _BestEffort:
    """A store whose failing never ends a job: what cannot be kept is computed again."""

    def __init__(self, store: WindowFolder) -> None:
        self._store = store

    def load(self, index: int) -> Tensor | None:
        """Return the latents of a finished window, or None."""
        return self._store.load(index)

    def save(self, index: int, latents: Tensor) -> None:
        """Keep the latents of a finished window where the disk allows it."""
        try:
            self._store.save(index, latents)
        except OSError as error:
            log.warning("SV4D2: window %d is not kept for a later run: %s", index, error)


def window_store(settings: dict[str, Any]) -> WindowStore:
    """Return the store of a run in ComfyUI's temp folder, which ComfyUI empties when it starts.

    Args:
        settings: everything that determines the latents, JSON values.
    """
    root = Path(folder_paths.get_temp_directory()) / _WINDOWS
    text = json.dumps(settings, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    with suppress(OSError):
        others = [run for run in root.iterdir() if run.name != name]
        for run in sorted(others, key=lambda run: run.stat().st_mtime)[: 1 - _KEPT_WINDOWS]:
            shutil.rmtree(run, ignore_errors=True)
    return _BestEffort(WindowFolder(root / name, json.loads(text), discard=True))


def model_identity(patcher: Any) -> list[Any]:
    """Return JSON values that stay equal while a MODEL's weights, patches and options stay the same."""
    changes = [_of_options(getattr(patcher, name, None)) for name in _CHANGES]
    # The hooks' tensors are too many to read; their keys are objects that stand for them.
    hooks = [identity(hook) for hook in getattr(patcher, "hook_patches", {})]
    return [identity(patcher.model), str(patcher.patches_uuid), changes, hooks]


def identity(thing: object) -> str:
    """Return a text that belongs to one live object alone; what cannot be followed gets a new one."""
    try:
        return _tokens.setdefault(thing, uuid.uuid4().hex)
    except TypeError:
        return uuid.uuid4().hex


def _of_options(value: Any) -> Any:
    """Return nested options as JSON values, objects by their identity."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Mapping):
        return [[_of_options(key), _of_options(item)] for key, item in value.items()]
    if isinstance(value, (list, tuple, set)):
        return [_of_options(item) for item in value]
    if isinstance(value, Tensor):
        return tensor_fingerprint(value)
    return identity(value)


_FITS = "sv4d2_fits"
# Fits that are kept; one takes 50 MB for pictures of 512 pixels, several hundred in its second stage.
_KEPT_FITS = 4


class FitStore:
    """The state of one fit in ComfyUI's temp folder, which ComfyUI empties when it starts.

    Its failing never ends a job: what cannot be kept is computed again.

    Args:
        settings: everything that determines the scene, JSON values.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
        self._file = Path(folder_paths.get_temp_directory()) / _FITS / f"{digest}.safetensors"

    def load(self) -> FitState | None:
        """Return the kept state, or None where there is none or it is damaged."""
        if not self._file.is_file():
            return None
        try:
            return FitState.load(self._file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("SV4D2: the interrupted fit cannot be read, so it starts anew: %s", error)
            return None

    def save(self, state: FitState) -> None:
        """Keep the state where the disk allows it, and drop the oldest of other fits."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._make_room()
            state.save(self._file)
        except OSError as error:
            log.warning("SV4D2: step %d of the fit is not kept for a later run: %s", state.step, error)

    def clear(self) -> None:
        """Forget the state."""
        with suppress(OSError):
            self._file.unlink(missing_ok=True)

    def _make_room(self) -> None:
        with suppress(OSError):
            others = [file for file in self._file.parent.iterdir() if file != self._file]
            for file in sorted(others, key=lambda file: file.stat().st_mtime)[: 1 - _KEPT_FITS]:
                file.unlink(missing_ok=True)
