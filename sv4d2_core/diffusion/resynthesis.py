"""Views made anew from given ones: re-noised to a strength and denoised, frame 0 as the reference views."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..views import ViewGrid
from .inputs import check_cameras, checked_clip
from .model import Backend
from .novel_views import sample_views
from .sampler import Callback


def resynthesizer(
    model: Backend,
    views: ViewGrid,
    *,
    steps: int = 50,
    seed: int = 23,
    cfg: float | tuple[float, float] | Tensor | None = None,
    callback: Callback | None = None,
) -> Callable[[ViewGrid, float], ViewGrid]:
    """Return a function (rendered, strength) -> views of the rendered ones' cameras and size.

    The network sees the input video at its own size, and frame 0 of the rendered views as reference views,
    the path that it was trained for by masking them at random.

    Args:
        model: a loaded `Model`, or a host's backend.
        views: hold the input video as the model takes it.
        steps, seed, cfg, callback: see `sample_views`.

    Raises:
        ValueError: an input video or a number of views that does not fit the model.
    """
    clip = checked_clip(views.images[:, 0], model.config)
    check_cameras(views.cameras, model.config)

    def resynthesize(rendered: ViewGrid, strength: float) -> ViewGrid:
        if rendered.n_frames != len(clip):
            raise ValueError(
                f"Expected {len(clip)} frames like the input video; got {rendered.n_frames}. Render them all."
            )
        shown = rendered.resized(clip.shape[1])
        made = sample_views(
            model,
            clip,
            rendered.cameras,
            steps=steps,
            seed=seed,
            cfg=cfg,
            reference_views=shown.images[0, 1:],
            init_views=shown.images[:, 1:],
            strength=strength,
            fps=rendered.fps,
            callback=callback,
        )
        return made.resized(rendered.images.shape[2])

    return resynthesize
