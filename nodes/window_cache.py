"""Finished windows of the sampler, kept on disk so that queueing again after a cancel continues.

The key of a run is the identity of its models within this ComfyUI process (their weights are too large to
hash) and the content of everything else.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import folder_paths
from torch import Tensor

from ..sv4d2_core.diffusion.window_store import WindowFolder, tensor_fingerprint

_FOLDER = "sv4d2_windows"
# Runs that are kept; one window of the official model takes 4 MB.
_KEPT = 16

_tokens: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def window_store(settings: dict[str, Any]) -> WindowFolder:
    """Return the store of a run in ComfyUI's temp folder, which ComfyUI empties when it starts.

    Args:
        settings: everything that determines the latents, JSON values.
    """
    root = Path(folder_paths.get_temp_directory()) / _FOLDER
    text = json.dumps(settings, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    runs = sorted(root.glob("*"), key=lambda run: run.stat().st_mtime) if root.is_dir() else []
    for run in [run for run in runs if run.name != name][: 1 - _KEPT]:
        shutil.rmtree(run, ignore_errors=True)
    return WindowFolder(root / name, json.loads(text))


def model_identity(patcher: Any) -> list[Any]:
    """Return JSON values that stay equal while a MODEL's weights, patches and options stay the same."""
    return [
        identity(patcher.model),
        str(patcher.patches_uuid),
        _of_options(patcher.model_options),
        _of_options(patcher.object_patches),
        _of_options(getattr(patcher, "wrappers", {})),
    ]


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
        return {str(key): _of_options(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_of_options(item) for item in value]
    if isinstance(value, Tensor):
        return tensor_fingerprint(value.float())
    return identity(value)
