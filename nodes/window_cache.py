"""Finished windows of the sampler, kept on disk so that queueing again after a cancel continues.

The key of a run is the identity of its models within this ComfyUI process (their weights are too large to
hash) and the content of everything else.
"""

from __future__ import annotations

import hashlib
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

from ..sv4d2_core.diffusion.novel_views import WindowStore
from ..sv4d2_core.diffusion.window_store import WindowFolder, tensor_fingerprint
from ..sv4d2_core.files import remove

log = logging.getLogger(__name__)

_FOLDER = "sv4d2_windows"
# Runs that are kept; one window of the official model takes 4 MB.
_KEPT = 16

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
    root = Path(folder_paths.get_temp_directory()) / _FOLDER
    text = json.dumps(settings, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    with suppress(OSError):
        others = [run for run in root.iterdir() if run.name != name]
        remove(*sorted(others, key=lambda run: run.stat().st_mtime)[: 1 - _KEPT])
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
