"""What became of nodes that were renamed or rebuilt, so that saved workflows keep opening.

A node id never changes its meaning: a changed node gets a new id and an entry here.
"""

from __future__ import annotations

from typing import Any

import comfy_api.latest

# Keyword arguments of the host's `io.NodeReplace`: new_node_id, old_node_id, old_widget_ids, ...
REPLACEMENTS: tuple[dict[str, Any], ...] = ()


async def register_replacements() -> None:
    """Tell a host that knows replacements (ComfyUI 0.14 and newer) about ours."""
    replace = getattr(comfy_api.latest.io, "NodeReplace", None)
    if replace is None:
        return
    for entry in REPLACEMENTS:
        await comfy_api.latest.ComfyAPI().node_replacement.register(replace(**entry))
