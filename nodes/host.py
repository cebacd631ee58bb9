"""What a guest may say to a host of any age: sockets, schema fields, memory, gradients, lists."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import comfy.model_management
import comfy_api.latest
import folder_paths
import torch
from comfy_api.latest import io

from ..sv4d2_core.diffusion.blocks import is_out_of_memory
from ..sv4d2_core.shipped import TINY_MODEL
from ..sv4d2_core.views import ViewGrid

# Carries `sv4d2_core.cameras.Cameras`.
CamerasType = io.Custom("SV4D2_CAMERAS")
# Carries `sv4d2_core.views.ViewGrid`.
ViewsType = io.Custom("SV4D2_VIEWS")
# Carries a `sv4d2_core.scene.scene.Scene4D`.
SceneType = io.Custom("SV4D2_SCENE")

# Newer hosts know a start value for the control; on others it starts with randomize.
FIXED = getattr(getattr(io, "ControlAfterGenerate", None), "fixed", True)

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


@contextmanager
def gradients() -> Iterator[None]:
    """Allow gradients of tensors that are made inside; what comes from outside has to be copied first."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def copied(views: ViewGrid) -> ViewGrid:
    """Return views whose pictures may take part in gradients; call it inside `gradients`."""
    masks = None if views.masks is None else views.masks.clone()
    return replace(views, images=views.images.clone(), masks=masks, latents=None)


def is_oom(error: BaseException) -> bool:
    """Return whether an error says that memory ran out; newer hosts know more kinds than one class."""
    known = getattr(comfy.model_management, "is_oom", None)
    return is_out_of_memory(error) or (known is not None and known(error))


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Put ``advice`` in front of an error that says that memory ran out.

    Raises:
        OOM_EXCEPTION: memory ran out inside; the host unloads its models then.
    """
    try:
        yield
    except Exception as error:
        if not is_oom(error):
            raise
        raise comfy.model_management.OOM_EXCEPTION(f"{advice} ({error})") from error


# Keyword arguments of the host's `io.NodeReplace`: new_node_id, old_node_id, old_widget_ids, ...
REPLACEMENTS: tuple[dict[str, Any], ...] = ()


async def register_replacements() -> None:
    """Tell a host that knows replacements (ComfyUI 0.14 and newer) about ours."""
    replace = getattr(comfy_api.latest.io, "NodeReplace", None)
    if replace is None:
        return
    for entry in REPLACEMENTS:
        await comfy_api.latest.ComfyAPI().node_replacement.register(replace(**entry))


def register_tiny_model() -> None:
    """Let the host's checkpoint lists name `sv4d2_tiny`; doing so again changes nothing."""
    folder_paths.add_model_folder_path("checkpoints", str(TINY_MODEL.parent))
