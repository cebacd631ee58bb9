"""The model that comes with the pack, in the host's list of checkpoints."""

from __future__ import annotations

import folder_paths

from ..sv4d2_core.shipped import TINY_MODEL


def register_tiny_model() -> None:
    """Let the host's checkpoint lists name `sv4d2_tiny`; doing so again changes nothing."""
    folder_paths.add_model_folder_path("checkpoints", str(TINY_MODEL.parent))
