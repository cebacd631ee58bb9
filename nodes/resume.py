"""State of cancelled jobs on disk, from which they continue; what cannot be saved is computed again.

The key of a job: its models' identity in this process (weights are too large to hash) and all other content.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import folder_paths
from torch import Tensor

from ..sv4d2_core.diffusion.window_store import WindowFolder, tensor_fingerprint
from ..sv4d2_core.files import fingerprint_of, if_possible, remove
from ..sv4d2_core.scene.store import FitState

log = logging.getLogger(__name__)

_WINDOW_RUNS, _FITS = 16, 4  # jobs kept; a window takes 4 MB, a fit of 512 px 50 MB to several hundred

_CHANGES = (  # where the host keeps changes of a MODEL beside its weights and patches
    *("model_options", "object_patches", "wrappers", "callbacks"),
    *("injections", "attachments", "additional_models", "forced_hooks"),
)

_tokens: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def window_cache(settings: dict[str, Any]) -> WindowFolder:
    """Return where the finished windows of a sampler's run are; ``settings``, JSON values, determine them."""
    plain = json.loads(json.dumps(settings))
    place = _place("sv4d2_windows", plain)
    _make_room(place, _WINDOW_RUNS)
    return WindowFolder(place, plain, discard=True)


class FitCache:
    """The state of one fit; ``settings``, JSON values, determine the scene."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._file = _place("sv4d2_fits", settings, ".safetensors")

    def load(self) -> FitState | None:
        """Return the kept state, or None where there is none or it is damaged."""
        if not self._file.is_file():
            return None
        try:
            return FitState.load(self._file)
        except (OSError, ValueError) as error:
            log.warning("SV4D2: the interrupted fit cannot be read, so it starts anew: %s", error)
            return None

    def save(self, state: FitState) -> None:
        """Keep the state where the disk allows it."""
        with if_possible(f"SV4D2: step {state.step} of the fit"):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            _make_room(self._file, _FITS)
            state.save(self._file)

    def clear(self) -> None:
        with suppress(OSError):
            remove(self._file)


def _place(folder: str, settings: dict[str, Any], suffix: str = "") -> Path:
    """Return where a job is kept below ComfyUI's temp folder."""
    return Path(folder_paths.get_temp_directory()) / folder / f"{fingerprint_of(settings)}{suffix}"


def _make_room(place: Path, kept: int) -> None:
    """Remove the oldest jobs beside ``place``, so that with it no more than ``kept`` are there."""
    with suppress(OSError):
        others = sorted((x for x in place.parent.iterdir() if x != place), key=lambda x: x.stat().st_mtime)
        remove(*others[: 1 - kept])


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
    return tensor_fingerprint(value) if isinstance(value, Tensor) else identity(value)
