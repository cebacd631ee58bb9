"""Interrupted fits, kept on disk so that queueing again after a cancel continues."""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import folder_paths

from ..sv4d2_core.files import remove
from ..sv4d2_core.scene.store import FitState

log = logging.getLogger(__name__)

_FOLDER = "sv4d2_fits"
# Fits that are kept; one takes 50 MB for pictures of 512 pixels, several hundred in its second stage.
_KEPT = 4


class FitStore:
    """The state of one fit in ComfyUI's temp folder, which ComfyUI empties when it starts.

    Its failing never ends a job: what cannot be kept is computed again.

    Args:
        settings: everything that determines the scene, JSON values.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
        self._file = Path(folder_paths.get_temp_directory()) / _FOLDER / f"{digest}.safetensors"

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
            remove(self._file)

    def _make_room(self) -> None:
        with suppress(OSError):
            others = [file for file in self._file.parent.iterdir() if file != self._file]
            remove(*sorted(others, key=lambda file: file.stat().st_mtime)[: 1 - _KEPT])
