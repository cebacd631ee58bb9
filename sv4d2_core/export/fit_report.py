"""What a fit came to: the picture of its losses and residuals, next to what it was fitted to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from PIL import Image

from ..fourd.scene import Scene4D
from ..metrics.residuals import fit_residuals
from ..views import ViewGrid
from .fit_picture import fit_picture
from .pictures import pick_frames

# Pairs of pictures.
_SHOWN = 6


def fit_report(
    scene: Scene4D,
    views: ViewGrid,
    losses: Sequence[float],
    callback: Callable[[int, int, None], None] | None = None,
) -> tuple[Image.Image, float]:
    """Return the picture of a fit, and the mean residual over the novel views (`fit_residuals`).

    Args:
        scene: fitted, before its object's path is given back.
        views: what it was fitted to, with masks.
        losses: of every step.
        callback: called with (pictures done, all pictures, None); may raise to cancel.
    """
    size = views.images.shape[2]
    rendered = scene.render(views.cameras, views.frame_times(), size, callback=callback)
    shown = replace(views, images=rendered.rgb, masks=rendered.alpha)
    residuals = fit_residuals(shown, views, include_input=True)
    frames = pick_frames(views.n_frames, _SHOWN)
    places = [(t, i % (views.n_views + 1)) for i, t in enumerate(frames)]
    pairs = [torch.stack([grid.images[t, v] for t, v in places]) for grid in (shown, views)]
    steps = list(enumerate(losses, start=1))
    picture = fit_picture(steps, residuals, views.cameras, rendered=pairs[0], views=pairs[1])
    return picture, float(residuals[:, 1:].nanmean())
