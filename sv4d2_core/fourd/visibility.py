"""Per-pixel weights of the second stage: what is seen squarely, by a near view, and fits, counts most.

The formula of SV4D 2.0 is not published; this is the soft visibility of SV3D (2403.12008) times trust by view
angle times confidence in the fit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cameras import Cameras
from ..views import ViewGrid
from .scene import SceneRendering
from .trust import facing, fit_confidence, pixel_trust, seen_by_input

# What the input view shows at the same time counts this much in other views.
_SHOWN_BY_INPUT = 0.5
_SURFACE_ALPHA = 0.5


def visibility_weights(rendering: SceneRendering, targets: ViewGrid, *, trusted: bool = False) -> Tensor:
    """Return how much every pixel of the targets counts, [T, V + 1, H, W] in 0..1; the input counts 1.

    Args:
        rendering: the scene from the targets' cameras, at their times and size.
        targets: views with masks.
        trusted: all views are as good as the input: neither angle nor rim lowers their weight.
    """
    base = torch.ones_like(rendering.alpha) if trusted else pixel_trust(targets)
    confidence = torch.stack(
        [fit_confidence(a, b) for a, b in zip(targets.images, rendering.rgb, strict=True)]
    )
    surface = rendering.alpha >= _SURFACE_ALPHA
    depth = torch.where(surface, rendering.depth, 0.0)
    # Where the scene shows nothing there is no normal to judge by.
    squarely = torch.where(surface, _facing(rendering, targets.cameras), 1.0)
    shown = seen_by_input(depth, targets.cameras)
    weights = base * confidence * squarely * torch.where(shown, _SHOWN_BY_INPUT, 1.0)
    weights[:, 0] = base[:, 0]
    return weights


def _facing(rendering: SceneRendering, cameras: Cameras) -> Tensor:
    """Return how squarely every camera sees the surface in its pixels, [T, V + 1, H, W]."""
    eyes, directions = (x.float() for x in cameras.rays(rendering.rgb.shape[2]))
    seen = torch.empty_like(rendering.alpha)
    for view, eye in enumerate(eyes):
        points = eye + directions[view] * rendering.depth[:, view, ..., None]
        seen[:, view] = facing(rendering.normal[:, view], points, eye)
    return seen
