"""Work that needs gradients, which the host switches off for all nodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from ..sv4d2_core.views import ViewGrid


@contextmanager
def gradients() -> Iterator[None]:
    """Allow gradients of tensors that are made inside; what comes from outside has to be copied first."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def copied(views: ViewGrid) -> ViewGrid:
    """Return views whose pictures may take part in gradients; call it inside `gradients`."""
    masks = None if views.masks is None else views.masks.clone()
    return replace(views, images=views.images.clone(), masks=masks, latents=None)
