"""Small pictures of a scene while it is fitted, for a bounded share of the time."""

from __future__ import annotations

import math
import time

import comfy.model_management
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..sv4d2_core.scene.scene import Scene4D, own_cameras
from ..sv4d2_core.video.pictures import pick_frames, to_bytes
from ..sv4d2_core.views import ViewGrid

_EVERY_S = 2.0
_SHARE = 0.1
_VIEWS = 3
_SMALLEST, _FIRST, _LARGEST = 32, 64, 128


class ScenePreview:
    """Shows some views above and the scene from their cameras below, another frame every time.

    The pictures are as large as `_SHARE` of the time allows.

    Args:
        views: what the scene is fitted to.
    """

    def __init__(self, views: ViewGrid) -> None:
        self._views = views
        self._chosen = pick_frames(views.n_views + 1, _VIEWS)
        self._size = min(_FIRST, views.images.shape[2])
        self._count, self._next = 0, 0.0

    def picture(self, scene: Scene4D) -> Image.Image | None:
        """Return the picture of the moment, or None while it is too early for one."""
        began = time.perf_counter()
        if began < self._next:
            return None
        frame = self._count % self._views.n_frames
        picture = self._of_frame(scene, frame)
        self._count += 1
        ended = time.perf_counter()
        self._plan(ended, ended - began)
        return picture

    def _of_frame(self, scene: Scene4D, frame: int) -> Image.Image:
        size = self._size
        given = self._views.at_frames([frame]).resized(size).images[0, self._chosen]
        moment = [self._views.frame_times()[frame]]
        shown = scene.render(self._views.cameras, moment, size, views=self._chosen, callback=check_cancelled)
        return side_by_side(torch.stack([given, shown.rgb[0]]))

    def _plan(self, now: float, seconds: float) -> None:
        """Set when the next picture is due and how large it is."""
        self._next = now + max(_EVERY_S, seconds * (1 / _SHARE - 1))
        size = self._size * math.sqrt(_SHARE * _EVERY_S / max(seconds, 1e-3))
        largest = min(_LARGEST, self._views.images.shape[2])
        self._size = max(min(int(size) // 8 * 8, largest), min(_SMALLEST, largest))


def scene_strip(scene: Scene4D, size: int = _LARGEST) -> Image.Image:
    """Return the scene in the middle of its time from some of its own cameras, side by side."""
    cameras = own_cameras(scene)
    chosen = pick_frames(cameras.n_views + 1, _VIEWS)
    moment = [scene.times[len(scene.times) // 2]]
    shown = scene.render(cameras, moment, size, views=chosen, callback=check_cancelled)
    return side_by_side(shown.rgb)


def side_by_side(pictures: Tensor) -> Image.Image:
    """Return pictures [R, C, H, W, 3] in R rows and C columns."""
    return Image.fromarray(to_bytes(rearrange(pictures.clamp(0, 1), "r c h w k -> (r h) (c w) k")))


def check_cancelled(*_: object) -> None:
    """Raise when the user cancels; a callback of whatever counts its steps."""
    comfy.model_management.throw_exception_if_processing_interrupted()
