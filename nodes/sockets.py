"""The socket types that ComfyUI does not have, and what a schema may say on newer hosts only."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

from comfy_api.latest import io

# Carries `sv4d2_core.cameras.Cameras`.
CamerasType = io.Custom("SV4D2_CAMERAS")
# Carries `sv4d2_core.views.ViewGrid`.
ViewsType = io.Custom("SV4D2_VIEWS")
# Carries a `sv4d2_core.scene.scene.Scene4D`.
SceneType = io.Custom("SV4D2_SCENE")

_SCHEMA_FIELDS = {field.name for field in fields(io.Schema)}


def aliases(*words: str) -> dict[str, Any]:
    """Return further search words of a node as keyword of `io.Schema`, or nothing where it has none."""
    return {"search_aliases": list(words)} if "search_aliases" in _SCHEMA_FIELDS else {}


def shows_a_picture() -> dict[str, Any]:
    """Return the keyword of `io.Schema` with which newer hosts show a node's picture again after a reload."""
    return {"has_intermediate_output": True} if "has_intermediate_output" in _SCHEMA_FIELDS else {}


def advanced() -> dict[str, Any]:
    """Return the keyword of an input that newer hosts show on demand only, or nothing where there is none."""
    return {"advanced": True} if "advanced" in inspect.signature(io.Combo.Input).parameters else {}
