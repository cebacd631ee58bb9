"""What happens beside a fit: the bar, a preview, cancelling, and a state to go on from."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
from PIL import Image
from torch import Tensor

from ..sv4d2_core.scene.fit import FitProgress
from .fit_cache import FitStore
from .live_preview import latent_picture
from .preview import live_preview
from .scene_preview import ScenePreview

_SAVE_EVERY_S = 60.0


class RefineWatch:
    """The callbacks of a fit and of the model that makes views anew between its rounds.

    Args:
        n_views: V.
        store: where the state is kept every minute.
        latent_format: the host's description of the model's latents, or None without a model.

    """

    def __init__(self, n_views: int, store: FitStore, latent_format: Any = None) -> None:
        self._n_views, self._store, self._latent_format = n_views, store, latent_format
        self._preview: ScenePreview | None = None
        self._bar: comfy.utils.ProgressBar | None = None
        self._at = (0, 1)
        self._saved = time.monotonic()
        self._latest: FitProgress | None = None

    @property
    def progress(self) -> FitProgress:
        """What the fit said last."""
        if self._latest is None:
            raise RuntimeError("Expected a fit that has begun; it has said nothing yet.")
        return self._latest

    def __call__(self, step: int, total: int, progress: FitProgress) -> None:
        """Show where the fit is, keep its state now and then, and raise when the user cancels."""
        self._latest, self._at = progress, (step, total)
        preview = self._preview = self._preview or ScenePreview(progress.views)
        comfy.model_management.throw_exception_if_processing_interrupted()
        if time.monotonic() - self._saved > _SAVE_EVERY_S:
            self.save()
        self._show(lambda: preview.picture(progress.scene))

    def sampling(self, _step: int, _total: int, latents: Tensor | None) -> None:
        """Show the views that are being made anew; the bar stays where the fit is."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._show(lambda: latent_picture(latents, self._n_views, self._latent_format))

    def show_result(self, picture: Image.Image) -> None:
        """Replace the last preview, which the page would go on showing, by the picture of the fit."""
        self._show(lambda: picture, full_size=True)

    def save(self) -> None:
        """Keep the state, from which the fit goes on when it is queued again."""
        if self._latest is not None:
            self._store.save(self._latest.state())
            self._saved = time.monotonic()

    def _show(self, draw: Callable[[], Image.Image | None], full_size: bool = False) -> None:
        step, total = self._at
        bar = self._bar = self._bar or comfy.utils.ProgressBar(total)
        bar.update_absolute(step, total, live_preview(draw, full_size))
