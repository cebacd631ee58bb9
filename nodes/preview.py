"""What a node shows on itself: while it runs and when it is done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy_api.latest import io, ui
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..sv4d2_core.scene.scene import Scene4D, own_cameras
from ..sv4d2_core.video.pictures import pick_frames, to_bytes
from ..sv4d2_core.views import ViewGrid


def counted_progress() -> Callable[..., None]:
    """Return a callback (done, total, ...) that moves the running node's bar and raises when cancelled."""
    bars: list[comfy.utils.ProgressBar] = []

    def step(done: int, total: int, *_: object) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not bars:
            bars.append(comfy.utils.ProgressBar(total))
        bars[0].update_absolute(done, total)

    return step


def live_preview(
    draw: Callable[[], Image.Image | None], full_size: bool = False
) -> tuple[str, Image.Image, int | None] | None:
    """Return a picture as the host's progress bar takes it; None, and nothing drawn, without previews.

    The user chooses method and size for the server, in newer hosts for each run.
    """
    if args.preview_method == LatentPreviewMethod.NoPreviews:
        return None
    picture = draw()
    return None if picture is None else ("JPEG", picture, None if full_size else args.preview_size)


def picture_preview(
    picture: Image.Image | Tensor, lines: Sequence[str] = (), cls: type[io.ComfyNode] | None = None
) -> dict[str, Any]:
    """Return the `ui` result of a node that shows a picture and, where the page knows how, lines of text.

    Args:
        picture: a PIL picture, or [H, W, 3] or [N, H, W, 3] in 0..1.
        lines: text.
        cls: the node, whose workflow the host then writes into the picture.
    """
    if isinstance(picture, Image.Image):
        picture = torch.from_numpy(np.asarray(picture.convert("RGB")).astype(np.float32) / 255)
    images = picture[None] if picture.ndim == 3 else picture
    shown = ui.PreviewImage(images, cls=cls).as_dict()
    return {**shown, "text": list(lines)} if lines else shown


_FRAMES = 6


def progress_with_preview(latent_format: Any, n_views: int) -> Callable[[int, int, Tensor | None], None]:
    """Return a callback of the core's pipeline that moves the bar of the running node.

    Args:
        latent_format: the host's description of the latents, with a rough map to colours.
        n_views: V of a window.
    """
    bar = None

    def callback(step: int, total: int, latents: Tensor | None) -> None:
        nonlocal bar
        bar = bar or comfy.utils.ProgressBar(total)
        bar.update_absolute(
            step, total, live_preview(lambda: latent_picture(latents, n_views, latent_format))
        )

    return callback


def latent_picture(latents: Tensor | None, n_views: int, latent_format: Any) -> Image.Image | None:
    """Return a picture of denoised latents [T * V, 4, h, w]: a row per view, a column per shown frame.

    None without latents, and where the host has no map of them to colours.
    """
    if latents is None or latent_format.latent_rgb_factors is None:
        return None
    grid = rearrange(latents, "(t v) c h w -> t v h w c", v=n_views)
    shown = grid[pick_frames(len(grid), _FRAMES)].float()
    factors = torch.tensor(latent_format.latent_rgb_factors).to(shown)
    bias = torch.tensor(getattr(latent_format, "latent_rgb_factors_bias", None) or [0.0, 0.0, 0.0]).to(shown)
    colours = (shown @ factors + bias + 1) / 2
    return Image.fromarray(to_bytes(rearrange(colours, "t v h w c -> (v h) (t w) c")))


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
